"""Paged attention of a decoding step on a GPU, split over the keys (flash-decoding, Dao et al. 2023).

The query heads that share a key/value head, and the new tokens of a sequence, are the rows of one tile, so each key and
value is read once. A sequence's keys are split over several programs, whose parts a second kernel puts together by
their log-sum-exp; with a single split the first one writes the result itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention import LOG2E, gather, is_hopper, padded, score, stages_for, tile_for, units, weigh

LEAST = 256  # keys for which another program is worth starting
RESIDENT = 3  # programs that fit on a multiprocessor at once, where each has few rows


@triton.jit(do_not_specialize=["table_row"])  # tables widen as sequences grow: no new kernel for that
def _attend(
    Q, K, V, KEY_SCALES, VALUE_SCALES, TABLES, LENGTHS, TREE, SLOPES, SINKS, OUT, LSE, PARTS, PART_LSE,
    q_row, q_new, q_head, table_row, scale, softcap, splits,
    GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, DV: tl.constexpr, DV_PAD: tl.constexpr,
    PAGE: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_TREE: tl.constexpr, QUANTIZED: tl.constexpr, SINGLE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One split of one sequence's keys for one key/value head. Scores are in base 2: ``scale`` holds log2(e)."""
    b = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(LENGTHS + b)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(0, length - NEW - WINDOW + 1)
    each = tl.cdiv(tl.cdiv(length - start, splits), BN) * BN
    low = start + split * each
    high = tl.minimum(length, low + each)

    r = tl.arange(0, ROWS)
    new = r // GROUP
    head = kv * GROUP + r % GROUP
    real = r < GROUP * NEW
    mine = length - NEW + new  # positions of the rows
    d = tl.arange(0, D_PAD)
    dv = tl.arange(0, DV_PAD)
    c = tl.arange(0, BN)
    q = tl.load(
        Q + b * q_row + new[:, None] * q_new + head[:, None] * q_head + d[None, :],
        mask=real[:, None] & (d[None, :] < D), other=0.0,
    )  # fmt: skip
    if UPCAST:
        q = q.to(tl.float32)
    if HAS_SLOPES:
        slope = tl.load(SLOPES + head, mask=real, other=0.0) * 1.4426950408889634
    if HAS_TREE:
        ancestors = tl.load(TREE + b * NEW + new, mask=real, other=0)

    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DV_PAD], tl.float32)
    for n0 in range(low, high, BN):
        t = n0 + c
        there = t < high
        page = tl.load(TABLES + b * table_row + t // PAGE, mask=there, other=0).to(tl.int64)
        token = page * (KV_HEADS * PAGE) + kv * PAGE + t % PAGE
        s = score(q, K, KEY_SCALES, token, there, d, scale, softcap, D, SOFTCAP, QUANTIZED, UPCAST, WHOLE=False)
        if HAS_SLOPES:
            s += slope[:, None] * (t[None, :] - mine[:, None])
        seen = t[None, :] <= mine[:, None]
        if HAS_TREE:
            j = t - (length - NEW)
            bit = (ancestors[:, None] >> tl.maximum(j, 0)[None, :].to(tl.int64)) & 1
            seen = (j[None, :] < 0) | (bit == 1)
        if WINDOW > 0:
            seen = seen & (t[None, :] > mine[:, None] - WINDOW)
        s = tl.where(seen & there[None, :], s, -float("inf"))
        p, shrink, top, total = weigh(s, top, total)
        acc = gather(acc, shrink, p, q, V, VALUE_SCALES, token, there, dv, DV, QUANTIZED, UPCAST, WHOLE=False)

    lse = tl.where(total == 0.0, -float("inf"), top + tl.log2(total))
    if SINGLE:
        if HAS_SINKS:
            sink = tl.load(SINKS + head, mask=real, other=0.0) * 1.4426950408889634
            total += tl.exp2(sink - tl.where(top == -float("inf"), sink, top))
        at = (b * NEW + new) * (KV_HEADS * GROUP) + head
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(
            OUT + at[:, None] * DV + dv[None, :], acc.to(OUT.dtype.element_ty), mask=real[:, None] & (dv[None, :] < DV)
        )
        tl.store(LSE + at, lse, mask=real)
    else:
        part = ((b * KV_HEADS + kv) * splits + split) * ROWS + r
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(PARTS + part[:, None] * DV + dv[None, :], acc, mask=real[:, None] & (dv[None, :] < DV))
        tl.store(PART_LSE + part, lse, mask=real)


@triton.jit
def _combine(
    PARTS, PART_LSE, SINKS, OUT, LSE, splits,
    GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    DV: tl.constexpr, DV_PAD: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """The splits of one row, weighted by what each of them summed up to."""
    b = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    r = tl.program_id(2)
    head = kv * GROUP + r % GROUP
    s = tl.arange(0, SPLITS)
    dv = tl.arange(0, DV_PAD)
    part = ((b * KV_HEADS + kv) * splits + s) * ROWS + r
    lse = tl.load(PART_LSE + part, mask=s < splits, other=-float("inf"))
    top = tl.max(lse, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    weight = tl.exp2(lse - base)
    total = tl.sum(weight, 0)
    at = (b * NEW + r // GROUP) * (KV_HEADS * GROUP) + head
    tl.store(LSE + at, tl.where(total == 0.0, -float("inf"), base + tl.log2(total)))
    if HAS_SINKS:
        total += tl.exp2(tl.load(SINKS + head) * 1.4426950408889634 - base)
    # A split without keys was never written: it must not come through, not even as 0 times NaN.
    o = tl.load(PARTS + part[:, None] * DV + dv[None, :], mask=(weight > 0.0)[:, None] & (dv[None, :] < DV), other=0.0)
    o = tl.sum(o * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(OUT + at * DV + dv, o.to(OUT.dtype.element_ty), mask=dv < DV)


def decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    tree: torch.Tensor | None = None,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each sequence's newest tokens over all its keys, which are in the cache already.

    Args:
        q: [sequences, new, heads, dim]; the last dimension contiguous.
        keys, values: [blocks, kv heads, block, dim], contiguous; heads is a multiple of kv heads.
        tables: int32 [sequences, width], the blocks of each sequence; lengths: int32 [sequences], new tokens included.
        scale: of the scores; softcap: 0 for none; window: how many tokens each sees, itself included, 0 for all.
        sinks: fp32 [heads], scores that take a share of the weights and give nothing (gpt-oss).
        slopes: fp32 [heads] of ALiBi (Press et al. 2021).
        tree: int64 [sequences, new], bit j set where the new token j is an ancestor or itself; causal without it.
        key_scales, value_scales: fp32 [blocks, kv heads, block] of an int8 or fp8 cache.
        splits: programs for each sequence and kv head; None for as many as fill the GPU.

    Returns:
        The output [sequences, new, heads, value dim] in the type of ``q``, and the base-2 log-sum-exp of the scores,
        fp32 [sequences, new, heads], sinks left out.
    """
    n, new, heads, dim = q.shape
    kv_heads, page, dv = keys.shape[1], keys.shape[2], values.shape[3]
    group, number, wide = heads // kv_heads, q.element_size(), max(dim, dv)
    rows = max(16, triton.next_power_of_2(group * new))
    splits = splits or splits_for(n * kv_heads, tables.shape[1] * page, q.device, resident_for(rows, wide))
    out = torch.empty(n, new, heads, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(n, new, heads, dtype=torch.float32, device=q.device)
    if splits == 1:
        parts = part_lse = lse
    else:
        parts = torch.empty(n * kv_heads * splits * rows, dv, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(n * kv_heads * splits * rows, dtype=torch.float32, device=q.device)
    nothing = lse
    common = {"GROUP": group, "NEW": new, "ROWS": rows, "KV_HEADS": kv_heads, "DV": dv}
    tile = tile_for(wide, number, key_scales is not None)
    common |= {"DV_PAD": padded(dv), "HAS_SINKS": sinks is not None}
    _attend[(n, kv_heads, splits)](
        q, keys, values,
        nothing if key_scales is None else key_scales, nothing if value_scales is None else value_scales,
        tables, lengths, nothing if tree is None else tree, nothing if slopes is None else slopes,
        nothing if sinks is None else sinks, out, lse, parts, part_lse,
        q.stride(0), q.stride(1), q.stride(2), tables.stride(0),
        scale * LOG2E, softcap * LOG2E, splits,
        D=dim, D_PAD=padded(dim), PAGE=page, BN=tile, WINDOW=window, SOFTCAP=softcap > 0,
        HAS_SLOPES=slopes is not None, HAS_TREE=tree is not None, QUANTIZED=key_scales is not None,
        SINGLE=splits == 1, UPCAST=not q.is_cuda, **common,
        num_warps=warps_for(rows, number), num_stages=stages_for_decoding(wide, number, is_hopper(q.device)),
    )  # fmt: skip
    if splits > 1:
        _combine[(n, kv_heads, group * new)](
            parts, part_lse, nothing if sinks is None else sinks, out, lse, splits,
            SPLITS=triton.next_power_of_2(splits), **common, num_warps=1 if dv <= 64 else 4,
        )  # fmt: skip
    return out, lse


def splits_for(tiles: int, keys: int, device: torch.device, resident: int = RESIDENT) -> int:
    """Programs for each of ``tiles`` so that they fill the GPU once, none with fewer than ``LEAST`` keys.

    ``resident``: how many a multiprocessor holds. A few programs more than the GPU holds at a time would take it as
    long again. The count follows from the width of the tables, not from the lengths, which only the device knows: a
    graph that was recorded holds for all lengths.
    """
    return max(1, min(64, resident * units(device) // tiles, keys // LEAST))


def resident_for(rows: int, dim: int) -> int:
    """Programs that fit on a multiprocessor at once: new tokens and wide heads take more of its memory."""
    return RESIDENT if rows <= 16 and dim <= 128 else RESIDENT - 1


def warps_for(rows: int, number: int) -> int:
    """Warps of a program; fp32 takes a register for each product, and with four warps more rows spill."""
    return 8 if number == 4 and rows > 16 else 4


def stages_for_decoding(dim: int, number: int, hopper: bool) -> int:
    """See ``stages_for``; the rows of heads wider than 128 leave no registers for more than two."""
    return stages_for(dim, number, hopper and dim <= 128)
