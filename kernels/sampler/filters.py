"""What the sampler's kernels have in common: a row's numbers, the thresholds of its filters, and what these keep."""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
ONE = tl.constexpr(float(1 << 40))  # the weight of the largest logit
WAYS = tl.constexpr(16)  # that a launch splits the range of a threshold into: four bits


@triton.jit
def temperature_of(TEMPERATURE, row):
    """A row's temperature and whether it is drawn at all.

    The bounds keep infinity times zero away; beyond them a row is as good as greedy or uniform.
    """
    t = tl.load(TEMPERATURE + row).to(tl.float32)
    return tl.minimum(tl.maximum(tl.where(t > 0.0, t, 1.0), 1e-30), 1e30), t > 0.0


@triton.jit
def read(LOGITS, row, logits_row, i, vocabulary):
    """Logits ``i`` of a row, -inf beyond the vocabulary."""
    return tl.load(LOGITS + row * logits_row + i, mask=i < vocabulary, other=-float("inf"))


@triton.jit
def relative(x, peak, t):
    """Probabilities relative to that of ``peak``; 0 for what is infinite or no number."""
    x = x.to(tl.float32)
    return tl.exp2((tl.where(x < float("inf"), x, -float("inf")) - peak) * tl.div_rn(LOG2E, t))


@triton.jit
def ordered(x, BITS: tl.constexpr):
    """Integers of ``BITS`` bits in the order of the logits, the same for both zeros."""
    if BITS == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        largest: tl.constexpr = 0x7FFF
    else:
        bits = x.to(tl.int32, bitcast=True)
        largest: tl.constexpr = 0x7FFFFFFF
    bits = tl.where(x.to(tl.float32) == 0.0, 0, bits)
    return bits ^ ((bits >> 31) & largest)


@triton.jit
def peak_of(PEAKS, row, chunks, CHUNKS: tl.constexpr):
    """The largest logit of a row; infinite where the row has no distribution."""
    c = tl.arange(0, CHUNKS)
    return tl.max(tl.load(PEAKS + row * chunks + c, mask=c < chunks, other=-float("inf")), 0)


@triton.jit
def limit_of(LIMIT, row, vocabulary, BY_MASS: tl.constexpr):
    """The row's top-p or top-k, and whether it filters anything."""
    limit = tl.load(LIMIT + row)
    if BY_MASS:
        return limit.to(tl.float64), limit < 1.0
    else:
        return limit.to(tl.float64), (limit > 0) & (limit < vocabulary)


@triton.jit
def found(KEYS, ABOVE, SUMS, row, rows, first, step, limit, BITS: tl.constexpr, BY_MASS: tl.constexpr):
    """After ``step`` of the search that began at ``first``: the digits found, and what is counted above them all.

    The threshold is the largest key from which on upwards at least the limit is counted.
    """
    digit = tl.arange(0, WAYS)
    at = step * rows + row
    sums = tl.load(SUMS + at * WAYS + digit)
    above = tl.load(ABOVE + at)
    goal = limit
    if BY_MASS:
        goal = tl.maximum(limit * tl.load(SUMS + (first * rows + row) * WAYS).to(tl.float64), 1.0)
    reached = tl.sum(((above + sums).to(tl.float64) >= goal).to(tl.int32), 0)
    here = tl.maximum(reached - 1, 0)
    above += tl.sum(tl.where(digit == here + 1, sums, 0), 0)
    key = tl.load(KEYS + at) + (here << (BITS - 4 - 4 * (step - first)))
    return key, above, goal


