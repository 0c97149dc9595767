"""Decoding steps whose arrays stay where they are, so that a GPU can replay them as CUDA graphs.

A step of transformers' modules launches thousands of small operations, and on a GPU the time to launch them is most of
a small batch's step. A graph launches them all at once, but it repeats exactly what was recorded: the same shapes at
the same addresses. So steps in which each sequence feeds one token are padded up to a few sizes, and every size is
recorded once: before a run, or where steps also differ in the width of their tables, as it first occurs. Rows that fill
up write to a block of their own, which belongs to no sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine.recording import Recorder, Unrecordable
from engine.runtime.batch import Batch, Pieces
from engine.runtime.blocks import BLOCK
from engine.runtime.forest import Forest

LEAST_WIDTH = 4
Key = tuple[int, int, bool]
"""Sequences and blocks of a step, and whether keys are read together."""


class Decoding:
    """The arrays of a decoding step of ``size`` sequences with tables of ``width`` blocks, int64 on the device.

    It has what attention reads of a ``Ragged``; ``spare`` is the block of rows that only fill up. ``forest``: the plan
    by which shared keys are read once; None for a step whose sequences are read one by one.
    """

    def __init__(self, size: int, width: int, spare: int, device: torch.device, forest: Forest | None = None) -> None:
        self.forest = forest
        self.size = size
        self.width = width
        self._spare = spare
        self._host = torch.zeros(size * (4 + width), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._flat = torch.zeros(size * (4 + width), dtype=torch.int64, device=device)
        parts = self._flat.split([size] * 4 + [size * width])
        self.tokens, self.positions, self.blocks, self.places = parts[:4]
        self.tables = parts[4].view(size, width)
        self.query = torch.arange(size, device=device)[:, None]
        self.back = torch.arange(size, device=device)
        self.query_positions = self.positions[:, None]
        self.key_positions = torch.arange(width * BLOCK, device=device)

        self.begin()

    def begin(self) -> None:
        """What follows from the arrays on the device, computed there: the first operations of a recording."""
        self.pieces = Pieces(self.tables.int(), (self.positions + 1).int(), None, True)

    def clear(self) -> None:
        """A step of rows that only fill up."""
        nothing = np.zeros(0, dtype=np.int32)
        self.fill(Batch(nothing, nothing, nothing, np.zeros((0, self.width), dtype=np.int32), nothing))

    def fill(self, batch: Batch) -> None:
        """Bring a step's arrays to the device, in one copy."""
        n, size = batch.m, self.size
        rows = self._host.numpy()[: 4 * size].reshape(4, size)
        rows[:, n:] = np.array([0, 0, self._spare, 0])[:, None]
        rows[0, :n] = batch.tokens
        rows[1, :n] = batch.positions
        rows[2, :n] = batch.tables[batch.slots, batch.positions // BLOCK]
        rows[3, :n] = batch.positions % BLOCK
        tables = self._host.numpy()[4 * size :].reshape(size, self.width)
        known = min(self.width, batch.tables.shape[1])
        tables[:] = self._spare
        tables[:n, :known] = batch.tables[batch.slots, :known]
        # The scores of the step before were read on the host, so nothing still waits to be copied from this buffer.
        self._flat.copy_(self._host, non_blocking=True)


class Graphs:
    """Runs decoding steps: recorded once and replayed on a GPU, as they are on a processor.

    ``forward`` processes a Decoding and returns scores [size, vocabulary]. ``width``: of all tables, for attention that
    takes no time for blocks behind a sequence's end; None where steps of different widths are recorded. ``reason``: why
    steps are not recorded, where recording has failed; with ``must`` that raises Unrecordable. ``forest`` makes plans
    for steps of so many sequences, where keys may be read together: then steps of either kind are recorded;
    ``unshared`` says why they are not read together after all.
    """

    def __init__(
        self,
        forward: Callable[[Decoding], torch.Tensor],
        spare: int,
        device: torch.device,
        width: int | None = None,
        must: bool = False,
        forest: Callable[[int], Forest] | None = None,
    ) -> None:
        self.reason: str | None = None
        self.unshared: str | None = None
        self._must = must
        self._plant = forest
        self._forests: dict[int, Forest] = {}
        self._width = width
        self._forward = forward
        self._spare = spare
        self._device = device
        self._recorder = Recorder(device) if device.type == "cuda" else None
        self._steps: dict[Key, tuple[Decoding, torch.cuda.CUDAGraph | None, torch.Tensor | None]] = {}

    def serves(self, batch: Batch) -> bool:
        """Whether a batch is a decoding step: one token of each sequence, and all their scores are wanted."""
        single = len(batch.wanted) == batch.m == len(np.unique(batch.slots))
        fits = self._width is None or int(batch.positions.max()) < self._width * BLOCK
        return self.reason is None and single and fits

    def logits(self, batch: Batch) -> torch.Tensor:
        """Scores [sequences, vocabulary], valid until the next call."""
        width = self._width or max(LEAST_WIDTH, padded(int(batch.positions.max()) // BLOCK + 1))
        key = padded(batch.m), width, self._shares(batch)
        if key not in self._steps:
            self._steps[key] = self._record(*key)
        step, graph, scores = self._steps[key]
        step.fill(batch)
        if graph is None or scores is None:
            return self._forward(step)[: batch.m]
        with torch.cuda.device(self._device):
            graph.replay()
        return scores[: batch.m]

    def _shares(self, batch: Batch) -> bool:
        """Whether the step's sequences read keys together, which is planned here."""
        if self._plant is None:
            return False
        size = padded(batch.m)
        tables = np.full((size, batch.tables.shape[1]), self._spare, dtype=np.int32)
        lengths = np.ones(size, dtype=np.int64)
        tables[: batch.m], lengths[: batch.m] = batch.tables[batch.slots], batch.positions + 1
        return self._forest(size).update(tables, lengths)

    def _forest(self, size: int) -> Forest:
        assert self._plant is not None
        if size not in self._forests:
            self._forests[size] = self._plant(size)
        return self._forests[size]

    def prepare(self, batch_size: int) -> None:
        """Record steps of all sizes up to ``batch_size``, where they have one width."""
        if self._width is None:
            return
        for size in dict.fromkeys(padded(n) for n in range(1, batch_size + 1)):
            # One sequence has nobody to share with.
            for shares in (False, True) if self._plant is not None and size > 1 else (False,):
                if self.reason is None and (size, self._width, shares) not in self._steps:
                    self._prepare(size, self._width, shares)

    def _prepare(self, size: int, width: int, shares: bool) -> None:
        try:
            self._steps[size, width, shares] = self._record(size, width, shares)
        except Exception as error:
            # What Triton cannot compile for this GPU, e.g. for want of shared memory, is no RuntimeError.
            if not shares or not type(error).__module__.startswith("triton"):
                raise
            self.unshared = str(error).strip().partition("\n")[0]
            self._plant = None

    def _record(
        self, size: int, width: int, shares: bool
    ) -> tuple[Decoding, torch.cuda.CUDAGraph | None, torch.Tensor | None]:
        step = Decoding(size, width, self._spare, self._device, self._forest(size) if shares else None)
        if self._recorder is None:
            return step, None, None
        step.clear()  # every row writes to the spare block
        try:
            graph, scores = self._recorder.record(lambda: self._forward(step))
        except Unrecordable as error:
            self.reason = str(error)
            if self._must:
                raise
            return step, None, None
        return step, graph, scores


def padded(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ...: at most half as many again.

    >>> [padded(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 64)]
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    """
    power = 1 << max(0, n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power
