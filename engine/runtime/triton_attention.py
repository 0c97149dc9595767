"""The Triton kernels as the runtime's attention: for steps in which each sequence feeds a token two, one for others."""

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
    if pieces.single:
        plan = None if step.forest is None else step.forest.of(q.shape[1], kv.shapes[layer].heads)
        if plan is not None:
            from kernels.forest.triton import forest

            return forest(q, keys, values, pieces.tables, pieces.lengths, *plan, **how)[0]
        return decode(q[:, None], keys, values, pieces.tables, pieces.lengths, **how)[0][:, 0]
    assert isinstance(step, Ragged)
    shape = kv.shapes[layer]
    group = q.shape[1] // shape.heads
    rows = rows_for(max(shape.key_dim, shape.value_dim), group, q.element_size())
    return prefill(
        q, keys, values, pieces.tables, pieces.lengths, pieces.starts, step.tiles(group, rows), rows=rows, **how
    )[0]
