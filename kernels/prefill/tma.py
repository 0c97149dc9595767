# ruff: noqa: N803 -- upper case are pointers, descriptors and constants of a kernel
"""Flash attention (Dao 2023, arXiv 2307.08691) of whole prompts whose keys and values lie one after the other.

For Hopper: queries, keys and values come through the tensor memory accelerator, which needs neither registers nor
address arithmetic for them. Its descriptors are ragged ones (``triton.tools.ragged_tma``): whatever a tile would read
behind the end of its sequence comes as zeros, so the neighbour's numbers, be they NaN, never meet a weight of 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.ragged_tma import create_ragged_descriptor, load_ragged
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.attention import LOG2E, tanh, weigh


@triton.jit
def _tile(
    top, total, acc, q, KEYS, VALUES, low, high, start, length, mine, kv, scale, softcap, slope,
    D: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The rows of a tile over keys ``low`` .. ``high`` - 1; ``MASKED`` where some rows do not see all of them."""
    c = tl.arange(0, BN)
    for n0 in range(low, high, BN):
        k = load_ragged(KEYS, start, length, [kv, n0, 0], 1).reshape(BN, D)
        if UPCAST:
            k = k.to(tl.float32)
        s = tl.dot(q, k.T, input_precision="ieee") * scale
        t = n0 + c
        if SOFTCAP:
            s = tanh(s / softcap) * softcap
        if HAS_SLOPES:
            s += slope * (t[None, :] - mine[:, None])
        if MASKED:
            # No causal row sees behind the end, but for those that are behind it themselves and are not written.
            if CAUSAL:
                seen = t[None, :] <= mine[:, None]
            else:
                seen = t[None, :] < length
            if WINDOW > 0:
                seen = seen & (t[None, :] > mine[:, None] - WINDOW)
            s = tl.where(seen, s, -float("inf"))
        p, shrink, top, total = weigh(s, top, total)
        v = load_ragged(VALUES, start, length, [kv, n0, 0], 1).reshape(BN, D)
        if UPCAST:
            v = v.to(tl.float32)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return top, total, acc


@triton.jit
def _prefill(
    QUERIES, KEYS, VALUES, STARTS, TILE_SEQUENCE, TILE_FIRST, SLOPES, SINKS, OUT, LSE, scale, softcap,
    GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``BM`` tokens of one sequence with one query head. Scores are in base 2: ``scale`` holds log2(e).

    The heads of a group are neighbours in the grid and all tiles of a key/value head come before the next one's, so
    that its keys stay in the second-level cache.
    """
    tile = tl.program_id(0) // GROUP
    kv = tl.program_id(1)
    head = kv * GROUP + tl.program_id(0) % GROUP
    sequence = tl.load(TILE_SEQUENCE + tile)
    first = tl.load(TILE_FIRST + tile)
    start = tl.load(STARTS + sequence)
    length = tl.load(STARTS + sequence + 1) - start
    mine = first + tl.arange(0, BM)
    q = load_ragged(QUERIES, start, length, [head, first, 0], 1).reshape(BM, D)
    if UPCAST:
        q = q.to(tl.float32)
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(SLOPES + head) * 1.4426950408889634
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)

    # Keys low .. left - 1 are left of some rows' window, all rows see left .. whole - 1, and whole .. high - 1 are
    # right of some rows or behind the end of the sequence.
    low = 0
    left = 0
    if CAUSAL:
        high = tl.minimum(length, first + BM)
        whole = (first + 1) // BN * BN
    else:
        high = length
        whole = length // BN * BN
    if WINDOW > 0:
        low = tl.maximum(0, first - WINDOW + 1) // BN * BN
        left = tl.minimum(whole, tl.cdiv(tl.maximum(0, first + BM - WINDOW), BN) * BN)
        top, total, acc = _tile(
            top, total, acc, q, KEYS, VALUES, low, left, start, length, mine, kv, scale, softcap, slope,
            D, BN, True, CAUSAL, WINDOW, SOFTCAP, HAS_SLOPES, UPCAST,
        )  # fmt: skip
    top, total, acc = _tile(
        top, total, acc, q, KEYS, VALUES, left, whole, start, length, mine, kv, scale, softcap, slope,
        D, BN, False, CAUSAL, WINDOW, SOFTCAP, HAS_SLOPES, UPCAST,
    )  # fmt: skip
    top, total, acc = _tile(
        top, total, acc, q, KEYS, VALUES, whole, high, start, length, mine, kv, scale, softcap, slope,
        D, BN, True, CAUSAL, WINDOW, SOFTCAP, HAS_SLOPES, UPCAST,
    )  # fmt: skip

    lse = tl.where(total == 0.0, -float("inf"), top + tl.log2(total))
    if HAS_SINKS:
        sink = tl.load(SINKS + head) * 1.4426950408889634
        total += tl.exp2(sink - tl.where(top == -float("inf"), sink, top))
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    # By pointers: a tile's last rows may be the next sequence's.
    real = mine < length
    place = (start + mine).to(tl.int64) * (tl.num_programs(1) * GROUP) + head
    d = tl.arange(0, D)
    tl.store(
        OUT + place[:, None] * DIM + d[None, :], acc.to(OUT.dtype.element_ty), mask=real[:, None] & (d[None, :] < DIM)
    )
    tl.store(LSE + place, lse, mask=real)


def shape_for(dim: int) -> tuple[int, int, int]:
    """Rows and width of a tile for heads ``dim`` wide, and how many tiles of keys and values are under way at a time.

    What fits into the registers and the shared memory of an H100 without spilling, every feature included.
    """
    if dim <= 64:
        return 128, 128, 3
    return (128, 64, 3) if dim <= 128 else (128, 64, 2)


def reason(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Why this kernel cannot run there, in half a sentence; None where it can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "it needs a GPU of the Hopper generation"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} is neither torch.bfloat16 nor torch.float16"
    if dim % 8 or not 16 <= dim <= 256:
        return f"heads {dim} wide are not 16 to 256 wide in steps of 8"
    return None


def descriptor(x: torch.Tensor, rows: int, width: int) -> TensorDescriptor:
    """Ragged descriptor of [tokens, heads, dim] that loads ``rows`` tokens of one head, ``width`` numbers of each.

    Its coordinates are head, token, number. Raises ValueError where the accelerator cannot address the tensor.
    """
    unit = 16 // x.element_size()
    if x.stride(2) != 1 or x.stride(0) % unit or x.stride(1) % unit or x.data_ptr() % 16:
        raise ValueError(
            f"tokens and heads must begin at multiples of 16 bytes, the last dimension be contiguous: {x.stride()}"
        )
    return create_ragged_descriptor(x.transpose(0, 1), [1, rows, width], ragged_dim=1)


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError where queries, keys and values do not fit together."""
    same = q.dtype == k.dtype == v.dtype and k.shape == v.shape and k.shape[::2] == q.shape[::2]
    if not same or q.shape[1] % k.shape[1]:
        told = ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"these do not fit together: {told}")


