# ruff: noqa: N803, N806 -- upper case are pointers, descriptors and constants of a kernel
"""Attention of whole prompts in the shape of FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608), for Hopper.

Written in Gluon: one warp copies, two warpgroups compute. These three partitions of a program share a ring of
``STAGES`` tiles of keys and as many of values, and meet at nothing but these barriers:

===========  =====  ======================================  ==================================================
barrier      count  completes its turn when                 who waits
===========  =====  ======================================  ==================================================
q_ready          1  both halves of the queries are there    both consumers, once
k_ready[s]       1  the bytes of the keys in place s are    each consumer, before it multiplies with them
v_ready[s]       1  the same of the values                  each consumer, before it multiplies with them
k_free[s]        2  both consumers have read the keys in s  the producer, before it copies over them
v_free[s]        2  the same of the values                  the producer, before it copies over them
===========  =====  ======================================  ==================================================

Block ``i`` is in place ``i % STAGES`` in turn ``i // STAGES``, and a wait names the parity of a turn:

* A consumer waits for turn ``i // STAGES`` of a ``ready``. The barrier cannot be a turn ahead by then, because the
  producer refills a place only after this consumer has said that it is free.
* The producer waits for the turn *before* its own of a ``free``. Of a new barrier that turn, which never was, counts
  as complete, so the first ``STAGES`` copies start at once.
* ``arrive`` comes behind a barrier of the partition's own four warps, and each of them has waited for its products by
  then: one arrival speaks for all 128 threads.
* All three partitions count the same ``blocks``. What the last turns leave half counted, nobody waits for.
* The consumer that is behind never waits for the other one: the place that it wants filled was freed by both at
  least one block ago, since a ring has two places or more.
"""

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.attention import LOG2E
from kernels.prefill.tma import check, descriptor

ROWS = 128  # queries of a program, half of them each consumer's
WIDTH = 128  # keys of a block
STAGES = {64: 4, 128: 2}  # blocks under way, by the width of a head: what the shared memory holds
VERSIONS = ("3.6", "3.7")  # of Triton whose Gluon this is written in


@gluon.jit
def _copy(DESCRIPTOR, ready, place, start, length, head, row):
    """Tokens ``row`` .. of one head of a sequence to shared memory; zeros behind its end (triton.tools.ragged_tma)."""
    end = start + length
    tma.async_copy_global_to_shared(DESCRIPTOR, [1 << 30, end, head, (1 << 30) - length + row, 0], ready, place)


