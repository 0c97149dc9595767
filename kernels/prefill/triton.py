"""Flash attention (Dao 2023, arXiv 2307.08691) of ragged pieces of sequences over a paged KV cache.

The rows of a tile are tokens times the query heads of one key/value head, so a key is read once for all of them. A tile
goes over the keys that all its rows see without asking, and over the few that only some of them see with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from kernels.attention import LOG2E, gather, is_hopper, padded, score, stages_for, weigh


@triton.jit
def _tile(
    top, total, acc, q, K, V, KEY_SCALES, VALUE_SCALES, TABLES, SLOPES,
    low, high, length, mine, head, real, kv, table, d, dv, scale, softcap,
    KV_HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr,
    QUANTIZED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The rows of a tile over keys ``low`` .. ``high`` - 1; ``MASKED`` where some rows do not see all of them."""
    c = tl.arange(0, BN)
    for n0 in range(low, high, BN):
        t = n0 + c
        there = t < length
        page = tl.load(TABLES + table + t // PAGE, mask=there, other=0).to(tl.int64)
        token = page * (KV_HEADS * PAGE) + kv * PAGE + t % PAGE
        s = score(q, K, KEY_SCALES, token, there, d, scale, softcap, D, SOFTCAP, QUANTIZED, UPCAST, WHOLE=not MASKED)
        if HAS_SLOPES:
            slope = tl.load(SLOPES + head, mask=real, other=0.0) * 1.4426950408889634
            s += slope[:, None] * (t[None, :] - mine[:, None])
        if MASKED:
            seen = (t[None, :] <= mine[:, None]) & there[None, :]
            if WINDOW > 0:
                seen = seen & (t[None, :] > mine[:, None] - WINDOW)
            s = tl.where(seen, s, -float("inf"))
        p, shrink, top, total = weigh(s, top, total)
        acc = gather(acc, shrink, p, q, V, VALUE_SCALES, token, there, dv, DV, QUANTIZED, UPCAST, WHOLE=not MASKED)
    return top, total, acc


@triton.jit(do_not_specialize=["table_row"])
def _prefill(
    Q, K, V, KEY_SCALES, VALUE_SCALES, TABLES, LENGTHS, STARTS, TILE_SEQUENCE, TILE_FIRST, SLOPES, SINKS, OUT, LSE,
    q_row, q_head, table_row, scale, softcap,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, DV: tl.constexpr,
    DV_PAD: tl.constexpr, PAGE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SLOPES: tl.constexpr, QUANTIZED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """``BM`` rows: some tokens of one sequence, with the query heads of one key/value head."""
    tile = tl.program_id(0)
    kv = tl.program_id(1)
    sequence = tl.load(TILE_SEQUENCE + tile)
    first = tl.load(TILE_FIRST + tile)  # of the sequence's new tokens
    start = tl.load(STARTS + sequence)
    new = tl.load(STARTS + sequence + 1) - start
    length = tl.load(LENGTHS + sequence)
    r = tl.arange(0, BM)
    at = first + r // GROUP
    head = kv * GROUP + r % GROUP
    real = (at < new) & (r // GROUP < BM // GROUP)
    mine = length - new + at
    d = tl.arange(0, D_PAD)
    dv = tl.arange(0, DV_PAD)
    row = (start + at).to(tl.int64)
    q = tl.load(
        Q + row[:, None] * q_row + head[:, None] * q_head + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0
    )
    if UPCAST:
        q = q.to(tl.float32)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DV_PAD], tl.float32)
    table = sequence.to(tl.int64) * table_row

    earliest = length - new + first  # position of the tile's first token
    latest = tl.minimum(length, earliest + BM // GROUP)  # behind its last
    low = 0
    if WINDOW > 0:
        low = tl.maximum(0, earliest - WINDOW + 1) // BN * BN
        whole = low  # every block may cross some row's edge
    else:
        whole = (earliest + 1) // BN * BN
    top, total, acc = _tile(
        top, total, acc, q, K, V, KEY_SCALES, VALUE_SCALES, TABLES, SLOPES,
        low, whole, length, mine, head, real, kv, table, d, dv, scale, softcap,
        KV_HEADS, D, DV, PAGE, BN, False, WINDOW, SOFTCAP, HAS_SLOPES, QUANTIZED, UPCAST,
    )  # fmt: skip
    top, total, acc = _tile(
        top, total, acc, q, K, V, KEY_SCALES, VALUE_SCALES, TABLES, SLOPES,
        whole, latest, length, mine, head, real, kv, table, d, dv, scale, softcap,
        KV_HEADS, D, DV, PAGE, BN, True, WINDOW, SOFTCAP, HAS_SLOPES, QUANTIZED, UPCAST,
    )  # fmt: skip
    lse = tl.where(total == 0.0, -float("inf"), top + tl.log2(total))
    if HAS_SINKS:
        sink = tl.load(SINKS + head, mask=real, other=0.0) * 1.4426950408889634
        total += tl.exp2(sink - tl.where(top == -float("inf"), sink, top))
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    place = row * (KV_HEADS * GROUP) + head
    tl.store(
        OUT + place[:, None] * DV + dv[None, :], acc.to(OUT.dtype.element_ty), mask=real[:, None] & (dv[None, :] < DV)
    )
    tl.store(LSE + place, lse, mask=real)


def tiles(counts: Sequence[int], group: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Which sequence each tile belongs to, and its first new token there, int32; those with the most keys come first.

    >>> tiles([3, 0, 5], group=4, rows=16)
    (array([2, 0, 2], dtype=int32), array([4, 0, 0], dtype=int32))
    """
    each = rows // group
    found = [(first, i) for i, n in enumerate(counts) for first in range(0, n, each)]
    found.sort(key=lambda tile: -tile[0])
    return np.array([i for _, i in found], dtype=np.int32), np.array([f for f, _ in found], dtype=np.int32)


def rows_for(dim: int, group: int, number: int = 2) -> int:
    """Rows of a tile for heads ``dim`` wide: what the registers hold, and no fewer than share a key/value head.

    ``number``: bytes of a number. fp32 has no matrix instructions of full precision, and large tiles of it take a
    minute to compile.
    """
    if number == 4:
        return max(32, triton.next_power_of_2(group))
    return max(128 if dim <= 128 else 64, triton.next_power_of_2(group))


def width_for(dim: int, number: int = 2) -> int:
    """Keys of a tile. fp32 products take a register for each number."""
    if number == 4:
        return 16
    return 64 if dim <= 128 else 32


def prefill(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    cut: tuple[torch.Tensor, torch.Tensor],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
    rows: int = 0,
    width: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of the newest tokens of each sequence over all its keys, which are in the cache already.

    Args:
        q: [tokens, heads, dim], sequence after sequence; the last dimension contiguous.
        keys, values, tables, lengths: as for ``kernels.decode.triton.decode``.
        starts: int32 [sequences + 1], where each one's tokens begin in ``q``.
        cut: what ``tiles`` gives for these pieces, on the device; it is the same for all layers with equal heads.
        scale, window, softcap, sinks, slopes, key_scales, value_scales: as there.
        rows, width: of a tile, ``rows`` as in ``cut``; 0 for what suits the head.

    Returns:
        The output [tokens, heads, value dim], and the base-2 log-sum-exp, fp32 [tokens, heads], sinks left out.
    """
    tokens, heads, dim = q.shape
    kv_heads, page, dv = keys.shape[1], keys.shape[2], values.shape[3]
    group = heads // kv_heads
    number, wide = q.element_size(), max(dim, dv)
    rows, width = rows or rows_for(wide, group, number), width or width_for(wide, number)
    sequence, first = cut
    out = torch.empty(tokens, heads, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    nothing = lse
    _prefill[(len(sequence), kv_heads)](
        q, keys, values,
        nothing if key_scales is None else key_scales, nothing if value_scales is None else value_scales,
        tables, lengths, starts, sequence, first,
        nothing if slopes is None else slopes, nothing if sinks is None else sinks, out, lse,
        q.stride(0), q.stride(1), tables.stride(0), scale * LOG2E, softcap * LOG2E,
        GROUP=group, KV_HEADS=kv_heads, D=dim, D_PAD=padded(dim), DV=dv,
        DV_PAD=padded(dv), PAGE=page, BM=rows, BN=width, WINDOW=window, SOFTCAP=softcap > 0,
        HAS_SINKS=sinks is not None, HAS_SLOPES=slopes is not None, QUANTIZED=key_scales is not None,
        UPCAST=not q.is_cuda, num_warps=8 if dim >= 64 else 4, num_stages=stages_for(wide, number, is_hopper(q.device)),
    )  # fmt: skip
    return out, lse
