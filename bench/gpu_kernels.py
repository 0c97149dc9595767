"""Every kernel on this GPU: error against fp64, time, share of the hardware, beside PyTorch's own. Part of `gpu_check`.

    python -m bench.gpu_kernels decode [--out results.jsonl] [--budget 0.3]

One operation to a process: a kernel that reads where it must not leaves the GPU unusable for whoever shares its
process. Each line of the output is a result as `kernels measure --json` writes them, and the page Kernels shows it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.laboratory.cases import OPS, Case, make_case
from engine.laboratory.measure import here, measure
from engine.measure.roofline import Roofline
from spec.kernel_result import KernelResult, KernelStatus

LLAMA = {"heads": 32, "kv_heads": 8, "dim": 128}
QWEN = {"heads": 14, "kv_heads": 2, "dim": 64}
# The shape by which each operation is judged comes first: time may run out.
SHAPES: dict[str, list[dict[str, int]]] = {
    "decode": [
        *({"batch": b, "context": c} | LLAMA for b, c in ((32, 4096), (1, 32768), (1, 1024), (8, 4096), (128, 1024))),
        {"batch": 32, "context": 4096} | QWEN,
    ],
    "prefill": [
        *({"batch": b, "new": n} | LLAMA for b, n in ((4, 4096), (1, 8192), (8, 1024), (1, 512), (1, 16384))),
        {"batch": 4, "new": 4096} | QWEN,
    ],
    "shared": [
        *(
            {"batch": b, "prefix": p, "suffix": s} | LLAMA
            for b, p, s in ((64, 8192, 128), (8, 8192, 128), (256, 1024, 256), (64, 512, 128))
        ),
        {"batch": 64, "prefix": 8192, "suffix": 128} | QWEN,
    ],
    "norm": [{"tokens": n, "width": 4096} for n in (4096, 64, 1)],
    "rope": [{"tokens": n} | LLAMA for n in (4096, 64, 1)],
    "swiglu": [{"tokens": n, "width": 14336} for n in (4096, 64, 1)],
    # The matrices of Llama 3.1 8B: up, down, queries with keys and values, output, and the vocabulary's.
    "linear": [
        *({"rows": n, "inputs": 4096, "outputs": 14336} for n in (1, 16, 64, 128, 512)),
        *(
            {"rows": 1, "inputs": i, "outputs": o}
            for i, o in ((14336, 4096), (4096, 6144), (4096, 4096), (4096, 128256))
        ),
    ],
    "sampler": [{"rows": n, "vocabulary": 128256} for n in (64, 1, 256)],
}
FEATURES: dict[str, tuple[dict[str, int | str], ...]] = {
    "decode": ({"kv": "int8"}, {"kv": "fp8"}, {"window": 1024}, {"tree": 16}),
    "shared": ({"kv": "int8"}, {"kv": "fp8"}, {"softcap": 50}),
    "prefill": ({"window": 1024}, {"softcap": 50}),
    "linear": ({"weight": "int4"}, {"weight": "nf4"}, {"weight": "fp8"}, {"activations": "int8"}),
    "sampler": ({"top_k": 50}, {"top_p": 95}, {"top_k": 50, "top_p": 95, "min_p": 5}),
}
WITH_FEATURES = {"linear": 4}  # so many of the shapes, where it is not the first one alone
FACTOR = 2.0  # of PyTorch's own error that ours may have


def cases(op: str) -> Iterator[Case]:
    """What is measured of an operation, in bf16: its shapes, the first ones also with features."""
    shapes = SHAPES.get(op, [{}])
    for shape in shapes:
        yield make_case(op, "bf16", on_gpu=True, **shape)
    for shape in shapes[: WITH_FEATURES.get(op, 1)]:
        for features in FEATURES.get(op, ()):
            yield make_case(op, "bf16", features=features, on_gpu=True, **shape)


def is_wrong(result: KernelResult) -> bool:
    """Whether one of ours failed, or errs by more than ``FACTOR`` times PyTorch's own error in the same format."""
    if result.side not in {s.name for s in OPS[result.op].sides if s.ours}:
        return False
    if result.status is KernelStatus.FAILED:
        return True
    if result.error is None or result.torch_error is None or "kv=" in result.case_text:
        return False  # a cache of one byte is rounded before anything is computed
    return result.error > FACTOR * result.torch_error


def line(result: KernelResult) -> str:
    """One line for people."""
    what = f"{result.case_text:64.64} {result.side:18}"
    if result.status is not KernelStatus.MEASURED or result.median_s is None:
        return f"{what} {result.status}: {result.note}"
    shares = f"{_percent(result.share_of_copy)} of copy  {_percent(result.share_of_matmul)} of matmul"
    wrong = "  WRONG" if is_wrong(result) else ""
    return f"{what} {result.median_s * 1e6:10.1f} us  {shares}  error {result.error:.1e}{wrong}"


def _percent(share: float | None) -> str:
    return "  n/a" if share is None else f"{share:5.0%}"


def main() -> int:
    """Measure one operation; exit code 1 when one of our kernels is wrong or failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("op", choices=sorted(OPS))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, help="append each result to this file, as JSON")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of timing for each side")
    parser.add_argument("--ceilings", type=Path, help="the device's ceilings, as gpu_check measured them")
    options = parser.parse_args()
    limits = Roofline(**json.loads(options.ceilings.read_text())) if options.ceilings else None
    wrong = 0
    how = {"ceilings": limits, "budget_s": options.budget, "with_compiled": False}
    for result in measure(list(cases(options.op)), here(options.device), **how):
        print(line(result), flush=True)
        wrong += is_wrong(result)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(result.to_dict(), allow_nan=False) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
