"""Starts what runs on a GPU in processes with a simulated one: Triton's kernels are interpreted, on the processor.

``tests/simulator`` says what that shows. By hand:
``ISOQUANT_SIMULATED_GPU=1 TRITON_INTERPRET=1 python -m pytest tests/kernels``.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each program of a kernel takes milliseconds, so of whole models the tests that differ most are taken: keys read
# together come with fused layers and recorded steps, and what they replace is tried in tests/kernels/test_runtime.py.
WAYS = "every_way and (shared or plain or eager or math or (triton and not no))"
MODELS = "(greedy and (gpt2 or mixtral or transformers)) or (samples and transformers)"
STRATEGIES = "every_strategy and not best and not particle and not dvts and not lookahead and not step and not rebase"
PARTS = {path.stem: [f"tests/kernels/{path.name}"] for path in (ROOT / "tests" / "kernels").glob("test_*.py")} | {
    "rules": ["tests/simulator", "tests/test_gpu_recording.py"],
    "ways": ["tests/test_gpu_engine.py", "-k", WAYS],
    "models": ["tests/test_gpu_engine.py", "-k", MODELS],
    "strategies": ["tests/test_gpu_engine.py", "-k", STRATEGIES],
}
PLAIN = {"test_runtime"}  # it makes the processor's tensors run through the kernels by itself
ALL = pytest.param("exhaustive", marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.mark.parametrize("part", sorted(PARTS))
def test_what_runs_on_a_gpu_runs_on_a_simulated_one(part):
    in_pytest(PARTS[part], "not alone and not slow and not exhaustive", "0" if part in PLAIN else "1")


@pytest.mark.parametrize("which", ["not exhaustive", ALL])
def test_what_is_launched_on_a_gpu_compiles_for_it(which):
    """The same launches, through Triton's compiler."""
    in_pytest(["tests/simulator/test_launches.py"], which, "compile")


def in_pytest(what, which, simulated):
    """One thread: the interpreter's operations are too small to share."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ISOQUANT_SIMULATED_GPU": simulated}
    if simulated != "compile":
        env["TRITON_INTERPRET"] = "1"
    more = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=500", "-m", which)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *more, *what], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
