"""The Triton kernels as the runtime's attention: for sequences that write, alone or together, and for prompts."""

from __future__ import annotations

from typing import Any

import torch

from engine.runtime.batch import Pieces, Ragged
from engine.runtime.kv_cache import KvCache


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
    how: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    if sinks is not None:
        how["sinks"] = sinks.float().contiguous()
    if kv.is_quantized:
        how |= {"key_scales": kv.key_scales[layer], "value_scales": kv.value_scales[layer]}
    found = [_attend(q[pieces.rows], kv, layer, step, pieces, how) for pieces in step.pieces]
    return found[0] if len(found) == 1 else torch.cat(found)


def _attend(q: torch.Tensor, kv: KvCache, layer: int, step: Any, pieces: Pieces, how: dict[str, Any]) -> torch.Tensor:
    """Of the rows of ``pieces`` alone."""
    from kernels.decode.triton import decode
    from kernels.forest.triton import forest
    from kernels.prefill.triton import prefill, rows_for

    shape = kv.shapes[layer]
    cache = kv.keys[layer], kv.values[layer], pieces.tables, pieces.lengths
    if pieces.new:
        plan = None if pieces.forest is None else pieces.forest.of(q.shape[1], shape.heads)
        if plan is not None:
            return forest(q, *cache, *plan, **how)[0]
        return decode(q.unflatten(0, (-1, pieces.new)), *cache, **how)[0].flatten(0, 1)
    assert isinstance(step, Ragged)
    assert pieces.starts is not None
    group = q.shape[1] // shape.heads
    rows = rows_for(max(shape.key_dim, shape.value_dim), group, q.element_size())
    return prefill(q, *cache, pieces.starts, step.tiles(group, rows), rows=rows, **how)[0]
