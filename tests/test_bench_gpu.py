"""What ``make gpu-check`` conducts, tried on a processor: nobody can mend it where it runs."""

import json
import os
import sys
import time
from dataclasses import replace

import pytest
from transformers import ContinuousBatchingConfig

from bench import gpu_check, gpu_kernels, gpu_runs
from bench.gpu_check import Part
from engine.laboratory.cases import OPS
from engine.models import ModelHost
from spec.choices import Backend, Dtype
from spec.kernel_result import KernelResult, KernelStatus
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec


def part(code, limit_s=60.0):
    return Part(code[:20], (sys.executable, "-c", code), limit_s)


def test_a_part_that_fails_or_hangs_is_a_line_and_not_the_end(tmp_path):
    """A hanging part has a child, which must not outlive it: it would hold the GPU."""
    sign = tmp_path / "sign"
    child = f"import time; time.sleep(6); open({str(sign)!r}, 'w')"
    hangs = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    parts = [part("pass"), part("raise SystemExit(3)"), part(hangs, 2.0), part("pass # again")]
    ended = [how for _, how in gpu_check.conduct(parts, time.monotonic() + 100)]
    assert ended == ["ok", "FAILED (exit code 3)", "stopped after 2 s", "ok"]
    time.sleep(6)
    assert not sign.exists()


def test_what_would_begin_too_late_is_named():
    assert gpu_check.conduct([part("pass")], time.monotonic() - 1) == [("pass", "not begun: out of time")]


def test_what_computes_on_the_gpu_is_another_process():
    assert gpu_check.apart(os.getppid) == os.getpid()


def test_every_part_is_there():
    tests = gpu_check.tests()
    assert all((gpu_check.ROOT / name).is_file() for name in tests[-1].command if name.startswith("tests/"))
    assert {p.name for p in tests} >= {"tests/test_gpu_engine.py", "tests/kernels/test_decode.py"}
    assert not [p for p in tests if "test_runtime" in p.name]
    assert "tma" in tests[-2].name
    assert [p.command[3] for p in gpu_check.kernels(gpu_check.ROOT)] == list(OPS)
    assert len({p.name for p in gpu_check.runs()}) == 10


@pytest.mark.parametrize("op", list(OPS))
def test_every_operation_has_valid_cases(op):
    made = list(gpu_kernels.cases(op))
    assert len(made) >= 3
    assert len(set(made)) == len(made)
    assert all(case.cost().bytes_moved < 40e9 for case in made), "it would not fit beside its copies"


def test_kernels_are_measured_into_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_kernels, "SHAPES", {"norm": [{"tokens": 4, "width": 64}]})
    out, limits = tmp_path / "out.jsonl", tmp_path / "limits.json"
    rates = {"device": "cpu", "copy_bytes": 1, "matmul_side": 1, "repeats": 1, "copy_bytes_per_s": 1e10}
    limits.write_text(json.dumps(rates | {"matmul_flop_per_s": {"bf16": 1e11}}))
    given = ["gpu_kernels", "norm", "--device", "cpu", "--out", str(out), "--budget", "0.02", "--ceilings", str(limits)]
    monkeypatch.setattr(sys, "argv", given)
    assert gpu_kernels.main() == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["side"] for r in rows} == {s.name for s in OPS["norm"].sides}
    assert "us" in capsys.readouterr().out


def result(**changes):
    case = next(gpu_kernels.cases("norm"))
    made = KernelResult(
        0.0, {}, "cpu", "norm", case.key(), str(case), case.to_dict(), "triton", KernelStatus.MEASURED,
        1.9e-3, 1e-3, 1e-5,
    )  # fmt: skip
    return replace(made, **changes)


def test_a_kernel_of_ours_that_errs_too_much_is_wrong():
    assert not gpu_kernels.is_wrong(result())
    assert gpu_kernels.is_wrong(result(error=2.1e-3))
    assert "WRONG" in gpu_kernels.line(result(error=2.1e-3))
    assert not gpu_kernels.is_wrong(result(error=2.1e-3, side="eager"))
    assert gpu_kernels.is_wrong(result(status=KernelStatus.FAILED, note="it fell"))
    assert "it fell" in gpu_kernels.line(result(status=KernelStatus.FAILED, note="it fell", median_s=None))


def test_the_plans_of_runs_are_valid_and_a_way_that_fails_is_a_row(tmp_path):
    assert len(list(gpu_runs.decode("shape:llama-3.1-8b", 8))) == len(gpu_runs.WAYS)
    assert len(list(gpu_runs.samples("shape:llama-3.1-8b", 2048, tmp_path))) == 3
    host = ModelHost()
    good = RunSpec("lab-xs", runtime=Runtime(device="cpu", batch_size=2), task=TaskSpec(limit=2, max_new_tokens=4))
    row = gpu_runs.measure(host, "isoquant", good)
    assert row["measures"]["throughput_run_tok_s"] > 0
    assert "tokens/s" in gpu_runs.line(row)
    assert "nan" not in gpu_runs.line(row)
    bad = replace(good, runtime=replace(good.runtime, attention="triton"))
    row = gpu_runs.measure(host, "triton", bad)
    assert "NVIDIA" in row["error"]
    assert "failed" in gpu_runs.line(row)


def test_transformers_own_batching_is_measured(monkeypatch):
    """Its interface is not ours: the environment of a GPU may have another version of it than this one."""
    monkeypatch.setattr(gpu_runs, "NEW_TOKENS", 5)
    host, runtime = ModelHost(), Runtime(device="cpu", backend=Backend.TRANSFORMERS)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
    row = gpu_runs.batched(host, "lab-xs", 3, runtime, small)
    assert row["ran"] == "generate_batch, paged sdpa", row
    assert row["measures"]["throughput_run_tok_s"] > 0
    assert "nan" not in gpu_runs.line(row)
    model = host.get(RunSpec("lab-xs", Precision(Dtype.BF16), replace(runtime, batch_size=3))).model
    monkeypatch.setattr(model, "generate_batch", lambda **given: {}, raising=False)
    row = gpu_runs.batched(host, "lab-xs", 3, runtime, small)
    assert "3 of 3 requests never came back" in gpu_runs.line(row)
