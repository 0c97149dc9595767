"""Forward passes of one model over paged batches: what all ways to run them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from engine.runtime.batch import Batch


class Runner(Protocol):
    """Runs batches of one model.

    ``name`` says what computes, for the record. ``block_bytes``: of one KV block, known before ``allocate``.
    ``dtype``: of the weights. ``pads``: a batch costs as if each of its sequences had as many tokens as the longest.
    ``samples``: tokens are to be drawn by the fused kernel.
    """

    block_bytes: int
    vocab: int
    dtype: torch.dtype
    pads: bool
    samples: bool

    @property
    def name(self) -> str:
        """See above."""
        ...

    def allocate(self, count: int, batch_size: int = 1, longest: int | None = None, new: int = 1) -> None:
        """Make a KV cache of that many blocks; a former one is given up.

        What steps of up to ``batch_size`` sequences with at most ``longest`` tokens each need is made ready, where the
        runner can; ``new``: also for steps that feed so many tokens of each.
        """
        ...

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy KV blocks, (source, destination) each."""
        ...

    def logits(self, batch: Batch) -> torch.Tensor:
        """Process a batch; scores [wanted, vocabulary] of the rows asked for, valid until the next call."""
        ...

    def greedy(self, batch: Batch) -> list[int]:
        """Process a batch; the token with the highest score of each row asked for."""
        ...

    def states(self, batch: Batch) -> torch.Tensor:
        """Process a batch; the model's last hidden states [wanted, hidden] of the rows asked for, after its norm."""
        ...

    def close(self) -> None:
        """Give the memory back and leave the model as it was found."""
        ...


class ExitingRunner(Protocol):
    """A runner that can leave a model before its last layer. ``layers``: how many it has."""

    layers: int

    def exiting(self, batch: Batch, thresholds: np.ndarray, margin: bool, first: int) -> tuple[torch.Tensor, list[int]]:
        """As ``Runner.logits``, with one token per sequence: scores at the layer where each may leave, and that layer.

        ``thresholds`` [rows]; a row with one above 1 never leaves early.
        """
        ...
