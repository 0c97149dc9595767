"""Decoding steps whose arrays stay where they are, so that a GPU can replay them as CUDA graphs.

A step of transformers' modules launches thousands of small operations, and on a GPU the time to launch them is most of
a small batch's step. A graph launches them all at once, but it repeats exactly what was recorded: the same shapes at
the same addresses. So steps in which each sequence feeds one token are padded up to a few sizes, and every size is
recorded once: before a run, or where steps also differ in the width of their tables, as it first occurs. Steps that
verify guessed tokens are recorded likewise, as if each sequence fed as many as the longest guess. Rows that fill up
write to a block of their own, which belongs to no sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine.recording import Recorder, Unrecordable, first_line
from engine.runtime.batch import Batch, Pieces
from engine.runtime.blocks import BLOCK
from engine.runtime.forest import Forest

LEAST_WIDTH = 4
Key = tuple[int, int, int, bool]
"""Sequences of a step, tokens of each, blocks of each, and whether keys are read together."""


class Decoding:
    """The arrays of a step of ``size`` sequences with tables of ``width`` blocks, int64 on the device.

    Each sequence has ``new`` rows, of which its tokens are the last. It has what attention reads of a ``Ragged``;
    ``spare`` is the block of rows that only fill up, ``chosen`` [rows] begins with those whose scores are wanted.
    ``forest``: the plan by which shared keys are read once; None for a step whose sequences are read one by one.
    """

    def __init__(
        self, size: int, width: int, spare: int, device: torch.device, forest: Forest | None = None, new: int = 1
    ) -> None:
        self._forest = forest
        self.size = size
        self.new = new
        self.width = width
        self._spare = spare
        rows = size * new
        self._host = torch.zeros(5 * rows + size * width, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._flat = torch.zeros_like(self._host, device=device)
        parts = self._flat.split([rows] * 5 + [size * width])
        self.tokens, self.positions, self.blocks, self.places, self.chosen = parts[:5]
        self.tables = parts[5].view(size, width)
        self.query = torch.arange(rows, device=device).view(size, new)
        self.back = torch.arange(rows, device=device)
        self.query_positions = self.positions.view(size, new)
        self.key_positions = torch.arange(width * BLOCK, device=device)

        self.begin()

    def begin(self) -> None:
        """What follows from the arrays on the device, computed there: the first operations of a recording."""
        lengths = (self.query_positions[:, -1] + 1).int()
        rows = slice(0, self.size * self.new)
        self.pieces = (Pieces(rows, self.tables.int(), lengths, new=self.new, forest=self._forest),)

    def clear(self) -> None:
        """A step of rows that only fill up."""
        nothing = np.zeros(0, dtype=np.int32)
        self.fill(Batch(nothing, nothing, nothing, np.zeros((0, self.width), dtype=np.int32), nothing))

    def fill(self, batch: Batch) -> None:
        """Bring a step's arrays to the device, in one copy."""
        at, slots = self._layout(batch)
        rows = self._host.numpy()[: 5 * self.size * self.new].reshape(5, -1)
        rows[:] = np.array([0, 0, self._spare, 0, 0])[:, None]
        rows[0, at] = batch.tokens
        rows[1, at] = batch.positions
        rows[2, at] = batch.tables[batch.slots, batch.positions // BLOCK]
        rows[3, at] = batch.positions % BLOCK
        rows[4, : len(batch.wanted)] = at[batch.wanted]
        tables = self._host.numpy()[5 * self.size * self.new :].reshape(self.size, self.width)
        known = min(self.width, batch.tables.shape[1])
        tables[:] = self._spare
        tables[: len(slots), :known] = batch.tables[slots, :known]
        # The scores of the step before were read on the host, so nothing still waits to be copied from this buffer.
        self._flat.copy_(self._host, non_blocking=True)

    def _layout(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The row of each of a batch's tokens, and the slots of its sequences, in the order in which they stand."""
        if self.new == 1:
            return np.arange(batch.m), batch.slots
        first = np.flatnonzero(np.diff(batch.slots, prepend=-1))
        counts = np.diff(first, append=batch.m)
        ends = np.arange(1, len(first) + 1) * self.new
        return np.arange(batch.m) + np.repeat(ends - counts - first, counts), batch.slots[first]


class Graphs:
    """Runs decoding steps: recorded once and replayed on a GPU, as they are on a processor.

    ``forward`` processes a Decoding and returns scores [rows, vocabulary]. ``new``: tokens that a sequence may feed
    instead of one. ``width``: of all tables, for attention that takes no time for blocks behind a sequence's end; None
    where steps of different widths are recorded. ``reason``: why steps are not recorded, where recording has failed;
    with ``must`` that raises Unrecordable. ``forest`` makes plans for steps of so many sequences, where keys may be
    read together: then steps of either kind are recorded; ``unshared`` says why they are not read together after all.
    """

    def __init__(
        self,
        forward: Callable[[Decoding], torch.Tensor],
        spare: int,
        device: torch.device,
        width: int | None = None,
        must: bool = False,
        forest: Callable[[int], Forest] | None = None,
        new: int = 1,
    ) -> None:
        self.reason: str | None = None
        self.unshared: str | None = None
        self._must = must
        self._plant = forest
        self._forests: dict[int, Forest] = {}
        self._width = width
        self._new = new
        self._forward = forward
        self._spare = spare
        self._device = device
        self._recorder = Recorder(device) if device.type == "cuda" else None
        self._steps: dict[Key, tuple[Decoding, torch.cuda.CUDAGraph | None, torch.Tensor | None]] = {}

    def serves(self, batch: Batch) -> bool:
        """Whether a batch is a step of one token of each sequence, or of as many as are verified at once.

        Some of its scores are wanted: whoever reads them waits for the copy that ``Decoding.fill`` began.
        """
        fits = self._width is None or int(batch.positions.max()) < self._width * BLOCK
        return self.reason is None and fits and len(batch.wanted) > 0 and self._rows(batch) is not None

    def _rows(self, batch: Batch) -> tuple[int, int] | None:
        """Sequences, and rows of each; None where a sequence has too many tokens."""
        counts = np.unique(batch.slots, return_counts=True)[1]
        most = int(counts.max())
        if most == 1 and len(batch.wanted) == batch.m:
            return len(counts), 1
        return (len(counts), self._new) if most <= self._new else None

    def logits(self, batch: Batch) -> torch.Tensor | None:
        """Scores [wanted, vocabulary] of a batch that it ``serves``, valid until the next call.

        None where its step turns out not to fit, which ``serves`` knows from then on.
        """
        while (key := self._key(batch)) is not None and key not in self._steps:
            self._prepare(key)
        if key is None:
            return None
        new = key[1]
        step, graph, scores = self._steps[key]
        step.fill(batch)
        if graph is None or scores is None:
            scores = self._forward(step)
        else:
            with torch.cuda.device(self._device):
                graph.replay()
        if new == 1 and len(batch.wanted) == batch.m:
            return scores[: batch.m]
        return scores[step.chosen[: len(batch.wanted)]]

    def _key(self, batch: Batch) -> Key | None:
        if (rows := self._rows(batch)) is None:
            return None
        width = self._width or max(LEAST_WIDTH, padded(int(batch.positions.max()) // BLOCK + 1))
        n, new = rows
        return padded(n), new, width, new == 1 and self._shares(batch)

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
            kinds = [(1, False), (1, True), (self._new, False)]
            for new, shares in dict.fromkeys(kinds):
                # One sequence has nobody to share with.
                if self.reason is None and not (shares and (self._plant is None or size == 1)):
                    self._prepare((size, new, self._width, shares))

    def _prepare(self, key: Key) -> None:
        """Record a step, or give up its kind where that does not fit."""
        _, new, _, shares = key
        try:
            self._steps[key] = self._record(*key)
        except Exception as error:
            if new > 1 and (is_refused(error) or isinstance(error, torch.cuda.OutOfMemoryError)):
                self._new = 1  # then such steps run as pieces of prompts do
                self._steps = {known: step for known, step in self._steps.items() if known[1] == 1}
            elif shares and is_refused(error):
                self.unshared = first_line(error)
                self._plant = None
            else:
                raise

    def _record(
        self, size: int, new: int, width: int, shares: bool
    ) -> tuple[Decoding, torch.cuda.CUDAGraph | None, torch.Tensor | None]:
        step = Decoding(size, width, self._spare, self._device, self._forest(size) if shares else None, new)
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


def is_refused(error: BaseException) -> bool:
    """Whether Triton cannot compile something for this GPU, e.g. for want of shared memory: no RuntimeError."""
    return type(error).__module__.startswith("triton")


def padded(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ...: at most half as many again.

    >>> [padded(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 64)]
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    """
    power = 1 << max(0, n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power
