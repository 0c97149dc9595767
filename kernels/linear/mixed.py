"""Many rows of half precision times a quantized weight, on tensor cores.

A mixed-input product: codes come to shared memory as they are stored, each thread converts those that its part of the
tensor cores wants, in registers, and they go on from there. So the weight is the left matrix, the only one that tensor
cores of Hopper take from registers, and what is computed is the product turned over. The numbers are those of the
dequantized weight, rounded to the type of ``x`` (in fp16 the scale of a group too: groups with no number above 4e-4
lose digits there), but it is never written down: at 128 rows a weight of half a byte
costs half a byte of memory traffic, where writing it in half precision and reading it again costs four and a half.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention import is_hopper, units
from kernels.linear.convert import looked_up_plane, plane
from kernels.linear.launching import Tile, add, constants_of, divide, operands
from kernels.linear.packing import PackedWeight

SPAN = 128  # weights of a row that are multiplied at a time
LEAST = 4  # spans for which another program is worth starting


@triton.jit
def _mixed(
    X, W, SCALES, ZEROS, BIAS, OUT, x_row, M, N, K, chunks, each,
    PLANES: tl.constexpr, LANE: tl.constexpr, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, TABLE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPAN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``BN`` columns of ``BM`` rows of the result, summed over the ``each`` spans of one split."""
    PIECE: tl.constexpr = SPAN // PLANES  # words of a span
    dtype: tl.constexpr = X.dtype.element_ty
    UNIT: tl.constexpr = 1.0 if PLANES == 1 or TABLE else 512.0 if dtype == tl.float16 else 256.0
    m = tl.program_id(0) * BM + tl.arange(0, BM)  # programs that read the same weight run side by side
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    p = tl.arange(0, PIECE)
    of_k = p // LANE * (LANE * PLANES) + p % LANE  # the weights of plane 0 in a span
    row = tl.minimum(n, N - 1)  # behind the last row, the last is read again and not stored
    there = (m < M)[None, :]
    words = W + row.to(tl.int64)[:, None] * (chunks * LANE) + p[None, :]
    xs = X + m.to(tl.int64)[None, :] * x_row + of_k[:, None]
    if HAS_ZEROS and GROUP <= 0:
        zero = tl.load(ZEROS + row).to(tl.float32)[:, None]
    acc = tl.zeros([BN, BM], tl.float32)
    for k in range(split * each * SPAN, tl.minimum((split + 1) * each * SPAN, K), SPAN):
        w = tl.load(words + k // PLANES, mask=(k // PLANES + p < chunks * LANE)[None, :], other=0.0)
        if GROUP > 0:
            scale = tl.load(SCALES + k // GROUP * N + row).to(tl.float32)[:, None]
            if HAS_ZEROS:
                zero = tl.load(ZEROS + k // GROUP * N + row).to(tl.float32)[:, None]
            for j in tl.static_range(1, SPAN // GROUP):
                at, inside = (k // GROUP + j) * N + row, k + j * GROUP < K
                later = (p >= j * GROUP // PLANES)[None, :]
                s = tl.load(SCALES + at, mask=inside, other=0.0).to(tl.float32)[:, None]
                scale = tl.where(later, s, scale)
                if HAS_ZEROS:
                    z = tl.load(ZEROS + at, mask=inside, other=0.0).to(tl.float32)[:, None]
                    zero = tl.where(later, z, zero)
        for i in tl.static_range(PLANES):
            x = tl.load(xs + k + i * LANE, mask=there & (k + i * LANE + of_k < K)[:, None], other=0.0)
            if TABLE:
                v = looked_up_plane(w, i, dtype, UPCAST)
            else:
                v = plane(w, i, PLANES, dtype, UPCAST)
            if GROUP > 0:
                v *= UNIT  # before the scale, lest the product be too small for fp16
            if HAS_ZEROS:
                v += (-zero if GROUP > 0 else zero / -UNIT).to(v.dtype)
            if GROUP > 0:
                v *= scale.to(v.dtype)
            acc = tl.dot(v, x.to(v.dtype), acc, input_precision="ieee")
    if GROUP <= 0:
        acc *= (UNIT * tl.load(SCALES + row))[:, None]
    if HAS_BIAS:
        acc += tl.load(BIAS + row).to(tl.float32)[:, None]
    at = (split * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(OUT + at, acc.to(OUT.dtype.element_ty), mask=there & (n < N)[:, None])


def many_rows(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, *, splits: int | None = None
) -> torch.Tensor:
    """``kernels.linear.triton.linear`` for ``x`` [m, k] in half precision; ``splits`` of k, None to fill the GPU."""
    m, (n, k) = x.shape[0], packed.shape
    how = tile(m, is_hopper(x.device))
    each, splits = split_for(m, n, k, how, units(x.device), splits)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    parts = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    _mixed[(triton.cdiv(m, how.bm), triton.cdiv(n, how.bn), splits)](
        x, packed.data, *operands(packed, bias, out), parts, x.stride(0), m, n, k, packed.chunks, each,
        **constants_of(packed), HAS_BIAS=bias is not None and splits == 1, BM=how.bm, BN=how.bn, SPAN=how.bk,
        UPCAST=not x.is_cuda, num_warps=how.warps, num_stages=how.stages, maxnreg=how.registers,
    )  # fmt: skip
    return out if splits == 1 else add(parts, bias, out)


def split_for(m: int, n: int, k: int, how: Tile, units: int, splits: int | None = None) -> tuple[int, int]:
    """Spans of each split of k, and how many splits fill ``units`` multiprocessors once: their parts are fp32.

    >>> split_for(128, 4096, 4096, tile(128, hopper=True), units=132)
    (8, 4)
    """
    tiles, spans = -(-m // how.bm) * -(-n // how.bn), -(-k // how.bk)
    return divide(spans, units // tiles, LEAST, splits)


def tile(m: int, hopper: bool) -> Tile:
    """How the kernel is launched for ``m`` rows: what registers and shared memory hold.

    Before Hopper the assembler must be told that two programs to a multiprocessor are enough: left to itself, it spills
    registers to fit three.
    """
    return Tile(64 if m <= 64 else 128, 128, SPAN, 8, 4) if hopper else Tile(64, 128, SPAN, 8, 3, 128)
