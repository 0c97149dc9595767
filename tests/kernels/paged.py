"""Paged caches with poison in every place that no token has, and how far a result may be from fp64."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # it may be the simulated one
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# PyTorch's own error against fp64 in these types, on such inputs, is half of this.
LIMIT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class Paged:
    """Keys and values of sequences of ``lengths`` tokens in blocks in random order; everything else is NaN."""

    def __init__(
        self, lengths: tuple[int, ...], *, kv_heads: int = 2, dim: int = 64, value_dim: int = 0, page: int = 16,
        dtype: torch.dtype = torch.float32, seed: int = 0,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        n, width = len(lengths), -(-max(lengths) // page) + 1
        count = n * width + 3
        self.page = page
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.tables = torch.randperm(count, generator=g)[: n * width].view(n, width).int()
        self.keys = torch.full((count, kv_heads, page, dim), math.nan).to(dtype)
        self.values = torch.full((count, kv_heads, page, value_dim or dim), math.nan).to(dtype)
        for i, length in enumerate(lengths):
            at = torch.arange(length)
            where = self.tables[i, at // page].long(), slice(None), at % page
            self.keys[where] = torch.randn(length, kv_heads, dim, generator=g).to(dtype)
            self.values[where] = torch.randn(length, kv_heads, value_dim or dim, generator=g).to(dtype)
        self.keys, self.values = self.keys.to(DEVICE), self.values.to(DEVICE)
        self.tables, self.lengths = self.tables.to(DEVICE), self.lengths.to(DEVICE)

    def quantized(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values of one byte with their scales [blocks, kv heads, page]; NaN scales where nothing is."""
        keys, key_scales = _quantized(self.keys, dtype)
        values, value_scales = _quantized(self.values, dtype)
        return keys, values, key_scales, value_scales


def _quantized(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    largest = 127.0 if dtype == torch.int8 else 448.0
    scale = x.float().abs().amax(-1) / largest
    whole = torch.nan_to_num(x.float() / scale[..., None])
    return (whole.round() if dtype == torch.int8 else whole).to(dtype), scale


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; infinite where a number is not finite."""
    if not torch.isfinite(found).all():
        return math.inf
    return float((found.double() - expected).norm() / expected.norm())


def tree(parents: list[int]) -> list[int]:
    """For each node of a draft tree the bits of its ancestors and itself."""
    bits: list[int] = []
    for node, parent in enumerate(parents):
        bits.append((bits[parent] if parent >= 0 else 0) | 1 << node)
    return bits


def features(heads: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """What attention may be asked for besides scores and sums."""
    g = torch.Generator().manual_seed(seed)
    return {
        "plain": {},
        "window": {"window": 20},
        "softcap": {"softcap": 5.0},
        "sinks": {"sinks": torch.randn(heads, generator=g).to(DEVICE)},
        "slopes": {"slopes": torch.rand(heads, generator=g).to(DEVICE)},
        "all": {
            "window": 7,
            "softcap": 3.0,
            "sinks": torch.randn(heads, generator=g).to(DEVICE),
            "slopes": torch.rand(heads, generator=g).to(DEVICE),
        },
    }
