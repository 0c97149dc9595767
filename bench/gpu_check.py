"""`make gpu-check`: is the engine right on this GPU, and how fast is it? One command, no network, under ten minutes.

The larger lab model, which it trains where it is missing, takes longer: ``--skip-training`` leaves that out.

    python -m bench.gpu_check [--skip-training] [--minutes 8] [--only kernels]

1. Correctness: the GPU tests (`tests/test_gpu_*.py`) hold CUDA against the CPU and `transformers.generate`, those of
   `tests/kernels` each Triton kernel against fp64. Those marked slow (torch.compile, FlexAttention) are left out;
   `python -m pytest -m gpu` runs all.
2. Kernels (`bench.gpu_kernels`): each beside PyTorch's own, with its error and its share of this GPU's ceilings.
3. Runs (`bench.gpu_runs`): whole models in our ways and transformers', samples behind long prompts.
4. The larger lab model, if it is missing: trained here, because it takes hours on a CPU and minutes on a GPU.

Every part is a process of its own with its own time, so one that fails, hangs or spoils the GPU's context is a line in
the summary and not the end. What was measured is appended to `bench/results/`, with hardware and commit, as it comes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from bench.record import RESULTS, arguments
from engine.catalog import list_models
from engine.laboratory.cases import OPS
from engine.measure.hardware import cores, fingerprint
from engine.measure.roofline import calibrate

ROOT = Path(__file__).resolve().parents[1]
KERNELS, RUNS = RESULTS / "kernels.jsonl", RESULTS / "gpu_runs.jsonl"
PARTS = ("tests", "kernels", "runs", "training")
LARGE, SMALL = "shape:llama-3.1-8b", "shape:qwen2.5-0.5b"
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Part:
    """One process: what it is called, its command, the most seconds it may take."""

    name: str
    command: tuple[str, ...]
    limit_s: float


def tests() -> list[Part]:
    """One for each file: what one spoils stays its own. What has most to lose from a hang comes last."""
    files = [*sorted((ROOT / "tests").glob("test_gpu_*.py")), *sorted((ROOT / "tests" / "kernels").glob("test_*.py"))]
    names = [str(f.relative_to(ROOT)) for f in files if f.name != "test_runtime.py"]  # it is for the interpreter
    names.sort(key=lambda name: "tma" in name)
    # A thread's timeout ends the process; a signal's would wait for the call into CUDA that hangs.
    more: tuple[str, ...] = ("-q", "-p", "no:cacheprovider", "--timeout-method=thread")
    command = (sys.executable, "-m", "pytest", *more)
    beside: tuple[str, ...] = ()
    if importlib.util.find_spec("xdist") is not None:
        # Most of their time is Triton's compiler, on the processor; each holds half a gigabyte of the GPU's memory.
        beside = ("-n", str(min(8, max(2, cores() // 2))))
    found = [
        Part(name, (*command, "-m", "gpu and not slow and not alone", *beside, name), 300 if "gpu_" in name else 180)
        for name in names
    ]
    return [*found, Part("tests that need the GPU for themselves", (*command, "-m", "gpu and alone", *names), 120)]


def kernels(ceilings: Path) -> list[Part]:
    """One for each operation."""
    more = ("--out", str(KERNELS), "--ceilings", str(ceilings))
    return [Part(f"kernel {op}", (sys.executable, "-m", "bench.gpu_kernels", op, *more), 240) for op in OPS]


def runs() -> list[Part]:
    """Decoding of both shapes at four batch sizes, and samples behind long prompts; what matters most first."""
    command = (sys.executable, "-m", "bench.gpu_runs")
    out = ("--out", str(RUNS))
    asked = [(LARGE, 1), (LARGE, 32), (SMALL, 1), (SMALL, 32), (LARGE, 8), (LARGE, 128), (SMALL, 8), (SMALL, 128)]
    found = [
        Part(f"decode {m} x {b}", (*command, "decode", "--model", m, "--batch", str(b), *out), 240) for m, b in asked
    ]
    found[2:2] = [
        Part(f"64 samples, {p} tokens", (*command, "samples", "--prompt", str(p), *out), 240) for p in (8192, 2048)
    ]
    return found


def training() -> list[Part]:
    """Of `lab-l`, where it is missing."""
    if any(m.name == "lab-l" and m.available for m in list_models()):
        return []
    return [Part("lab-l", (sys.executable, "-m", "lab.train", "--model", "lab-l", "--device", "cuda"), 3600)]


def conduct(parts: list[Part], deadline_s: float) -> list[tuple[str, str]]:
    """Run them in turn; (name, how it ended) of each. What would begin after the deadline is named and left out."""
    found = []
    for part in parts:
        left = deadline_s - time.monotonic()
        if left <= 0:
            found.append((part.name, "not begun: out of time"))
            continue
        print(f"\n== {part.name}", flush=True)
        found.append((part.name, _conduct(part, min(part.limit_s, max(30, left)))))
    return found


def _conduct(part: Part, limit_s: float) -> str:
    process = subprocess.Popen(part.command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(limit_s)
        return "ok" if code == 0 else f"FAILED (exit code {code})"
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    finally:
        # With all its children: one that hangs in a kernel would keep the GPU.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def apart(work: Callable[..., Found], *given: object, limit_s: float = 120.0) -> Found:
    """``work(*given)`` by a process of its own.

    This one must not compute on the GPU: it would hold memory there to the end, and every energy reading beside it
    would be that of two processes, which counts for none.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(work, given).get(limit_s)


def main() -> int:
    """All parts; the exit code is 0 only when all went well."""
    parser = arguments(__doc__)
    parser.add_argument("--skip-training", action="store_true", help="do not train the larger lab model")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after so many minutes")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given again")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device here: run this on a machine with an NVIDIA GPU.")
        if options.json:
            print("{}")
        return 1
    started = time.monotonic()
    wanted = set(options.only or PARTS) - ({"training"} if options.skip_training or options.quick else set())
    hardware = fingerprint()
    print(f"{hardware['hardware_name']}, driver {hardware['gpu_driver']}, {hardware['packages']}")
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        limits = apart(calibrate, "cuda:0")
        ceilings = Path(folder, "ceilings.json")
        ceilings.write_text(json.dumps(limits.to_dict()))
        rates = ", ".join(f"{n} {r / 1e12:.0f} TFLOP/s" for n, r in limits.matmul_flop_per_s.items())
        print(f"copies {limits.copy_bytes_per_s / 1e12:.2f} TB/s; multiplies {rates}", flush=True)
        _append(RUNS, {"hardware": hardware, "ceilings": limits.to_dict(), "unix_time": time.time()})
        planned = {"tests": tests, "kernels": lambda: kernels(ceilings), "runs": runs}
        parts = [part for name, make in planned.items() if name in wanted for part in make()]
        found = conduct(parts[:2] if options.quick else parts, started + options.minutes * 60)
    if "training" in wanted:
        found += conduct(training(), time.monotonic() + 3600)
    print("\nSummary")
    for name, ended in found:
        print(f"  {name:44} {ended}")
    print(f"Appended to {KERNELS.relative_to(ROOT)} and {RUNS.relative_to(ROOT)}.")
    good = all(ended == "ok" for _, ended in found)
    if options.json:
        print(json.dumps(dict(found)))
    return 0 if good else 1


def _append(path: Path, record: dict[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
