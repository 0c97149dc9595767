"""The tensors of a paged KV cache, one pair for each layer, and plain reading and writing of them.

On a processor keys lie transposed inside their block, ``[blocks, heads, dim, BLOCK]``, values as they come,
``[blocks, heads, BLOCK, dim]``: a product of a query with a block of keys then runs along whole vectors. For the Triton
kernels both lie as they come (``rowwise``). A cache of one byte a number has a scale for each token of each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.runtime.blocks import BLOCK

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # numbers that a type of one byte holds


@dataclass(frozen=True, slots=True)
class KvShape:
    """One layer's keys and values: heads, widths of a key and of a value."""

    heads: int
    key_dim: int
    value_dim: int


class KvCache:
    """``count`` blocks in all layers. Memory of a block that was never written is not touched.

    ``dtype`` int8 or fp8 (e4m3): each key and each value of a head has a scale of its own, its largest number over the
    largest that the type holds, in ``key_scales`` and ``value_scales`` fp32 [blocks, heads, BLOCK].
    """

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
        scaled = self.shapes if dtype in LARGEST else ()
        self.key_scales = [torch.empty(count, s.heads, BLOCK, device=device) for s in scaled]
        self.value_scales = [torch.empty(count, s.heads, BLOCK, device=device) for s in scaled]

    @property
    def is_quantized(self) -> bool:
        """Whether keys and values have scales."""
        return self.dtype in LARGEST

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return block_bytes(self.shapes, self.dtype)

    def tensors(self, layer: int) -> tuple[torch.Tensor, ...]:
        """Keys and values of a layer, and their scales where they have some."""
        scales = (self.key_scales[layer], self.value_scales[layer]) if self.is_quantized else ()
        return self.keys[layer], self.values[layer], *scales

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination) each, as if one after the other."""
        targets = {t for _, t in pairs}
        chained = len(targets) < len(pairs) or not targets.isdisjoint(s for s, _ in pairs)
        for part in [[pair] for pair in pairs] if chained else [pairs]:
            source = torch.tensor([s for s, _ in part], device=self.device)
            target = torch.tensor([t for _, t in part], device=self.device)
            for tensor in (*self.keys, *self.values, *self.key_scales, *self.value_scales):
                _bits(tensor)[target] = _bits(tensor)[source]

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, blocks: torch.Tensor, places: torch.Tensor) -> None:
        """Put ``k`` and ``v`` [tokens, heads, dim] of some tokens into their blocks, at their places [tokens]."""
        if self.is_quantized:
            k, self.key_scales[layer][blocks, :, places] = quantize(k, self.dtype)
            v, self.value_scales[layer][blocks, :, places] = quantize(v, self.dtype)
        keys = _bits(self.keys[layer])
        if self.rowwise:
            keys[blocks, :, places] = _bits(k)
        else:
            keys[blocks, :, :, places] = _bits(k)
        _bits(self.values[layer])[blocks, :, places] = _bits(v)

    def read(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [sequences, heads, dim, positions] and values [sequences, heads, positions, dim] of whole tables.

        ``tables`` [sequences, blocks]: what stands behind a sequence's own end is whatever lies there, NaN included.
        A cache of one byte is read as fp32.
        """
        n, width = tables.shape
        shape = self.shapes[layer]
        keys = _bits(self.keys[layer])[tables].view(self.dtype)
        values = _bits(self.values[layer])[tables].view(self.dtype)
        keys = keys.permute(*((0, 2, 4, 1, 3) if self.rowwise else (0, 2, 3, 1, 4)))
        values = values.permute(0, 2, 1, 3, 4)
        if self.is_quantized:
            keys = keys.float() * self.key_scales[layer][tables].transpose(1, 2)[:, :, None]
            values = values.float() * self.value_scales[layer][tables].transpose(1, 2)[..., None]
        return (
            keys.reshape(n, shape.heads, shape.key_dim, width * BLOCK),
            values.reshape(n, shape.heads, width * BLOCK, shape.value_dim),
        )


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [..., dim] as ``dtype`` and its scales fp32 [...]; nothing but zeros has the scale 1e-8."""
    scale = (x.float().abs().amax(-1) / LARGEST[dtype]).clamp(min=1e-8)
    found = x.float() / scale[..., None]
    return (found.round() if dtype == torch.int8 else found).to(dtype), scale


def _bits(x: torch.Tensor) -> torch.Tensor:
    """The same memory in a type that can be gathered and scattered: PyTorch has neither for fp8."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def block_bytes(shapes: Sequence[KvShape], dtype: torch.dtype) -> int:
    """Bytes that a block takes in all layers, scales included."""
    scales = 2 * torch.float32.itemsize if dtype in LARGEST else 0
    return sum(s.heads * ((s.key_dim + s.value_dim) * dtype.itemsize + scales) for s in shapes) * BLOCK