@gluon.jit
def _produce(
    QUERIES, KEYS, VALUES, q, k, v, barriers, tile, kv,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy the queries and then block after block."""
    start, length, first, blocks, head, _ = tile
    q_ready, k_ready, v_ready, k_free, v_free = barriers
    mbarrier.expect(q_ready, 2 * QUERIES.block_type.nbytes)
    _copy(QUERIES, q_ready, q.index(0), start, length, head, first)
    _copy(QUERIES, q_ready, q.index(1), start, length, head, first + BM // 2)
    for i in range(blocks):
        place = i % STAGES
        before = (i // STAGES & 1) ^ 1
        mbarrier.wait(k_free.index(place), before)
        mbarrier.expect(k_ready.index(place), KEYS.block_type.nbytes)
        _copy(KEYS, k_ready.index(place), k.index(place), start, length, kv, i * BN)
        mbarrier.wait(v_free.index(place), before)
        mbarrier.expect(v_ready.index(place), VALUES.block_type.nbytes)
        _copy(VALUES, v_ready.index(place), v.index(place), start, length, kv, i * BN)


@gluon.jit
def _scores(q, k, ready, turn, LAYOUT: gl.constexpr):
    """Begin to multiply the queries with a block of keys, once it is there."""
    M: gl.constexpr = q.shape[0]
    N: gl.constexpr = k.shape[0]
    mbarrier.wait(ready, turn)
    zeros = gl.zeros([M, N], gl.float32, LAYOUT)
    return warpgroup_mma(q, k.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _hidden(s, i, mine, length, CAUSAL: gl.constexpr, LAYOUT: gl.constexpr):
    """Scores of block ``i`` without what a row does not see.

    Causal rows see nothing behind the end of the sequence, but for those that are behind it themselves: they see zeros,
    and nobody sees them.
    """
    N: gl.constexpr = s.shape[1]
    t = i * N + gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
    if CAUSAL:
        seen = t[None, :] <= mine[:, None]
    else:
        seen = t[None, :] < length
    return gl.where(seen, s, -float("inf"))


@gluon.jit
def _over(
    acc, p, top, total, q, k, v, barriers, low, high, mine, length, scale,
    STAGES: gl.constexpr, MASKED: gl.constexpr, CAUSAL: gl.constexpr,
    SCORES: gl.constexpr, SUMS: gl.constexpr, WEIGHTS: gl.constexpr,
):  # fmt: skip
    """Blocks ``low`` .. ``high`` - 1; ``MASKED`` where some rows do not see all of them.

    ``p`` are the weights of the block before, whose values are still to be added: their product runs while the softmax
    of this block is computed (section 3.2 of the paper).
    """
    _, k_ready, v_ready, k_free, v_free = barriers
    for i in range(low, high):
        place = i % STAGES
        turn = i // STAGES & 1
        last = (i - 1) % STAGES
        s = _scores(q, k.index(place), k_ready.index(place), turn, SCORES)
        acc = warpgroup_mma(p, v.index(last), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s])  # products complete in order: the scores, not yet the sums
        mbarrier.arrive(k_free.index(place), count=1)
        if MASKED:
            s = _hidden(s, i, mine, length, CAUSAL, SCORES)
        higher = gl.maximum(top, gl.max(s, 1) * scale)
        weights = gl.exp2(s * scale - higher[:, None])
        shrink = gl.exp2(top - higher)
        total = total * shrink + gl.sum(weights, 1)
        top = higher
        # These values are multiplied in the next round. The wait stands here because the assembler moves no arithmetic
        # across its loop: without it the softmax sinks below the wait for the sums, and nothing overlaps.
        mbarrier.wait(v_ready.index(place), turn)
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        mbarrier.arrive(v_free.index(last), count=1)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, SUMS))[:, None]
        p = gl.convert_layout(weights.to(q.dtype), WEIGHTS)
    return acc, p, top, total


@gluon.jit
def _consume(
    OUT, LSE, q, k, v, barriers, tile, scale,
    HALF: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """One warpgroup, with half of the program's rows.

    The first block has a key that every row sees, so ``top`` is finite from there on and needs no guard.
    """
    M: gl.constexpr = q.shape[1]
    N: gl.constexpr = k.shape[1]
    D: gl.constexpr = k.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    start, length, first, blocks, head, heads = tile
    q_ready, k_ready, v_ready, k_free, _ = barriers
    q = q.index(HALF)
    begin = first + HALF * M
    mine = begin + gl.arange(0, M, gl.SliceLayout(1, SCORES))

    mbarrier.wait(q_ready, 0)
    s = _scores(q, k.index(0), k_ready.index(0), 0, SCORES)
    s = warpgroup_mma_wait(0, deps=[s])
    mbarrier.arrive(k_free.index(0), count=1)
    s = _hidden(s, 0, mine, length, CAUSAL, SCORES)
    top = gl.max(s, 1) * scale
    weights = gl.exp2(s * scale - top[:, None])
    total = gl.sum(weights, 1)
    p = gl.convert_layout(weights.to(q.dtype), WEIGHTS)
    acc = gl.zeros([M, D], gl.float32, SUMS)
    mbarrier.wait(v_ready.index(0), 0)
    if CAUSAL:
        whole = gl.maximum(1, (begin + 1) // N)  # blocks that all rows see all of
    else:
        whole = gl.maximum(1, length // N)
    acc, p, top, total = _over(
        acc, p, top, total, q, k, v, barriers, 1, whole, mine, length, scale,
        STAGES, False, CAUSAL, SCORES, SUMS, WEIGHTS,
    )  # fmt: skip
    acc, p, top, total = _over(
        acc, p, top, total, q, k, v, barriers, whole, blocks, mine, length, scale,
        STAGES, True, CAUSAL, SCORES, SUMS, WEIGHTS,
    )  # fmt: skip
    acc = warpgroup_mma(p, v.index((blocks - 1) % STAGES), acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])

    place = (start + mine).to(gl.int64) * heads + head
    gl.store(LSE + place, top + gl.log2(total), mask=mine < length)
    # Through the queries' shared memory to whole lines. All four warps have waited for their last product with the
    # queries before they met at k_free. By pointers: the tile's last rows may be the next sequence's.
    inverse = 1.0 / total
    acc = acc * gl.convert_layout(inverse, gl.SliceLayout(1, SUMS))[:, None]
    q.store(acc.to(q.dtype))
    gl.thread_barrier()
    LINES: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row = begin + gl.arange(0, M, gl.SliceLayout(1, LINES))
    d = gl.arange(0, D, gl.SliceLayout(0, LINES))
    place = (start + row).to(gl.int64) * heads + head
    gl.store(OUT + place[:, None] * D + d[None, :], q.load(LINES), mask=(row < length)[:, None])


@gluon.jit
def _prefill(
    QUERIES, KEYS, VALUES, STARTS, TILE_SEQUENCE, TILE_FIRST, OUT, LSE, scale,
    GROUP: gl.constexpr, D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
):  # fmt: skip
    """``BM`` tokens of one sequence with one query head, in the order of ``kernels.prefill.tma``."""
    gl.static_assert(STAGES >= 2)  # else a consumer waits for values over those that it has not yet multiplied with
    kv = gl.program_id(1)
    head = kv * GROUP + gl.program_id(0) % GROUP
    heads = gl.num_programs(1) * GROUP
    sequence = gl.load(TILE_SEQUENCE + gl.program_id(0) // GROUP)
    first = gl.load(TILE_FIRST + gl.program_id(0) // GROUP)
    start = gl.load(STARTS + sequence)
    length = gl.load(STARTS + sequence + 1) - start
    if CAUSAL:
        blocks = gl.cdiv(gl.minimum(length, first + BM), BN)
    else:
        blocks = gl.cdiv(length, BN)

    dtype: gl.constexpr = QUERIES.dtype
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q = gl.allocate_shared_memory(dtype, [2, BM // 2, D], LAYOUT)
    k = gl.allocate_shared_memory(dtype, [STAGES, BN, D], LAYOUT)
    v = gl.allocate_shared_memory(dtype, [STAGES, BN, D], LAYOUT)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_ready = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    mbarrier.init(q_ready, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)
        mbarrier.init(v_free.index(i), count=2)
    fence_async_shared()  # the copies, which are another proxy's, must find the barriers initialised
    barriers = (q_ready, k_ready, v_ready, k_free, v_free)
    tile = (start, length, first, blocks, head, heads)
    gl.warp_specialize(
        [
            (_consume, (OUT, LSE, q, k, v, barriers, tile, scale, 0, STAGES, CAUSAL)),
            (_consume, (OUT, LSE, q, k, v, barriers, tile, scale, 1, STAGES, CAUSAL)),
            (_produce, (QUERIES, KEYS, VALUES, q, k, v, barriers, tile, kv, BM, BN, STAGES)),
        ],
        [4, 1], [240, 24],
    )  # fmt: skip


def reason(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Why this kernel cannot run there, in half a sentence; None where it can."""
    if ".".join(triton.__version__.split(".")[:2]) not in VERSIONS:
        return f"it is written for Triton {' and '.join(VERSIONS)}, not {triton.__version__}"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "it needs a GPU of the Hopper generation"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} is neither torch.bfloat16 nor torch.float16"
    if dim not in STAGES:
        return f"heads {dim} wide are neither 64 nor 128 wide"
    return None


