"""The Triton kernels as the runtime's attention: two for steps that feed each sequence alike, one for others."""

from __future__ import annotations

from typing import Any

import torch

from engine.runtime.batch import Ragged
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
    from kernels.decode.triton import decode
    from kernels.prefill.triton import prefill, rows_for

    pieces = step.pieces
    keys, values = kv.keys[layer], kv.values[layer]
    how: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    if sinks is not None:
        how["sinks"] = sinks.float().contiguous()
    if kv.is_quantized:
        how |= {"key_scales": kv.key_scales[layer], "value_scales": kv.value_scales[layer]}
    if pieces.new:
        alone = pieces.new > 1 or step.forest is None
        plan = None if alone else step.forest.of(q.shape[1], kv.shapes[layer].heads)
        if plan is not None:
            from kernels.forest.triton import forest

            return forest(q, keys, values, pieces.tables, pieces.lengths, *plan, **how)[0]
        rows = q.unflatten(0, (-1, pieces.new))
        return decode(rows, keys, values, pieces.tables, pieces.lengths, **how)[0].flatten(0, 1)
    assert isinstance(step, Ragged)
    shape = kv.shapes[layer]
    group = q.shape[1] // shape.heads
    rows = rows_for(max(shape.key_dim, shape.value_dim), group, q.element_size())
    return prefill(
        q, keys, values, pieces.tables, pieces.lengths, pieces.starts, step.tiles(group, rows), rows=rows, **how
    )[0]
