"""The native kernels as functions on torch tensors, and the structures that ``forward.cpp`` reads."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p, pointer
from typing import Any

import numpy as np
import torch

from kernels.native.build import library
from kernels.native.matrix import Matrix

BLOCK = 16
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CACHE_CODES = CODES | {torch.int8: 3, torch.float8_e4m3fn: 6}
MAX_AT_ONCE = 4  # query heads of a group that one pass over a key/value head serves


class Heads(Structure):
    """How a layer attends: head counts and width, softmax scale, softcap (0: none), window (0: all), sinks or null."""

    _fields_ = (
        *((name, c_int32) for name in ("query", "kv", "dim")),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int32),
        ("sinks", c_void_p),
    )


class Rows(Structure):
    """A batch: ``m`` tokens with their positions and their rows of the block tables, which are ``width`` wide."""

    _fields_ = (("m", c_int32), ("width", c_int32), *((n, c_void_p) for n in ("positions", "table_row", "tables")))

    @classmethod
    def of(cls, positions: np.ndarray, table_row: np.ndarray, tables: np.ndarray) -> Rows:
        """From int32 arrays [m], [m] and [sequences, width], contiguous; the caller keeps them alive."""
        return cls(len(positions), tables.shape[1], address(positions), address(table_row), address(tables))


class Cache(Structure):
    """Where the KV blocks of a layer lie, and their scales, null where they have none; see ``Cache`` in cache.h."""

    _fields_ = tuple((n, c_void_p) for n in ("keys", "values", "key_scales", "value_scales"))

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor, *scales: torch.Tensor) -> Cache:
        """``keys`` [blocks, kv, dim, 16] and ``values`` [blocks, kv, 16, dim] of one type of ``CACHE_CODES``.

        ``scales``: those of keys and of values, fp32 [blocks, kv, 16], where the type has one byte.
        """
        return cls(*(t.data_ptr() for t in (keys, values, *scales)))


class Layer(Structure):
    """One layer's matrices, norms and KV blocks, and its own heads and width; see ``Layer`` in forward.cpp."""

    _fields_ = (
        *((n, c_void_p) for n in ("norm_in", "norm_mlp")),
        *((n, POINTER(Matrix)) for n in ("qkv", "o", "gate_up", "down")),
        *((n, c_void_p) for n in ("q_norm", "k_norm")),
        ("cache", Cache),
        *((n, c_int32) for n in ("qkv_parts", "gate_up_parts", "query", "kv", "mlp", "window", "rotary")),
    )


class Model(Structure):
    """A whole model; see ``Model`` in forward.cpp."""

    _fields_ = (
        *((n, c_int32) for n in ("layers", "hidden", "vocab", "dim", "table", "cache")),
        ("eps", c_float),
        ("scale", c_float),
        ("embedding", c_void_p),
        *((n, POINTER(Matrix)) for n in ("lookup", "head")),
        *((n, c_void_p) for n in ("norm", "cos", "sin")),
        ("layer", POINTER(Layer)),
    )


def attend(
    q: torch.Tensor, dtype: torch.dtype, cache: Cache, rows: Rows, heads: Heads, scratch: Scratch
) -> torch.Tensor:
    """Attention of ``q`` [m, query, dim] (fp32) over a paged cache of ``dtype``; fp32 [m, query * dim].

    A row reads up to its position.
    """
    out = torch.empty(rows.m, heads.query * heads.dim)
    scores, each = scratch.scores(rows.width)
    given = (pointer(heads), pointer(rows), _at(q), heads.query * heads.dim, pointer(cache))
    library().isoquant_attend(CACHE_CODES[dtype], *given, scores, c_int64(each), _at(out))
    return out


def store(k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype, cache: Cache, rows: Rows) -> None:
    """Write ``k`` and ``v`` [m, kv, dim] (fp32, contiguous) to the blocks and places of their rows."""
    kv, dim = k.shape[1:]
    width = kv * dim
    given = (pointer(rows), _at(k), width, _at(v), width, pointer(cache))
    library().isoquant_store(CACHE_CODES[dtype], kv, dim, *given)


class Scratch:
    """Memory for attention scores, one part for each thread; grows as the block tables get wider."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def scores(self, width: int) -> tuple[c_void_p, int]:
        """Address, and floats for each thread, where a sequence has at most ``width`` blocks."""
        each = MAX_AT_ONCE * width * BLOCK + 16  # 16 apart: no two threads write to one cache line
        if len(self._buffer) < each * library().threads:
            self._buffer = torch.empty(each * library().threads)
        return _at(self._buffer), each


def address(array: np.ndarray) -> int:
    """Where the numbers of an array lie; ``array.ctypes.data`` takes longer, and each step asks several times."""
    return int(array.__array_interface__["data"][0])


def _at(tensor: torch.Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())


def forward_of(model: Model) -> Any:
    """The three calls of a forward pass as functions of addresses, and the model's own; see NativeRunner."""
    lib = library()
    return lib.isoquant_embed, lib.isoquant_layers, lib.isoquant_head, ctypes.byref(model)


def work_of(model: Model, m: int) -> int:
    """Floats of working memory that a forward pass of ``m`` rows needs."""
    return int(library().isoquant_work(ctypes.byref(model), m))
