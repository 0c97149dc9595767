"""Our attention over the paged cache as transformers calls it: an attention function and a cache, no patched file.

transformers hands a registered attention function the new tokens' queries and whatever the cache gave back for their
keys and values. Our cache stores the new keys and values in their blocks and gives them back; the function reads the
blocks by the tables of the step, which it finds at the module that calls it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from engine.runtime import triton_attention
from engine.runtime.batch import Batch, Ragged
from engine.runtime.graphs import Decoding
from engine.runtime.kv_cache import KvCache
from kernels.native import ops

NAME = "isoquant_paged"


class Step:
    """Where the attention modules of a model find the cache of the step at hand."""

    paged: PagedCache

    def clear(self) -> None:
        """Hold on to no cache."""
        vars(self).pop("paged", None)


class PagedLayer(CacheLayerMixin):
    """One layer's view of the cache; ``update`` stores the new tokens' keys and values."""

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def __init__(self, paged: PagedCache, index: int) -> None:
        super().__init__()
        self._paged = paged
        self._index = index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the blocks are there."""

    def update(self, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """``k`` and ``v`` [1, heads, tokens, dim]; returned as they came."""
        self._paged.store(self._index, k[0].transpose(0, 1), v[0].transpose(0, 1))
        return k, v

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The attention function makes its own mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Positions are always given from outside."""
        return 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class PagedCache(Cache):
    """What a model of transformers takes for its cache, over the blocks of a KvCache, for one step.

    ``batch``: the same step for the C++ kernels, where they are to run; ``triton``: the Triton kernels run.
    """

    def __init__(
        self, kv: KvCache, ragged: Ragged | Decoding, batch: Batch | None = None, triton: bool = False
    ) -> None:
        super().__init__(layers=[PagedLayer(self, i) for i in range(len(kv.shapes))])
        self.kv = kv
        self.ragged = ragged
        self.triton = triton
        self.rows = None if batch is None else ops.Rows.of(batch.positions, batch.slots, batch.tables)
        self.scratch = None if batch is None else ops.Scratch()

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write ``k`` and ``v`` [tokens, heads, dim]."""
        if self.rows is None:
            self.kv.write(layer, k, v, self.ragged.blocks, self.ragged.places)
        else:
            cache = ops.Cache.of(*self.kv.tensors(layer))
            ops.store(k.float().contiguous(), v.float().contiguous(), self.kv.dtype, cache, self.rows)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``query`` [1, heads, tokens, dim] -> [1, tokens, heads, dim]; see the module's docstring."""
    paged: PagedCache = module.isoquant_step.paged
    q = query[0].transpose(0, 1)
    scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    how = (scale, sliding_window or 0, float(softcap or 0.0), s_aux)
    if paged.triton:
        out = triton_attention.attend(q, paged.kv, module.layer_idx, paged.ragged, *how)
    elif paged.rows is None:
        out = gathered(q, paged.kv, module.layer_idx, paged.ragged, *how)
    else:
        out = native(q, paged, module.layer_idx, *how)
    return out[None], None


def native(
    q: torch.Tensor,
    paged: PagedCache,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The C++ kernel: ``q`` [tokens, heads, dim] -> [tokens, heads, dim]."""
    assert paged.rows is not None
    assert paged.scratch is not None
    shape = paged.kv.shapes[layer]
    flat = None if sinks is None else sinks.float().contiguous()
    heads = ops.Heads(
        q.shape[1], shape.heads, q.shape[2], scale, softcap, window, None if flat is None else flat.data_ptr()
    )
    cache = ops.Cache.of(*paged.kv.tensors(layer))
    out = ops.attend(q.float().contiguous(), paged.kv.dtype, cache, paged.rows, heads, paged.scratch)
    return out.view(q.shape).to(q.dtype)


def gathered(
    q: torch.Tensor,
    kv: KvCache,
    layer: int,
    ragged: Ragged | Decoding,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The plain reference: gather the blocks, two matrix products with the query heads of a group as rows.

    ``q`` [tokens, heads, dim] -> [tokens, heads, value dim]. Sums and softmax in fp32.
    """
    keys, values = kv.read(layer, ragged.tables)
    n, most = ragged.query.shape
    groups, (heads, dim) = q.shape[1] // kv.shapes[layer].heads, q.shape[1:]
    rows = q[ragged.query].view(n, most, heads // groups, groups, dim).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(n, heads // groups, groups * most, dim)
    seen = ragged.key_positions[None, None] <= ragged.query_positions[:, :, None]
    if window:
        seen &= ragged.key_positions[None, None] > ragged.query_positions[:, :, None] - window
    # Behind a sequence's end lies what others left: no number at all must come through, not even as 0 times NaN.
    filled = seen.any(1)
    keys = keys.masked_fill(~filled[:, None, None, :], 0.0)
    values = values.masked_fill(~filled[:, None, :, None], 0.0)
    scores = (rows.float() @ keys.float()) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(n, heads // groups, groups, most, -1).masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        sink = sinks.float().view(1, heads // groups, groups, 1, 1).expand(n, -1, -1, most, 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    out = weights.reshape(n, heads // groups, groups * most, -1) @ values.float()
    out = out.view(n, heads // groups, groups, most, -1).permute(0, 3, 1, 2, 4).reshape(n * most, heads, -1)
    return out[ragged.back].to(q.dtype)


AttentionInterface.register(NAME, attend)
