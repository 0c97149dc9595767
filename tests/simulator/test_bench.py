"""The tables of `make gpu-check` on the simulated GPU: every side of every operation, and the sweep of settings."""

import os

import pytest
import torch

if os.environ.get("ISOQUANT_SIMULATED_GPU") != "1":
    pytest.skip("needs the simulated GPU", allow_module_level=True)

from bench import gpu_settings
from engine.laboratory.cases import OPS, make_case
from engine.laboratory.measure import here, measure, sides_of
from engine.measure import timing
from kernels.linear import triton as linear
from spec.kernel_result import KernelStatus

SMALL = {
    "decode": {"batch": 2, "context": 40},
    "prefill": {"batch": 2, "new": 20},
    "shared": {"batch": 3, "prefix": 40, "suffix": 8},
    "norm": {"tokens": 3, "width": 64},
    "rope": {"tokens": 3},
    "swiglu": {"tokens": 3, "width": 64},
    "linear": {"rows": 3, "inputs": 64, "outputs": 16},
    "sampler": {"rows": 2, "vocabulary": 200},
}
HEADS = {"heads": 4, "kv_heads": 2, "dim": 16}
WITHOUT = "flex"  # it is compiled by torch.compile, which the simulated GPU does not have


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("GRAPH_S", 1e-6), ("MAX_COPIES", 1), ("REPLAYS", 2)):
        monkeypatch.setattr(timing, name, value)


def case(op):
    known = {f.name for f in OPS[op].fields}
    return make_case(op, "fp32", on_gpu=True, **SMALL[op], **{n: v for n, v in HEADS.items() if n in known})


@pytest.mark.parametrize("op", OPS)
def test_every_side_is_measured_or_says_why_not(op):
    found = {r.side: r for r in measure([case(op)], here("cuda:0"), budget_s=0.01, with_compiled=False)}
    assert set(found) == {s.name for s in sides_of(op)}
    assert found["triton"].status is KernelStatus.MEASURED
    for side, result in found.items():
        if side != WITHOUT:
            assert result.status is not KernelStatus.FAILED, result.note
            assert "recorded" not in (result.note or "")
        if result.status is KernelStatus.MEASURED:
            assert result.error < 2e-6


def test_settings_are_swept(capsys, monkeypatch):
    monkeypatch.setattr(gpu_settings, "STAGES", (None, 7))
    monkeypatch.setattr(gpu_settings, "SPLITS", (None, 3))
    calls = []
    for module, name in ((linear, "few_rows"), (linear, "many_rows"), (linear, "dequantize")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, name=name, run=run: calls.append(name) or run(*given))
    half = make_case("linear", "fp16", on_gpu=True, **SMALL["linear"])
    assert gpu_settings.sweep([case("decode"), case("prefill"), case("shared"), half], budget_s=0.01) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [line.partition(":")[0] for line in lines if " us " in line]
    assert settings == ["decode"] * 4 + ["prefill"] * 2 + ["shared"] * 2 + ["linear"] * 4
    assert list(dict.fromkeys(calls)) == ["few_rows", "many_rows", "dequantize"]
    assert sum("fastest" in line for line in lines) == 4
    assert any("stages 7, splits 3 " in line for line in lines)


def test_the_products_with_a_single_row_are_held_against_pytorchs(capsys, monkeypatch):
    monkeypatch.setattr(gpu_settings, "MATRICES", [(n // 512, k // 512) for n, k in gpu_settings.MATRICES])
    with torch.inference_mode():
        gpu_settings.single_rows(torch.device("cuda", 0))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("of PyTorch's time" in line for line in lines), lines
