"""A linear layer over a quantized weight on a GPU: a kernel for a vector, for few rows, for many, and PyTorch for more.

While a model decodes, such a layer is bound by the bytes of its weight. So the kernels read each of them once, 16 in a
row, and convert codes as ``kernels.linear.packing`` says, lest that become the bound. What those for few rows multiply
are the codes themselves, which half precision holds exactly; scales are applied to sums in fp32. For many rows, the
dequantized weight is rounded to the type of ``x``: in registers (``kernels.linear.mixed``), or for whole prompts once,
to be multiplied by PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention import units
from kernels.linear.convert import looked_up, looked_up_plane, plane, single, table_of
from kernels.linear.launching import add, constants_of, divide, operands
from kernels.linear.mixed import many_rows
from kernels.linear.packing import PLANES, PackedWeight, lane
from kernels.linear.weight import Kind

VECTORS = 4  # rows of fp32 up to which each reads the weight for itself; tensor cores have no exact fp32
ROWS = 32  # of half precision, up to which all of them are one tile
MANY = 256  # up to which the weight is converted as it is read
SPAN = 8  # chunks of a weight's row that a program reads at a time
LEAST = 2  # spans for which another program is worth starting


@triton.jit
def _vector(
    X, W, SCALES, ZEROS, BIAS, OUT, x_row, N, K, chunks,
    PLANES: tl.constexpr, LANE: tl.constexpr, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, TABLE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``BN`` numbers of one row of the result, ``BC`` chunks of each row of the weight at a time, one to a thread.

    Integers come as pairs of words, and a code in the lower 24 bits of fp32 is the number code * 2**-149.
    """
    BITS: tl.constexpr = 16 // PLANES
    WORDS: tl.constexpr = LANE if PLANES == 1 else LANE // 2  # elements of W in a chunk
    UNIT: tl.constexpr = 1.0 if PLANES == 1 or TABLE else 2.0**-22
    if TABLE:
        table = table_of(UPCAST)
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    c = tl.arange(0, BC)
    row = tl.minimum(n, N - 1)  # behind the last row, the last is read again and not stored
    words = c[:, None, None] * WORDS + tl.arange(0, WORDS)[None, None, :]
    words = W + row.to(tl.int64)[None, :, None] * (chunks * WORDS) + words
    acc = tl.zeros([BC, BN, WORDS], tl.float32)
    for c0 in range(0, chunks, BC):
        there = c0 + c < chunks
        w = tl.load(words + c0 * WORDS, mask=there[:, None, None], other=0.0, eviction_policy="evict_first")
        part = tl.zeros([BC, BN, WORDS], tl.float32) if GROUP > 0 else acc
        total = tl.zeros([BC, 1, WORDS], tl.float32)
        for i in tl.static_range(PLANES):
            k = (c0 + c)[:, None, None] * (LANE * PLANES) + i * LANE + tl.arange(0, LANE)[None, None, :]
            x = tl.load(X + m * x_row + k, mask=k < K, other=0.0).to(tl.float32)
            if PLANES == 1:
                part += w.to(tl.float32) * x
            else:
                even, odd = tl.split(x.reshape(BC, 1, WORDS, 2))
                if TABLE:
                    part += looked_up(table, w >> (BITS * i), UPCAST) * even
                    part += looked_up(table, w >> (BITS * i + 16), UPCAST) * odd
                else:
                    part += single(w, i, BITS) * even
                    part += single(w >> 16, i, BITS) * odd
                total += even + odd
        if GROUP > 0:
            at = ((c0 + c) * (LANE * PLANES) // GROUP)[:, None] * N + row[None, :]
            if HAS_ZEROS:
                zero = tl.load(ZEROS + at, mask=there[:, None], other=0.0).to(tl.float32)
                part -= zero[:, :, None] * (total * UNIT)
            acc += part * tl.load(SCALES + at, mask=there[:, None], other=0.0).to(tl.float32)[:, :, None]
        else:
            if HAS_ZEROS:
                part -= tl.load(ZEROS + row).to(tl.float32)[None, :, None] * (total * UNIT)
            acc = part
    y = tl.sum(tl.sum(acc, 2), 0) / UNIT
    if GROUP <= 0:
        y *= tl.load(SCALES + row)
    if HAS_BIAS:
        y += tl.load(BIAS + row).to(tl.float32)
    tl.store(OUT + m * N + n, y.to(OUT.dtype.element_ty), mask=n < N)


@triton.jit
def _rows(
    X, W, SCALES, ZEROS, BIAS, OUT, x_row, M, N, K, chunks, each,
    PLANES: tl.constexpr, LANE: tl.constexpr, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, TABLE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of the result, summed over the ``each`` chunks of one split.

    A piece is ``PIECE`` words of each row of the weight: one group, but for groups of 32, of which it holds two, as a
    tensor core sums at least 16 words. Only there, the weights are scaled before they are multiplied.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    p = tl.arange(0, PIECE)
    of_k = p // LANE * (LANE * PLANES) + p % LANE  # the weights of plane 0 in a piece
    row = tl.minimum(n, N - 1)
    there = (m < M)[:, None]
    words = W + row.to(tl.int64)[None, :] * (chunks * LANE) + p[:, None]
    xs = X + m.to(tl.int64)[:, None] * x_row + of_k[None, :]
    dtype: tl.constexpr = X.dtype.element_ty
    UNIT: tl.constexpr = 1.0 if PLANES == 1 or TABLE else 512.0 if dtype == tl.float16 else 256.0
    PAIR: tl.constexpr = GROUP > 0 and GROUP < PIECE * PLANES
    first = (p < PIECE // 2)[:, None]
    if HAS_ZEROS and GROUP <= 0:
        zero = tl.load(ZEROS + row).to(tl.float32)[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    for c0 in range(split * each, tl.minimum(split * each + each, chunks), PIECE * PIECES // LANE):
        for piece in tl.static_range(PIECES):
            word = c0 * LANE + piece * PIECE
            k = word * PLANES
            seen = (word + p < chunks * LANE)[:, None]
            w = tl.load(words + word, mask=seen, other=0.0, eviction_policy="evict_first")
            if GROUP > 0:
                at = k // GROUP * N + row
                scale = tl.load(SCALES + at, mask=k < K, other=0.0).to(tl.float32)[None, :]
                if HAS_ZEROS:
                    zero = tl.load(ZEROS + at, mask=k < K, other=0.0).to(tl.float32)[None, :]
                if PAIR:
                    second = tl.load(SCALES + at + N, mask=k + GROUP < K, other=0.0).to(tl.float32)[None, :]
                    scale = tl.where(first, scale, second)
                    if HAS_ZEROS:
                        second = tl.load(ZEROS + at + N, mask=k + GROUP < K, other=0.0).to(tl.float32)[None, :]
                        zero = tl.where(first, zero, second)
            part = tl.zeros([BM, BN], tl.float32) if GROUP > 0 and not PAIR else acc
            for i in tl.static_range(PLANES):
                x = tl.load(xs + k + i * LANE, mask=there & (k + i * LANE + of_k < K)[None, :], other=0.0)
                if TABLE:
                    v = looked_up_plane(w, i, dtype, UPCAST)
                else:
                    v = plane(w, i, PLANES, dtype, UPCAST)
                if PAIR:
                    v *= UNIT  # before the scale, lest the product be too small for fp16
                if HAS_ZEROS:
                    v += (-zero if PAIR else zero / -UNIT).to(v.dtype)
                if PAIR:
                    v *= scale.to(v.dtype)
                part = tl.dot(x.to(v.dtype), v, part, input_precision="ieee")
            if GROUP > 0 and not PAIR:
                acc += part * scale
            else:
                acc = part
    if not PAIR:
        acc *= UNIT
    if GROUP <= 0:
        acc *= tl.load(SCALES + row)[None, :]
    if HAS_BIAS:
        acc += tl.load(BIAS + row).to(tl.float32)[None, :]
    at = (split * M + m).to(tl.int64)[:, None] * N + n[None, :]
    tl.store(OUT + at, acc.to(OUT.dtype.element_ty), mask=there & (n < N)[None, :])


@triton.jit
def _dequantize(
    W, SCALES, ZEROS, OUT, N, K, chunks,
    PLANES: tl.constexpr, LANE: tl.constexpr, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, TABLE: tl.constexpr,
    BC: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``BC`` chunks of one row of the weight, rounded once, to the type of ``OUT``."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    e = tl.arange(0, LANE)
    there = (c < chunks)[:, None]
    w = tl.load(W + (n * chunks + c[:, None]) * LANE + e[None, :], mask=there, other=0.0)
    at = n + (c * (LANE * PLANES) // GROUP)[:, None] * N if GROUP > 0 else n + (c * 0)[:, None]
    scale = tl.load(SCALES + at, mask=there, other=0.0).to(tl.float32)
    if TABLE:
        table = table_of(UPCAST)
    for i in tl.static_range(PLANES):
        if TABLE:
            v = looked_up(table, w.to(tl.int32) >> (16 // PLANES * i), UPCAST)
        else:
            v = plane(w, i, PLANES, tl.float16, UPCAST).to(tl.float32)
            if PLANES > 1:
                v *= 512.0
        if HAS_ZEROS:
            v -= tl.load(ZEROS + at, mask=there, other=0.0).to(tl.float32)
        k = c[:, None] * (LANE * PLANES) + i * LANE + e[None, :]
        tl.store(OUT + n * K + k, (v * scale).to(OUT.dtype.element_ty), mask=k < K)


def linear(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` for a weight that ``kernels.linear.packing.pack`` put in order.

    Which kernel runs follows from the shape and type of ``x`` alone, nothing waits for the GPU, and equal calls give
    equal bits; a row's bits may differ with the number of rows beside it.

    Args:
        x: [..., k], fp32, fp16 or bf16.
        packed: a weight [n, k] on the same device; fp8 needs compute capability 8.9.
        bias: [n], contiguous.

    Returns:
        [..., n] in the type of ``x``, summed in fp32.

    Raises:
        ValueError: where shapes, types or devices do not fit, or the GPU has no fp8.
    """
    n, k = packed.shape
    _check(x, packed, bias)
    rows = x.reshape(-1, k)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    m = rows.shape[0]
    if m == 0:
        y = x.new_empty(0, n)
    elif m == 1 or (x.dtype == torch.float32 and m <= VECTORS):
        y = vector(rows, packed, bias)
    elif x.dtype != torch.float32 and m <= ROWS:
        y = few_rows(rows, packed, bias)
    elif x.dtype != torch.float32 and m <= MANY:
        y = many_rows(rows, packed, bias)
    else:
        y = torch.nn.functional.linear(rows, dequantize(packed, x.dtype), bias)
    return y.view(*x.shape[:-1], n)


def vector(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """``linear`` for ``x`` [m, k], the weight read for each row anew."""
    m, (n, k), chunks = x.shape[0], packed.shape, packed.chunks
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    bn = next((bn for bn in (4, 2) if n >= bn * 4 * units(x.device)), 1)  # at least 4 programs for each unit
    warps = min(4, triton.next_power_of_2(triton.cdiv(chunks, 32)))
    _vector[(triton.cdiv(n, bn), m)](
        x, packed.data if packed.kind == Kind.FP8 else packed.data.view(torch.int32), *operands(packed, bias, out), out,
        x.stride(0), n, k, chunks, **constants_of(packed), HAS_BIAS=bias is not None, BN=bn, BC=32 * warps,
        UPCAST=not x.is_cuda, num_warps=warps,
    )  # fmt: skip
    return out


def few_rows(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, *, splits: int | None = None
) -> torch.Tensor:
    """``linear`` for ``x`` [m, k] in half precision; ``splits`` of k, None for as many as fill the GPU."""
    m, (n, k), chunks = x.shape[0], packed.shape, packed.chunks
    group = packed.group
    bm = 16 if m <= 16 else 32
    bn = 128 if n >= 2048 and group in (-1, 128) else 64  # what small groups hold would not fit into registers
    tiles, spans = triton.cdiv(m, bm) * triton.cdiv(n, bn), triton.cdiv(chunks, SPAN)
    each, splits = divide(spans, triton.cdiv(2 * units(x.device), tiles), LEAST, splits)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    parts = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    piece, times = pieces(packed.kind, group)
    _rows[(triton.cdiv(m, bm), triton.cdiv(n, bn), splits)](
        x, packed.data, *operands(packed, bias, out), parts, x.stride(0), m, n, k, chunks, each * SPAN,
        **constants_of(packed), HAS_BIAS=bias is not None and splits == 1,
        BM=bm, BN=bn, PIECE=piece, PIECES=times, UPCAST=not x.is_cuda, num_warps=4, num_stages=stages(bm, group),
    )  # fmt: skip
    return out if splits == 1 else add(parts, bias, out)


def pieces(kind: Kind, group: int) -> tuple[int, int]:
    """Words of a row that ``_rows`` multiplies at a time, and how many times a turn."""
    span = SPAN * lane(kind)
    piece = span if group == -1 else max(16, group // PLANES[kind])
    return piece, span // piece


def stages(bm: int, group: int) -> int:
    """Turns of ``_rows`` that are under way at once; so many that registers suffice, which for small groups are few."""
    return 4 if bm == 16 or group == 32 else 3


def dequantize(packed: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [n, k], each number rounded once."""
    n, k = packed.shape
    out = torch.empty(n, k, dtype=dtype, device=packed.data.device)
    scales, zeros, _ = operands(packed, None, out)
    _dequantize[(n, triton.cdiv(packed.chunks, 128))](
        packed.data, scales, zeros, out, n, k, packed.chunks, **constants_of(packed), BC=128, UPCAST=not out.is_cuda
    )
    return out


def _check(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> None:
    n, k = packed.shape
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be fp32, fp16 or bf16, not {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit a weight of shape {packed.shape}")
    if bias is not None and (bias.shape != (n,) or not bias.is_contiguous()):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} does not fit {n} outputs, or is not contiguous")
    if any(t.device != x.device for t in (packed.data, *(() if bias is None else (bias,)))):
        raise ValueError(f"x is on {x.device}, the weight on {packed.data.device}: all must be on one device")
    if packed.kind == Kind.FP8 and x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 9):
        raise ValueError("fp8 weights need a GPU of compute capability 8.9 or more")
