"""The tensors of a paged KV cache, one pair for each layer, and plain reading and writing of them.

On a processor keys lie transposed inside their block, ``[blocks, heads, dim, BLOCK]``, values as they come,
``[blocks, heads, BLOCK, dim]``: a product of a query with a block of keys then runs along whole vectors. For the Triton
kernels both lie as they come (``rowwise``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.runtime.blocks import BLOCK


@dataclass(frozen=True, slots=True)
class KvShape:
    """One layer's keys and values: heads, widths of a key and of a value."""

    heads: int
    key_dim: int
    value_dim: int


class KvCache:
    """``count`` blocks in all layers. Memory of a block that was never written is not touched."""

    def __init__(
        self, shapes: Sequence[KvShape], count: int, dtype: torch.dtype, device: torch.device, rowwise: bool = False
    ) -> None:
        self.rowwise = rowwise
        self.shapes = tuple(shapes)
        self.count = count
        self.dtype = dtype
        self.device = device
        inner = [(BLOCK, s.key_dim) if rowwise else (s.key_dim, BLOCK) for s in shapes]
        self.keys = [
            torch.empty(count, s.heads, *i, dtype=dtype, device=device) for s, i in zip(shapes, inner, strict=True)
        ]
        self.values = [torch.empty(count, s.heads, BLOCK, s.value_dim, dtype=dtype, device=device) for s in shapes]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return block_bytes(self.shapes, self.dtype)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination) each, as if one after the other."""
        targets = {t for _, t in pairs}
        chained = len(targets) < len(pairs) or not targets.isdisjoint(s for s, _ in pairs)
        for part in [[pair] for pair in pairs] if chained else [pairs]:
            source = torch.tensor([s for s, _ in part], device=self.device)
            target = torch.tensor([t for _, t in part], device=self.device)
            for tensor in (*self.keys, *self.values):
                tensor[target] = tensor[source]

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, blocks: torch.Tensor, places: torch.Tensor) -> None:
        """Put ``k`` and ``v`` [tokens, heads, dim] of some tokens into their blocks, at their places [tokens]."""
        if self.rowwise:
            self.keys[layer][blocks, :, places] = k
        else:
            self.keys[layer][blocks, :, :, places] = k
        self.values[layer][blocks, :, places] = v

    def read(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [sequences, heads, dim, positions] and values [sequences, heads, positions, dim] of whole tables.

        ``tables`` [sequences, blocks]: what stands behind a sequence's own end is whatever lies there, NaN included.
        """
        n, width = tables.shape
        shape = self.shapes[layer]
        keys = self.keys[layer][tables].permute(*((0, 2, 4, 1, 3) if self.rowwise else (0, 2, 3, 1, 4)))
        values = self.values[layer][tables].permute(0, 2, 1, 3, 4)
        return (
            keys.reshape(n, shape.heads, shape.key_dim, width * BLOCK),
            values.reshape(n, shape.heads, width * BLOCK, shape.value_dim),
        )


def block_bytes(shapes: Sequence[KvShape], dtype: torch.dtype) -> int:
    """Bytes that a block takes in all layers."""
    return sum(s.heads * (s.key_dim + s.value_dim) for s in shapes) * BLOCK * dtype.itemsize
