"""Which sequences of a decoding step read which keys together, planned as the step is, for kernels.forest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.runtime.blocks import BLOCK
from kernels.forest.plan import Size, plan

Kind = tuple[int, int, int]
"""Query heads, key/value heads and the width of a head of some layers."""


class Forest:
    """Plans of steps of ``n`` sequences, one for each kind of layer, in arrays that stay where they are.

    A plan holds until a table changes where it was shared, or a sequence comes or goes, so most steps keep the last.
    """

    def __init__(self, n: int, kinds: Sequence[Kind], dtype: torch.dtype, device: torch.device) -> None:
        from kernels.forest.triton import size_for

        self._sizes = {(h, kv): size_for(n, h, kv, dim, dtype, device) for h, kv, dim in kinds}
        self._arrays = {k: torch.zeros(s.ints, dtype=torch.int32, device=device) for k, s in self._sizes.items()}
        self._lengths = np.full(n, np.iinfo(np.int64).max)  # nothing was planned yet
        self._tables, self._open = np.zeros((n, 0), dtype=np.int32), np.zeros((n, 0), dtype=bool)
        self._shares = False

    def update(self, tables: np.ndarray, lengths: np.ndarray) -> bool:
        """Plan a step with ``tables`` [n, width] and ``lengths`` [n]; whether reading together is worth it."""
        if not self._holds(tables, lengths):
            whole = lengths // BLOCK
            self._tables, self._lengths = tables[:, : int(whole.max())].copy(), lengths.copy()
            self._open = np.arange(self._tables.shape[1])[None] >= whole[:, None]
            made = {key: plan(tables, lengths, size) for key, size in self._sizes.items()}
            self._shares = any(p.shares for p in made.values())
            if self._shares:
                for key, found in made.items():
                    self._arrays[key].copy_(torch.from_numpy(found.flat))
        return self._shares

    def _holds(self, tables: np.ndarray, lengths: np.ndarray) -> bool:
        """Whether each sequence is still the one that was planned, or one that shares all that was complete then."""
        known = self._tables.shape[1]
        if known > tables.shape[1] or (lengths < self._lengths).any():
            return False
        return bool(((self._tables == tables[:, :known]) | self._open).all())

    def of(self, heads: int, kv_heads: int) -> tuple[torch.Tensor, Size] | None:
        """The plan for layers with such heads, on the device; None where none was asked for."""
        key = heads, kv_heads
        return (self._arrays[key], self._sizes[key]) if key in self._sizes else None