@triton.jit(do_not_specialize=["step", "rows"])
def narrow(
    LOGITS, TEMPERATURE, TOP_K, TOP_P, PEAKS, KEYS, ABOVE, SUMS, logits_row, vocabulary, chunks, rows, step,
    HAS_K: tl.constexpr, BY_MASS: tl.constexpr, BITS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One digit of the threshold of top-k, or ``BY_MASS`` of top-p: what a chunk has at and above each of 16 values.

    Programs of a row add up whole numbers, whose sum does not depend on who comes first.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    t, drawn = temperature_of(TEMPERATURE, row)
    peak = peak_of(PEAKS, row, chunks, CHUNKS)
    first: tl.constexpr = BITS // 4 if BY_MASS and HAS_K else 0
    if BY_MASS:
        limit, active = limit_of(TOP_P, row, vocabulary, True)
    else:
        limit, active = limit_of(TOP_K, row, vocabulary, False)
    if active & drawn & (tl.abs(peak) < float("inf")):
        low = tl.full([], -(1 << (BITS - 1)), tl.int32)
        above = tl.full([], 0, tl.int64)
        if step > first:
            low, above, _ = found(KEYS, ABOVE, SUMS, row, rows, first, step - 1, limit, BITS, BY_MASS)
        if chunk == 0:
            tl.store(KEYS + step * rows + row, low)
            tl.store(ABOVE + step * rows + row, above)
        least = low
        if BY_MASS and HAS_K:
            k, filters = limit_of(TOP_K, row, vocabulary, False)
            if filters:
                kth, _, _ = found(KEYS, ABOVE, SUMS, row, rows, 0, first - 1, k, BITS, False)
                least = tl.maximum(low, kth)
        own = tl.load(PEAKS + row * chunks + chunk)
        if ordered(own.to(LOGITS.dtype.element_ty), BITS) >= least:
            i = chunk * CHUNK + tl.arange(0, CHUNK)
            x = read(LOGITS, row, logits_row, i, vocabulary)
            key = ordered(x, BITS)
            digit = (key - low).to(tl.uint32, bitcast=True) >> (BITS - 4 - 4 * (step - first)).to(tl.uint32)
            inside = (key >= least) & (digit < WAYS)  # beyond the vocabulary is -inf, which moves no threshold
            if tl.max(inside.to(tl.int32), 0) > 0:
                if BY_MASS:
                    amount = (relative(x, peak, t) * ONE).to(tl.int64)
                else:
                    amount = tl.full([CHUNK], 1, tl.int32)
                amount = tl.where(inside, amount, 0)
                way = tl.arange(0, WAYS)
                sums = tl.sum(tl.where(digit.to(tl.int32)[None, :] >= way[:, None], amount[None, :], 0), 1)
                tl.atomic_add(SUMS + (step * rows + row) * WAYS + way, sums.to(tl.int64), sem="relaxed")


@triton.jit
def filtered(
    TOP_K, TOP_P, MIN_P, KEYS, ABOVE, SUMS, x, peak, t, i, row, vocabulary, rows,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Weights after the filters, which logits lie on the edge of top-p, and how much weight the edge may have.

    Of equal logits at the edge top-p keeps those that come last in the vocabulary: transformers drops what is first in
    ascending order, and a stable sort is the only one that means the same everywhere.
    """
    share = relative(x, peak, t)
    kept = i < vocabulary
    tied = i < 0
    room = tl.full([], 0.0, tl.float64)
    key = ordered(x, BITS)
    if HAS_K:
        k, filters = limit_of(TOP_K, row, vocabulary, False)
        if filters:
            kth, _, _ = found(KEYS, ABOVE, SUMS, row, rows, 0, BITS // 4 - 1, k, BITS, False)
            kept = kept & (key >= kth)
    if HAS_P:
        p, filters = limit_of(TOP_P, row, vocabulary, True)
        if filters:
            first: tl.constexpr = BITS // 4 if HAS_K else 0
            edge, above, goal = found(KEYS, ABOVE, SUMS, row, rows, first, first + BITS // 4 - 1, p, BITS, True)
            tied = kept & (key == edge)
            kept = kept & (key > edge)
            room = goal - above.to(tl.float64)
    if HAS_MIN:
        enough = share >= tl.minimum(tl.load(MIN_P + row).to(tl.float32), 1.0)
        kept = kept & enough
        tied = tied & enough
    return tl.where(kept | tied, (share * ONE).to(tl.int64), 0), kept, tied, room
