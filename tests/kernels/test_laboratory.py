"""The laboratory calls the Triton kernels as they want to be called: each of them against fp64."""

import pytest
import torch
from paged import DEVICE

from engine.laboratory.cases import OPS, make_case
from engine.laboratory.measure import Bench

HEADS = {"heads": 4, "kv_heads": 2, "dim": 32}
CASES = {
    "decode": {"batch": 2, "context": 70, **HEADS},
    "prefill": {"batch": 2, "new": 20, "cached": 13, **HEADS},
    "norm": {"tokens": 3, "width": 96},
    "rope": {"tokens": 5, **HEADS},
    "swiglu": {"tokens": 3, "width": 96},
}
FEATURES = [("decode", {"window": 9, "softcap": 3, "sinks": True, "alibi": True}), ("decode", {"kv": "int8"})]
FEATURES += [("prefill", {"window": 9, "alibi": True}), ("prefill", {"kv": "int8"})]
FEATURES += [("rope", {"qk_norm": True})]


@pytest.mark.parametrize(("op", "features"), [*((op, {}) for op in CASES), *FEATURES])
def test_ours_computes_what_the_reference_does(op, features, monkeypatch):
    monkeypatch.setattr("engine.measure.timing.copies_for", lambda *given: 1)
    case = make_case(op, "fp32", **CASES[op], features=features)
    bench = Bench(OPS[op], case, torch.device(DEVICE), seed=0)
    with torch.inference_mode():
        bench.open()
        assert bench.error(OPS[op].side("triton")) < 2e-6
