"""The Triton kernels as the runtime's attention: one for steps in which each sequence feeds a token, one for others."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from engine.runtime.batch import Ragged
from engine.runtime.kv_cache import KvCache, KvShape

WIDEST = 256  # numbers of a head that a tile holds in registers


def reason(shapes: Sequence[KvShape], dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run such a cache; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if max(max(s.key_dim, s.value_dim) for s in shapes) > WIDEST:
        return f"its heads are wider than {WIDEST}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its numbers are {str(dtype).removeprefix('torch.')}"
    return None


def attend(
    q: torch.Tensor,
    kv: KvCache,
    layer: int,
    step: Any,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """``q`` [tokens, heads, dim] -> [tokens, heads, value dim]; ``step`` is a Ragged or a Decoding."""
    from kernels.decode.triton import decode
    from kernels.prefill.triton import prefill, rows_for

    pieces = step.pieces
    keys, values = kv.keys[layer], kv.values[layer]
    how: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    if sinks is not None:
        how["sinks"] = sinks.float().contiguous()
    if pieces.single:
        return decode(q[:, None], keys, values, pieces.tables, pieces.lengths, **how)[0][:, 0]
    assert isinstance(step, Ragged)
    shape = kv.shapes[layer]
    group = q.shape[1] // shape.heads
    rows = rows_for(max(shape.key_dim, shape.value_dim), group)
    return prefill(
        q, keys, values, pieces.tables, pieces.lengths, pieces.starts, step.tiles(group, rows), rows=rows, **how
    )[0]
