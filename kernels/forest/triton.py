"""Attention of a decoding step on a GPU, in which keys and values that sequences share are read once for all of them.

The rows of a tile are the sequences that share a range of keys, times the query heads of one key/value head. One launch
does the ranges that several sequences share, in tiles of many rows, a second one what each has for itself; both leave
partial results, which a third puts together by their log-sum-exp, as for split keys (``kernels.decode``). Which work
there is says a plan (``kernels.forest.plan``) on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention import LOG2E, gather, is_hopper, padded, score, stages_for, tile_for, units, weigh
from kernels.forest.plan import Size

MERGED = 16  # parts that a program puts together at a time


@triton.jit(do_not_specialize=["table_row"])
def _attend(
    Q, K, V, KEY_SCALES, VALUE_SCALES, TABLES, LENGTHS, ITEMS, ORDER, STARTS, SLOPES, PARTS, PART_LSE,
    q_row, q_head, table_row, scale, softcap,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    DV: tl.constexpr, DV_PAD: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr, QUANTIZED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One item of a plan for one key/value head. Scores are in base 2: ``scale`` holds log2(e)."""
    item = ITEMS + tl.program_id(0) * 8
    kv = tl.program_id(1)
    count = tl.load(item + 3)
    if count == 0:
        return
    first = tl.load(item)
    last = tl.load(item + 1)
    begin = tl.load(item + 2)
    split = tl.load(item + 5)
    splits = tl.load(item + 6)

    r = tl.arange(0, ROWS)
    head = kv * GROUP + r % GROUP
    real = r // GROUP < count
    place = begin + r // GROUP  # in the plan's order
    row = tl.load(ORDER + place, mask=real, other=0).to(tl.int64)
    length = tl.load(LENGTHS + row, mask=real, other=0)
    model = tl.load(ORDER + begin).to(tl.int64)  # any of the sequences has the keys in its table
    if last < 0:
        last = tl.load(LENGTHS + model)
    if WINDOW > 0:
        seen = length - WINDOW
        # What the shortest sequence sees begins first.
        first = tl.maximum(first, tl.min(tl.where(real, seen, 2147483647), 0))
    each = tl.cdiv(tl.cdiv(tl.maximum(last - first, 0), splits), BN) * BN
    low = first + split * each
    high = tl.minimum(last, low + each)

    d = tl.arange(0, D_PAD)
    dv = tl.arange(0, DV_PAD)
    c = tl.arange(0, BN)
    q = tl.load(
        Q + row[:, None] * q_row + head[:, None] * q_head + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0
    )
    if UPCAST:
        q = q.to(tl.float32)
    if HAS_SLOPES:
        slope = tl.load(SLOPES + head, mask=real, other=0.0) * 1.4426950408889634
        newest = (length - 1).to(tl.float32)  # in fp32 positions below 2^24 are exact, and cost one conversion a key
    table = TABLES + model * table_row
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DV_PAD], tl.float32)
    for n0 in range(low, high, BN):
        t = n0 + c
        there = t < high
        page = tl.load(table + t // PAGE, mask=there, other=0).to(tl.int64)
        token = page * (KV_HEADS * PAGE) + kv * PAGE + t % PAGE
        s = score(q, K, KEY_SCALES, token, there, d, scale, softcap, D, SOFTCAP, QUANTIZED, UPCAST, WHOLE=False)
        if HAS_SLOPES:
            s += slope[:, None] * (t.to(tl.float32)[None, :] - newest[:, None])
        # No row is before these keys: shared ones are those of whole blocks that all the sequences have.
        if WINDOW > 0:
            s = tl.where(there[None, :] & (t[None, :] >= seen[:, None]), s, -float("inf"))
        else:
            s = tl.where(there[None, :], s, -float("inf"))
        p, shrink, top, total = weigh(s, top, total)
        acc = gather(acc, shrink, p, q, V, VALUE_SCALES, token, there, dv, DV, QUANTIZED, UPCAST, WHOLE=False)

    # Also where it saw no key: the merge reads what the plan counts.
    slot = tl.load(STARTS + place, mask=real, other=0) + tl.load(item + 4)
    part = slot.to(tl.int64) * (KV_HEADS * GROUP) + head
    tl.store(PART_LSE + part, tl.where(total == 0.0, -float("inf"), top + tl.log2(total)), mask=real)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(PARTS + part[:, None] * DV + dv[None, :], acc, mask=real[:, None] & (dv[None, :] < DV))


@triton.jit
def _merge(
    PARTS, PART_LSE, ORDER, STARTS, SINKS, OUT, LSE,
    HEADS: tl.constexpr, DV: tl.constexpr, DV_PAD: tl.constexpr, MANY: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """The parts of one sequence and head, weighted by what each of them summed up to."""
    place = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(ORDER + place).to(tl.int64)
    dv = tl.arange(0, DV_PAD)
    top = tl.full([1], -float("inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([DV_PAD], tl.float32)
    high = tl.load(STARTS + place + 1)
    for p0 in range(tl.load(STARTS + place), high, MANY):
        p = p0 + tl.arange(0, MANY)
        part = p.to(tl.int64) * HEADS + head
        lse = tl.load(PART_LSE + part, mask=p < high, other=-float("inf"))
        weight, shrink, top, total = weigh(lse[None, :], top, total)
        weight = tl.reshape(weight, [MANY])
        o = tl.load(
            PARTS + part[:, None] * DV + dv[None, :], mask=(weight > 0.0)[:, None] & (dv[None, :] < DV), other=0.0
        )
        acc = acc * shrink + tl.sum(o * weight[:, None], 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    at = row * HEADS + head
    one = tl.arange(0, 1)
    tl.store(LSE + at + one, tl.where(total == 0.0, -float("inf"), base + tl.log2(total)))
    if HAS_SINKS:
        total += tl.exp2(tl.load(SINKS + head) * 1.4426950408889634 - base)
    acc = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(OUT + at * DV + dv, acc.to(OUT.dtype.element_ty), mask=dv < DV)


def forest(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    plan: torch.Tensor,
    size: Size,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each sequence's newest token over all its keys, which are in the cache already.

    Args:
        q: [sequences, heads, dim]; the last dimension contiguous.
        keys, values, tables, lengths: as for ``kernels.decode.triton.decode``.
        plan: int32 [size.ints], ``Plan.flat`` of a plan that holds for these tables and lengths, on the device.
        size: that it was made for (``size_for``); it fixes the launches.
        scale, window, softcap, sinks, slopes, key_scales, value_scales: as there.

    Returns:
        The output [sequences, heads, value dim] in the type of ``q``, and the base-2 log-sum-exp of the scores, fp32
        [sequences, heads], sinks left out.

    Raises:
        ValueError: the plan is for other numbers of sequences or heads.
    """
    n, heads, dim = q.shape
    kv_heads, page, dv = keys.shape[1], keys.shape[2], values.shape[3]
    if (n, heads) != (size.sequences, size.group * kv_heads) or plan.shape != (size.ints,):
        raise ValueError(f"{n} sequences with {heads} heads over {kv_heads} and a plan {tuple(plan.shape)} for {size}")
    out = torch.empty(n, heads, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(n, heads, dtype=torch.float32, device=q.device)
    parts = torch.empty(size.parts, heads, dv, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(size.parts, heads, dtype=torch.float32, device=q.device)
    wide, narrow, order, starts = size.views(plan)
    nothing = lse
    for items, rows in ((wide, size.rows), (narrow, size.narrow_rows)):
        if not len(items):
            continue
        _attend[(len(items), kv_heads)](
            q, keys, values,
            nothing if key_scales is None else key_scales, nothing if value_scales is None else value_scales,
            tables, lengths, items, order, starts, nothing if slopes is None else slopes, parts, part_lse,
            q.stride(0), q.stride(1), tables.stride(0), scale * LOG2E, softcap * LOG2E,
            GROUP=size.group, ROWS=rows, KV_HEADS=kv_heads, D=dim, D_PAD=padded(dim), DV=dv,
            DV_PAD=padded(dv), PAGE=page, WINDOW=window, SOFTCAP=softcap > 0,
            HAS_SLOPES=slopes is not None, QUANTIZED=key_scales is not None, UPCAST=not q.is_cuda,
            **tuned(rows, max(dim, dv), q.element_size(), is_hopper(q.device), key_scales is not None),
        )  # fmt: skip
    _merge[(n, heads)](
        parts, part_lse, order, starts, nothing if sinks is None else sinks, out, lse,
        HEADS=heads, DV=dv, DV_PAD=triton.next_power_of_2(dv), MANY=MERGED, HAS_SINKS=sinks is not None,
        num_warps=1 if dv <= 64 else 4,
    )  # fmt: skip
    return out, lse


def size_for(sequences: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> Size:
    """Of plans for steps on a GPU; ``dim``: the wider of keys and values, ``dtype``: of the queries.

    Hopper multiplies 64 rows at a time in each of two warp groups. fp32 has no matrix instructions of full precision:
    there many rows only take registers, and few find the keys that their neighbours read in the cache.
    """
    if dtype == torch.float32:
        most = 16
    else:
        most = 128 if dim <= 128 and is_hopper(device) else 64
    return Size.fitting(sequences, heads, kv_heads, units=units(device), most=most)


def tuned(rows: int, dim: int, number: int, hopper: bool, is_quantized: bool = False) -> dict[str, int]:
    """Keys at a time, warps and stages for tiles of ``rows`` with heads ``dim`` wide and ``number`` bytes a number.

    Chosen so that nothing spills; tests/test_compiled_forest.py shows it for three kinds of GPU.
    """
    stages = stages_for(dim, number, hopper)
    if number == 4:
        tile = tile_for(dim, number, is_quantized)
        return {"BN": tile, "num_warps": 4 if rows < 64 else 8, "num_stages": stages}
    if dim > 128:
        return {"BN": 32, "num_warps": 4 if rows < 32 else 8, "num_stages": stages}
    return {"BN": 64, "num_warps": 8 if rows >= (128 if hopper else 32) else 4, "num_stages": stages}