def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    cut: tuple[torch.Tensor, torch.Tensor],
    *,
    scale: float,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kernels.prefill.tma.prefill`` computes without its features, where ``reason`` gives None.

    ``cut`` is what ``kernels.prefill.triton.tiles(counts, 1, ROWS)`` gives for the lengths, on the device. ``scale`` is
    positive: the highest score is searched before it is scaled.
    """
    heads, dim, kv_heads = q.shape[1], q.shape[2], k.shape[1]
    check(q, k, v)
    if scale <= 0 or dim not in STAGES:
        raise ValueError(f"the scale must be positive, and heads 64 or 128 wide: {scale}, {dim}")
    sequence, first = cut
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if not len(sequence):
        return out, lse
    _prefill[(len(sequence) * (heads // kv_heads), kv_heads)](
        _described(q, ROWS // 2), _described(k, WIDTH), _described(v, WIDTH), starts, sequence, first, out, lse,
        scale * LOG2E, GROUP=heads // kv_heads, D=dim, BM=ROWS, BN=WIDTH, STAGES=STAGES[dim], CAUSAL=causal,
        num_warps=4, maxnreg=168,  # three warpgroups begin with 168 registers and share them out as 240, 240 and 24
    )  # fmt: skip
    return out, lse


def _described(x: torch.Tensor, rows: int) -> TensorDescriptor:
    plain = descriptor(x, rows, x.shape[2])
    layout = gl.NVMMASharedLayout(128, 16, 5)
    return TensorDescriptor(plain.base, plain.shape, plain.strides, plain.block_shape, layout)
