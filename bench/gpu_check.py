"""`make gpu-check`: is the engine right on this GPU, and how fast is it? One command, no network, under ten minutes.

    python -m bench.gpu_check [--skip-training] [--minutes 8]

1. Correctness: the GPU tests (`tests/test_gpu_*.py`) hold CUDA against the CPU, those of `tests/kernels` each Triton
   kernel against fp64. No figure is taken on a red test.
2. Figures: the lab models and the `shape:` models that fit, both number formats in one run, appended with hardware and
   commit to `bench/results/gpu_check.jsonl`.
3. The larger lab model, if it is missing: trained here, because it takes hours on a CPU and minutes on a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench.record import arguments
from engine.catalog import list_models
from engine.measure.hardware import fingerprint
from engine.models import ModelHost
from engine.run import execute
from spec.choices import Dtype
from spec.errors import IsoquantError
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority, Strategy

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "gpu_check.jsonl"
COLUMNS = ("accuracy", "throughput_tok_s", "itl_p50_s", "ttft_p50_s", "peak_memory_bytes", "energy_j", "j_per_token")
SHAPES = ("shape:qwen2.5-0.5b", "shape:llama-3.2-1b", "shape:qwen2.5-7b", "shape:llama-3.1-8b")


def plan() -> list[RunSpec]:
    """What is measured: every lab model that is here at fp32 and bf16, every shape at bf16 and batch 1 and 32."""
    lab = [m.name for m in list_models() if m.kind == "lab" and m.available]
    strategies: tuple[Strategy, ...] = (Greedy(), Majority(n=8))
    specs = [
        RunSpec(model, Precision(dtype), Runtime(device="cuda", batch_size=256), strategy, TaskSpec(limit=400))
        for model in lab
        for dtype in (Dtype.FP32, Dtype.BF16)
        for strategy in strategies
    ]
    return specs + [
        RunSpec(
            model,
            Precision(Dtype.BF16),
            Runtime(device="cuda", batch_size=batch),
            task=TaskSpec(limit=batch, max_new_tokens=64),
        )
        for model in SHAPES
        for batch in (1, 32)
    ]


def check_correctness() -> bool:
    """Run the GPU tests; False when one failed or none ran."""
    tests = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("test_gpu_*.py"))
    tests.append("tests/kernels")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *tests], cwd=ROOT)
    return done.returncode == 0


def measure(specs: list[RunSpec], deadline_s: float) -> list[dict[str, object]]:
    """Run each spec after a short one that pays for what is compiled at first use; print its row as it comes."""
    host, rows = ModelHost(), []
    print(f"{'run':78s}" + "".join(f"{c.removesuffix('_p50_s'):>20s}" for c in COLUMNS))
    for spec in specs:
        if time.monotonic() > deadline_s:
            print(f"Out of time: {spec} and what follows was not measured.")
            break
        try:
            execute(replace(spec, task=replace(spec.task, limit=min(spec.task.limit or 8, 8))), host=host)
            result = execute(spec, host=host)
        except IsoquantError as error:
            print(f"{spec!s:78s} {error}")
            continue
        cells = [result.measures[c] for c in COLUMNS]
        print(f"{spec!s:78s}" + "".join(f"{'n/a' if v is None else format(v, '.4g'):>20s}" for v in cells), flush=True)
        rows.append(
            {
                "spec": spec.to_dict(),
                "text": str(spec),
                "energy_method": result.energy_method,
                "energy_valid": result.energy_valid,
                "energy_reason": result.energy_reason,
                "attention": result.environment.get("attention"),
                "measures": {c: result.measures[c] for c in COLUMNS},
            }
        )
    return rows


def train_larger_model() -> int:
    """Train `lab-l` where it is missing; returns the trainer's exit code."""
    if any(m.name == "lab-l" and m.available for m in list_models()):
        return 0
    print("Training lab-l, which is missing ...", flush=True)
    return subprocess.run(
        [sys.executable, "-m", "lab.train", "--model", "lab-l", "--device", "cuda"], cwd=ROOT
    ).returncode


def main() -> int:
    """Correctness, figures, larger model; the exit code is 0 only when all went well."""
    parser = arguments(__doc__)
    parser.add_argument("--skip-training", action="store_true", help="do not train the larger lab model")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop measuring after so many minutes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device here: run this on a machine with an NVIDIA GPU.")
        if options.json:
            print("{}")
        return 1
    if options.quick:
        options.minutes, options.skip_training = 0.5, True
    deadline_s = time.monotonic() + options.minutes * 60
    hardware = fingerprint()
    print(f"{hardware['hardware_name']}, driver {hardware['gpu_driver']}, {hardware['packages']}")
    if not options.quick and not check_correctness():
        print("The GPU tests failed, so nothing is timed.")
        return 1
    rows = measure(plan(), deadline_s)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({"hardware": hardware, "unix_time": time.time(), "rows": rows}) + "\n")
    print(f"Appended to {RESULTS.relative_to(ROOT)}.")
    return 0 if options.skip_training else train_larger_model()


if __name__ == "__main__":
    sys.exit(main())
