"""What all attention kernels do with a tile of keys and values: read it from the cache, score it, weigh it.

The Triton functions become part of the kernels that call them: the machine code is that of one function written out.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

LOG2E = math.log2(math.e)


@triton.jit
def tanh(x):
    """By way of 2^x, which the hardware has."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.885390081777927))  # 2 log2(e)


@triton.jit
def weigh(s, top, total):
    """Weights of a tile's scores, and what the sums before shrink by: one step of the online softmax."""
    higher = tl.maximum(top, tl.max(s, 1))
    base = tl.where(higher == -float("inf"), 0.0, higher)  # a row that sees nothing here
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(top - base)
    return p, shrink, higher, total * shrink + tl.sum(p, 1)


@triton.jit
def score(
    q, K, KEY_SCALES, token, there, d, scale, softcap,
    D: tl.constexpr, SOFTCAP: tl.constexpr, QUANTIZED: tl.constexpr, UPCAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Scores [rows, keys] of the keys at places ``token`` of the cache, those ``there``; ``WHOLE``: all of them are."""
    if WHOLE:
        k = tl.load(K + token[None, :] * D + d[:, None], mask=d[:, None] < D, other=0.0)
    else:
        k = tl.load(K + token[None, :] * D + d[:, None], mask=there[None, :] & (d[:, None] < D), other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
    elif QUANTIZED:
        k = k.to(q.dtype)
    s = tl.dot(q, k, input_precision="ieee") * scale
    if QUANTIZED:
        s = s * tl.load(KEY_SCALES + token, mask=there, other=0.0)[None, :]
    if SOFTCAP:
        s = tanh(s / softcap) * softcap
    return s


@triton.jit
def gather(
    acc, shrink, p, q, V, VALUE_SCALES, token, there, dv,
    DV: tl.constexpr, QUANTIZED: tl.constexpr, UPCAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The sums [rows, width] of what came before, shrunk, and of the values at places ``token``, weighted by ``p``."""
    if WHOLE:
        v = tl.load(V + token[:, None] * DV + dv[None, :], mask=dv[None, :] < DV, other=0.0)
    else:
        v = tl.load(V + token[:, None] * DV + dv[None, :], mask=there[:, None] & (dv[None, :] < DV), other=0.0)
    if QUANTIZED:
        p = p * tl.load(VALUE_SCALES + token, mask=there, other=0.0)[None, :]
    if UPCAST:
        v = v.to(tl.float32)
    elif QUANTIZED:
        v = v.to(q.dtype)
    return tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")


def padded(width: int) -> int:
    """The width of a tile for heads so wide: a power of two, and what the tensor cores take at least."""
    return max(16, triton.next_power_of_2(width))


def units(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def is_hopper(device: torch.device) -> bool:
    """Whether a device is a GPU of compute capability 9.x, which multiplies 64 rows at a time."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def stages_for(dim: int, number: int, hopper: bool) -> int:
    """Stages of Triton's pipeline over the keys, for heads ``dim`` wide and queries of ``number`` bytes a number.

    A tile is found through the page table, so it takes two of them. With three each tile is waited for as soon as its
    copy begins; with five the next one is copied meanwhile. Only Hopper has the shared memory for that, and fp32 would
    take twice as much.
    """
    if hopper and number < 4:
        return 5
    return 3 if dim <= 128 else 2


def tile_for(dim: int, number: int, is_quantized: bool) -> int:
    """Keys that a program reads at a time, for few rows. ``number``: bytes of a number of the queries.

    Products of fp32 take a register for each number, and so do the keys that are made of codes.
    """
    if number < 4:
        return 64
    if is_quantized:
        return 32 if dim <= 64 else 16
    return 64 if dim <= 128 else 16
