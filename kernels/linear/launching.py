"""What the kernels of quantized linear layers have in common where they are launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.linear.packing import PLANES, PackedWeight, lane
from kernels.linear.weight import Kind


@dataclass(frozen=True, slots=True)
class Tile:
    """How many rows, outputs and numbers of k a program takes at a time, and what it is compiled with.

    ``registers``: the most that a thread may have; None to leave it to the assembler.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    registers: int | None = None


def divide(spans: int, wanted: int, least: int, splits: int | None = None) -> tuple[int, int]:
    """Spans of each split of k, and how many splits: ``splits``, or as many as wanted with ``least`` spans or more.

    >>> divide(32, wanted=4, least=4)
    (8, 4)
    """
    each = -(-spans // (splits or max(1, min(wanted, spans // least))))
    return each, -(-spans // each)


@triton.jit
def _sum(PARTS, BIAS, OUT, M, N, splits, HAS_BIAS: tl.constexpr, BN: tl.constexpr):
    """The splits of one row, always in the same order, so that equal calls give equal results."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    y = tl.zeros([BN], tl.float32)
    for split in range(splits):
        y += tl.load(PARTS + (split * M + m) * N + n, mask=n < N, other=0.0)
    if HAS_BIAS:
        y += tl.load(BIAS + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(OUT + m * N + n, y.to(OUT.dtype.element_ty), mask=n < N)


def add(parts: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """``out`` [m, n], filled with the sum of ``parts``, fp32 [splits, m, n], and ``bias`` [n]."""
    splits, m, n = parts.shape
    _sum[(triton.cdiv(n, 256), m)](
        parts, out if bias is None else bias, out, m, n, splits, HAS_BIAS=bias is not None, BN=256, num_warps=2
    )
    return out


def constants(kind: Kind, group: int, has_zeros: bool) -> dict[str, int | bool]:
    """Those of all kernels that follow from the weight."""
    return {
        "PLANES": PLANES[kind], "LANE": lane(kind), "GROUP": group, "HAS_ZEROS": has_zeros, "TABLE": kind == Kind.NF4
    }  # fmt: skip


def constants_of(packed: PackedWeight) -> dict[str, int | bool]:
    """The same of a weight."""
    return constants(packed.kind, packed.group, packed.zeros is not None)


def operands(packed: PackedWeight, bias: torch.Tensor | None, nothing: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Scales, zero points and bias, ``nothing`` in place of what is not there."""
    return packed.scales, nothing if packed.zeros is None else packed.zeros, nothing if bias is None else bias
