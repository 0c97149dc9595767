"""A linear layer over int8 weights whose inputs become int8 as well, so that tensor cores multiply bytes.

Two kernels: one rounds the rows of ``x`` to codes, in steps of its own for each row (or in one step known beforehand);
one multiplies codes exactly, in int32, and applies both scales to the sums. Its tiles follow the number of rows; where
these are few, several programs share a row of the weight, and a third kernel sums their parts. Sums of integers have no
rounding, so neither the tiles nor the parts change a bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention import units
from kernels.linear.launching import Tile, divide
from kernels.linear.packing import PackedBytes

FEW = 64  # rows up to which two programs share a multiprocessor
MANY = 256  # rows up to which programs share a row of the weight
LONGEST = 2**17  # of a row: 127 * 128 times so much is the most that int32 holds
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def tile(m: int) -> Tile:
    """For so many rows. A tensor core takes 16 of them, Hopper's widest products 64 for each four warps."""
    if m <= 16:
        return Tile(16, 64, 256, 4, 4)
    if m <= FEW:
        return Tile(64, 64, 128, 4, 4)
    return Tile(128, 128, 128, 8, 3)


@triton.jit
def _quantize(
    X, STEP, CODES, STEPS, x_row, K, FILLED,
    STATIC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One row of ``x`` to ``FILLED`` bytes, zeros behind its end.

    Magnitudes are compared as the integers that their bits are: there infinities and what is no number are the largest,
    so that they come out again in the steps. Adding 1.5 * 2**23 rounds to the nearest even and leaves the code in the
    lowest bits.
    """
    m = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BK)
    if STATIC:
        step = tl.load(STEP).to(tl.float32)
    else:
        most = tl.zeros([BK], tl.int32)
        for k0 in range(0, K, BK):
            x = tl.load(X + m * x_row + k0 + k, mask=k0 + k < K, other=0.0).to(tl.float32)
            most = tl.maximum(most, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        step = tl.div_rn(tl.max(most, 0).to(tl.float32, bitcast=True), 127.0)
        step = tl.where(step < _TINY, 1.0, step)
    tl.store(STEPS + m, step)
    for k0 in range(0, FILLED, BK):
        x = tl.load(X + m * x_row + k0 + k, mask=k0 + k < K, other=0.0).to(tl.float32)
        code = tl.minimum(tl.maximum(tl.div_rn(x, step), -127.0), 127.0) + 12582912.0
        code = (code.to(tl.int32, bitcast=True) - 0x4B400000).to(tl.int8)
        tl.store(CODES + m * FILLED + k0 + k, code, mask=k0 + k < FILLED)


@triton.jit
def _multiply(
    X, STEPS, W, SCALES, BIAS, OUT, M, N, K, each,
    HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of the result, or, unless ``WHOLE``, its int32 sums over the ``each`` bytes of one split."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    k = tl.arange(0, BK)
    column = tl.minimum(n, N - 1)  # behind the last row of the weight, the last is read again and not stored
    there = (m < M)[:, None]
    xs = X + m.to(tl.int64)[:, None] * K + k[None, :]
    ws = W + column.to(tl.int64)[None, :] * K + k[:, None]
    acc = tl.zeros([BM, BN], tl.int32)
    for k0 in range(split * each, tl.minimum(split * each + each, K), BK):
        x = tl.load(xs + k0, mask=there & (k0 + k < K)[None, :], other=0)
        w = tl.load(ws + k0, mask=(k0 + k < K)[:, None], other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    at = (split * M + m).to(tl.int64)[:, None] * N + n[None, :]
    inside = there & (n < N)[None, :]
    if WHOLE:
        y = acc.to(tl.float32) * tl.load(SCALES + column)[None, :] * tl.load(STEPS + m, mask=m < M, other=0.0)[:, None]
        if HAS_BIAS:
            y += tl.load(BIAS + column).to(tl.float32)[None, :]
        tl.store(OUT + at, y.to(OUT.dtype.element_ty), mask=inside)
    else:
        tl.store(OUT + at, acc, mask=inside)


@triton.jit
def _sum(PARTS, STEPS, SCALES, BIAS, OUT, M, N, splits, HAS_BIAS: tl.constexpr, BN: tl.constexpr):
    """The splits of one row, scaled."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros([BN], tl.int32)
    for split in range(splits):
        acc += tl.load(PARTS + (split * M + m) * N + n, mask=n < N, other=0)
    y = acc.to(tl.float32) * tl.load(SCALES + n, mask=n < N, other=0.0) * tl.load(STEPS + m)
    if HAS_BIAS:
        y += tl.load(BIAS + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(OUT + m * N + n, y.to(OUT.dtype.element_ty), mask=n < N)


def linear(
    x: torch.Tensor, packed: PackedBytes, bias: torch.Tensor | None = None, activation_scale: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias`` with ``x`` rounded to int8 first. Nothing waits for the GPU; equal rows give equal bits.

    Args:
        x: [..., k], fp32, fp16 or bf16. A row that is not finite gives a row that is not.
        packed: a weight [n, k] that ``kernels.linear.packing.pack_bytes`` put in order, on the same device.
        bias: [n], contiguous.
        activation_scale: one number on the same device: the step of all rows, beyond 127 of which they are clamped.
            None for a step of each row, its largest magnitude / 127.

    Returns:
        [..., n] in the type of ``x``.

    Raises:
        ValueError: where shapes, types or devices do not fit.

    >>> linear(x, pack_bytes(quantize(weight, Kind.INT8)))  # doctest: +SKIP
    """
    n, k = packed.shape
    _check(x, packed, bias, activation_scale)
    rows = x.reshape(-1, k)
    if not rows.numel():
        return x.new_empty(*x.shape[:-1], n)
    codes, steps = quantize_rows(rows if rows.stride(1) == 1 else rows.contiguous(), activation_scale)
    return multiply(codes, steps, packed, bias, x.dtype).view(*x.shape[:-1], n)


def quantize_rows(x: torch.Tensor, step: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [m, k filled up with zeros to a multiple of 16] of ``x`` [m, k], and the rows' steps, fp32 [m]."""
    (m, k), filled = x.shape, x.shape[1] + -x.shape[1] % 16
    codes = torch.empty(m, filled, dtype=torch.int8, device=x.device)
    steps = torch.empty(m, dtype=torch.float32, device=x.device)
    bk = min(2048, triton.next_power_of_2(filled))
    _quantize[(m,)](
        x, x if step is None else step, codes, steps, x.stride(0), k, filled, STATIC=step is not None, BK=bk,
        num_warps=4,
    )  # fmt: skip
    return codes, steps


def multiply(
    codes: torch.Tensor, steps: torch.Tensor, packed: PackedBytes, bias: torch.Tensor | None, dtype: torch.dtype,
    *, splits: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Codes of ``quantize_rows`` times the weight; ``splits`` of k, None for as many as fill the GPU."""
    (m, k), n = codes.shape, packed.shape[0]
    how = tile(m)
    each, splits = split_for(m, n, k, units(codes.device), splits)
    out = torch.empty(m, n, dtype=dtype, device=codes.device)
    parts = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.int32, device=codes.device)
    some = out if bias is None else bias
    _multiply[(triton.cdiv(m, how.bm), triton.cdiv(n, how.bn), splits)](
        codes, steps, packed.data, packed.scales, some, parts, m, n, k, each * how.bk, HAS_BIAS=bias is not None,
        WHOLE=splits == 1, BM=how.bm, BN=how.bn, BK=how.bk, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    if splits > 1:
        _sum[(triton.cdiv(n, 256), m)](
            parts, steps, packed.scales, some, out, m, n, splits, HAS_BIAS=bias is not None, BN=256, num_warps=2
        )
    return out


def split_for(m: int, n: int, k: int, units: int, splits: int | None = None) -> tuple[int, int]:
    """Spans of each split of k, and how many splits fill ``units`` multiprocessors, which whole prompts do unsplit."""
    how = tile(m)
    tiles, spans = -(-m // how.bm) * -(-n // how.bn), -(-k // how.bk)
    wanted = 1 if m > MANY else units // tiles if m > FEW else -(-2 * units // tiles)
    return divide(spans, wanted, 2, splits)


def _check(x: torch.Tensor, packed: PackedBytes, bias: torch.Tensor | None, step: torch.Tensor | None) -> None:
    n, k = packed.shape
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be fp32, fp16 or bf16, not {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit a weight of shape {packed.shape}")
    if k > LONGEST:
        raise ValueError(f"sums over {k} columns may not fit into int32; {LONGEST} do")
    if bias is not None and (bias.shape != (n,) or not bias.is_contiguous()):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} does not fit {n} outputs, or is not contiguous")
    if step is not None and step.numel() != 1:
        raise ValueError(f"one step holds for all rows, not {step.numel()}")
    if any(t is not None and t.device != x.device for t in (packed.data, bias, step)):
        raise ValueError(f"x is on {x.device}: the weight, bias and step must be there too")
