"""A device's own ceilings: how fast it copies and how fast it multiplies, measured rather than read from a leaflet."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from engine.devices import is_out_of_memory
from engine.measure.time import now, synchronise

REPEATS = 7
BUDGET_S = 3.0  # processors without half-precision arithmetic emulate it a hundred times slower
CPU_COPY_BYTES, GPU_COPY_BYTES = 2**27, 2**30
CPU_MATMUL_SIDE, GPU_MATMUL_SIDE = 1024, 8192


@dataclass(frozen=True, slots=True)
class Roofline:
    """Medians of up to ``repeats`` timings on one device.

    ``copy_bytes_per_s`` counts bytes read and written; ``matmul_flop_per_s`` maps a number format to the rate of a
    square matrix product of ``matmul_side``, 2 side^3 operations. A format the device cannot multiply is absent.
    """

    device: str
    copy_bytes: int
    matmul_side: int
    repeats: int
    copy_bytes_per_s: float
    matmul_flop_per_s: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def calibrate(
    device: str, copy_bytes: int | None = None, matmul_side: int | None = None, repeats: int = REPEATS
) -> Roofline:
    """Measure the ceilings of ``cpu`` or ``cuda:N``; some seconds on a CPU. Sizes default to well beyond the caches."""
    on_gpu = device.startswith("cuda")
    size = copy_bytes or (GPU_COPY_BYTES if on_gpu else CPU_COPY_BYTES)
    side = matmul_side or (GPU_MATMUL_SIDE if on_gpu else CPU_MATMUL_SIDE)
    rates = {name: rate for name in ("fp32", "bf16", "fp16") if (rate := _matmul_rate(device, name, side, repeats))}
    return Roofline(device, size, side, repeats, _copy_rate(device, size, repeats), rates)


def _copy_rate(device: str, size: int, repeats: int) -> float:
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_s(lambda: target.copy_(source), device, repeats)


def _matmul_rate(device: str, dtype: str, side: int, repeats: int) -> float | None:
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    try:
        # Random numbers: a processor that multiplies only ones draws less power and runs faster than any model.
        a = torch.randn(side, side, device=device).to(kind)
        return 2 * side**3 / _median_s(lambda: a @ a, device, repeats)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None  # "not implemented for 'Half'" on processors without it


def _median_s(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median of up to ``repeats`` timings after an untimed one; fewer where that would take beyond ``BUDGET_S``."""
    work()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < BUDGET_S:
        synchronise(device)
        start = now()
        work()
        synchronise(device)
        seconds.append(now() - start)
    return statistics.median(seconds)
