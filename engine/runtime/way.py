"""How a model is run over our cache, as far as that is a choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spec.choices import Attention, Fusion, Graphs, KvDtype

CACHE_TYPES = {KvDtype.INT8: torch.int8, KvDtype.FP8: torch.float8_e4m3fn}
CACHE_NAMES = {dtype: str(name) for name, dtype in CACHE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Way:
    """``auto`` leaves a choice to the runtime, which takes the fastest that computes what the model does."""

    attention: Attention = Attention.AUTO
    fusion: Fusion = Fusion.AUTO
    graphs: Graphs = Graphs.AUTO
    kv_cache: KvDtype = KvDtype.AUTO

    def cache_type(self, weights: torch.dtype) -> torch.dtype:
        """The number format of the KV cache of a model with such weights."""
        return CACHE_TYPES.get(self.kv_cache, weights)