def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    cut: tuple[torch.Tensor, torch.Tensor],
    *,
    scale: float,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    rows: int = 0,
    width: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of whole sequences among themselves, each token seeing its own sequence alone.

    Args:
        q: [tokens, heads, dim]; k, v: [tokens, kv heads, dim], sequence after sequence, in the same type. Tokens and
            heads may be far apart, as in a product that gave all three, but must begin at multiples of 16 bytes.
        starts: int32 [sequences + 1], where each sequence's tokens begin; rows behind the last are neither read nor
            written.
        cut: what ``kernels.prefill.triton.tiles(counts, 1, rows)`` gives for the lengths, on the device.
        scale, softcap, sinks, slopes: as for ``kernels.decode.triton.decode``.
        causal: whether a token sees none behind it.
        window: how many tokens each sees, itself included, 0 for all; it and ``slopes`` need ``causal``.
        rows, width: of a tile, ``rows`` as in ``cut``; 0 for what ``shape_for`` gives.

    Returns:
        The output [tokens, heads, dim], and the base-2 log-sum-exp, fp32 [tokens, heads], sinks left out.
    """
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    check(q, k, v)
    if (window or slopes is not None) and not causal:
        raise ValueError("a window and slopes are counted back from a token: they need causal=True")
    wide = max(16, triton.next_power_of_2(dim))
    usual_rows, usual_width, stages = shape_for(dim)
    rows, width = rows or usual_rows, width or usual_width
    sequence, first = cut
    out = torch.empty(tokens, heads, dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    if not len(sequence):
        return out, lse
    nothing = lse
    _prefill[(len(sequence) * (heads // kv_heads), kv_heads)](
        descriptor(q, rows, wide), descriptor(k, width, wide), descriptor(v, width, wide), starts, sequence, first,
        nothing if slopes is None else slopes, nothing if sinks is None else sinks, out, lse,
        scale * LOG2E, softcap * LOG2E,
        GROUP=heads // kv_heads, DIM=dim, D=wide, BM=rows, BN=width, CAUSAL=causal, WINDOW=window,
        SOFTCAP=softcap > 0, HAS_SINKS=sinks is not None, HAS_SLOPES=slopes is not None, UPCAST=not q.is_cuda,
        num_warps=8 if rows > 64 else 4, num_stages=stages,
    )  # fmt: skip
    return out, lse
