"""transformers' decoding steps through torch.compile: a static cache, and batches of one size.

What is compiled holds for the shapes it was compiled with, and compiling takes longer than most runs. So the cache is
as long as the longest sequence of the run, and a batch that is not full is filled up with its last row, whose text is
thrown away: what that costs is part of this way to run a model, and is measured.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CompileConfig, StaticCache


class Compiled:
    """For batches of ``batch_size`` sequences of up to ``longest`` tokens of one model."""

    def __init__(self, model: Any, batch_size: int, longest: int) -> None:
        self.longest = longest
        self._batch_size = batch_size
        self._cache = StaticCache(config=model.config, max_cache_len=longest)
        self._how = CompileConfig()
        self._how._compile_all_devices = True  # transformers would leave processors out

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` [n, width] with the last one repeated up to the batch size."""
        return torch.cat([rows, rows[-1:].expand(self._batch_size - len(rows), -1)])

    def arguments(self) -> dict[str, Any]:
        """What ``generate`` is to be called with, the cache empty."""
        self._cache.reset()
        return {"past_key_values": self._cache, "compile_config": self._how}
