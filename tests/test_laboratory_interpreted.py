"""The laboratory calls its newer kernels as they want to be called: each against fp64, in Triton's interpreter.

The interpreter is chosen as a kernel is defined, so it needs a process of its own, which the first test starts.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from engine.laboratory.cases import OPS, parse_case
from engine.laboratory.measure import Bench
from engine.measure import timing
from engine.measure.hardware import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HEADS = "heads=4,kv_heads=2,dim=32,dtype=fp32"
SHARED = f"shared:batch=5,prefix=260,suffix=20,{HEADS}"
CASES = [
    ("triton", f"decode:batch=2,context=70,{HEADS},tree=5"),
    ("triton", f"decode:batch=2,context=70,{HEADS},tree=3,window=9,sinks"),
    *(
        (side, SHARED + more)
        for side in ("triton", "unshared")
        for more in ("", ",window=100", ",softcap=3,sinks,kv=int8")
    ),
    ("tma", f"prefill:batch=2,new=20,{HEADS}"),
    ("tma", f"prefill:batch=2,new=20,{HEADS},window=9,softcap=3,sinks,alibi"),
    *(("triton", f"linear:rows=3,inputs=256,outputs=40,dtype=fp32,weight={w}") for w in ("int8", "nf4", "fp8")),
    ("triton", "linear:rows=3,inputs=256,outputs=40,dtype=fp16,weight=int4"),
    ("triton", "linear:rows=3,inputs=256,outputs=40,dtype=fp32,activations=int8"),
    ("triton", "sampler:rows=2,vocabulary=3000,dtype=fp32"),
    ("triton", "sampler:rows=2,vocabulary=3000,dtype=fp32,top_k=50,top_p=90,min_p=5"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_ours_compute_what_their_references_do():
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--timeout=500",
        __file__,
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{len(CASES)} passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="it runs in a process of its own")
@pytest.mark.parametrize(("side", "text"), CASES)
def test_a_side_against_fp64(side, text, monkeypatch):
    monkeypatch.setattr(timing, "MAX_COPIES", 1)
    case = parse_case(text)
    bench = Bench(OPS[case.op], case, torch.device("cpu"), seed=0)
    with torch.inference_mode():
        bench.open()
        assert bench.error(OPS[case.op].side(side)) < (2e-6 if case.dtype == "fp32" else 1e-3)
