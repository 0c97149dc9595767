"""Rotary positions, norms of queries and keys (Qwen3), and the write to the paged cache, in one launch.

transformers' modules need some twenty operations for this in each layer. The cache may be int8 or fp8: then each key
and each value has a scale of its own, its largest number over the largest that the type holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@triton.jit
def _heads(X, NORM, COS, SIN, at, d, eps, D: tl.constexpr, TURNING: tl.constexpr, HAS_NORM: tl.constexpr):
    """One head of one token: normed where it has a norm, and rotated."""
    x = tl.load(X + at + d, mask=d < D, other=0.0)
    kind = x.dtype
    half: tl.constexpr = TURNING // 2
    # The other member of each number's pair, and the sign it comes with.
    pair = tl.where(d < half, d + half, tl.where(d < TURNING, d - half, d))
    other = tl.load(X + at + pair, mask=d < D, other=0.0)
    x = x.to(tl.float32)
    other = other.to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
        weight = tl.load(NORM + d, mask=d < D, other=0.0).to(tl.float32)
        weight_other = tl.load(NORM + pair, mask=d < D, other=0.0).to(tl.float32)
        x = ((x * scale).to(kind).to(tl.float32) * weight).to(kind).to(tl.float32)
        other = ((other * scale).to(kind).to(tl.float32) * weight_other).to(kind).to(tl.float32)
    turns = d < TURNING
    cos = tl.load(COS + d, mask=turns, other=1.0).to(tl.float32)
    sin = tl.load(SIN + d, mask=turns, other=0.0).to(tl.float32)
    return x * cos + tl.where(d < half, -other, other) * sin


@triton.jit
def _put(POINTER, SCALES, x, at, token, d, D: tl.constexpr, LARGEST: tl.constexpr):
    """Write one head of one token to the cache, with its scale where the cache is quantized."""
    if LARGEST > 0:
        scale = tl.maximum(tl.max(tl.abs(x), 0) / LARGEST, 1e-8)
        x = x / scale
        if LARGEST < 128:
            x = tl.floor(x + 0.5)
        tl.store(SCALES + token, scale)
    tl.store(POINTER + at + d, x.to(POINTER.dtype.element_ty), mask=d < D)


@triton.jit
def _rotate_and_store(
    Q, K, V, COS, SIN, BLOCKS, PLACES, Q_NORM, K_NORM, OUT, KEYS, VALUES, KEY_SCALES, VALUE_SCALES,
    q_row, k_row, v_row, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PAD: tl.constexpr,
    TURNING: tl.constexpr, PAGE: tl.constexpr, HAS_NORM: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One head of one token: a query's is rotated, a key's rotated and stored, a value's stored."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, PAD)
    if head < HEADS:
        x = _heads(
            Q, Q_NORM, COS + row * TURNING, SIN + row * TURNING, row * q_row + head * D, d, eps, D, TURNING, HAS_NORM
        )
        tl.store(OUT + (row * HEADS + head) * D + d, x.to(OUT.dtype.element_ty), mask=d < D)
    else:
        kv = head - HEADS
        token = (tl.load(BLOCKS + row).to(tl.int64) * KV_HEADS + kv % KV_HEADS) * PAGE + tl.load(PLACES + row)
        if kv < KV_HEADS:
            x = _heads(
                K, K_NORM, COS + row * TURNING, SIN + row * TURNING, row * k_row + kv * D, d, eps, D, TURNING, HAS_NORM
            )
            _put(KEYS, KEY_SCALES, x.to(OUT.dtype.element_ty).to(tl.float32), token * D, token, d, D, LARGEST)
        else:
            v = tl.load(V + row * v_row + (kv - KV_HEADS) * DV + d, mask=d < DV, other=0.0).to(tl.float32)
            _put(VALUES, VALUE_SCALES, v, token * DV, token, d, DV, LARGEST)


def rotate_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate the queries and keys of some tokens, and write keys and values to their places in the cache.

    Args:
        q, k, v: [tokens, heads, dim], [tokens, kv heads, dim], [tokens, kv heads, value dim]; heads contiguous.
        cos, sin: [tokens, turning], contiguous; dimensions behind the first ``turning`` do not rotate.
        blocks, places: int32 or int64 [tokens], each token's block and its place there.
        keys, values: [blocks, kv heads, block, dim], contiguous, written in place.
        q_norm, k_norm: [dim], weights of the norm before the rotation, both or none.
        key_scales, value_scales: fp32 [blocks, kv heads, block] of an int8 or fp8 cache, written in place.

    Returns:
        The rotated queries [tokens, heads, dim].
    """
    tokens, heads, dim = q.shape
    kv_heads, dv = k.shape[1], v.shape[2]
    out = torch.empty(tokens, heads, dim, dtype=q.dtype, device=q.device)
    _rotate_and_store[(tokens, heads + 2 * kv_heads)](
        q, k, v, cos, sin, blocks, places,
        q if q_norm is None else q_norm, k if k_norm is None else k_norm, out, keys, values,
        cos if key_scales is None else key_scales, cos if value_scales is None else value_scales,
        q.stride(0), k.stride(0), v.stride(0), eps,
        HEADS=heads, KV_HEADS=kv_heads, D=dim, DV=dv, PAD=triton.next_power_of_2(max(dim, dv)), TURNING=cos.shape[-1],
        PAGE=keys.shape[2], HAS_NORM=q_norm is not None, LARGEST=LARGEST.get(keys.dtype, 0.0),
        num_warps=1,
    )  # fmt: skip
    return out
