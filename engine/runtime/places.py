"""The places of a batch: each running sequence's row of the block tables, and the arrays of a step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.runtime import sequence as live
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK, Copies


@dataclass(slots=True, eq=False)
class Work:
    """What a step processes of one sequence: ``tokens`` from its ``computed`` on; ``end``: up to its last one.

    ``exits``: it is one token that may leave the model early, as those may that were written.
    """

    sequence: live.Sequence
    tokens: list[int]
    end: bool
    exits: bool = False

    @property
    def wanted(self) -> int:
        """Of how many of its last tokens the scores are wanted."""
        sequence, row = self.sequence, self.sequence.row
        if row.replay:
            first = len(row.context) - row.replay  # the first position whose scores are wanted
            return max(0, min(len(self.tokens), sequence.computed + len(self.tokens) - first))
        return 1 + len(sequence.proposed) if self.end else 0


class Places:
    """``count`` of them.

    ``copies``: KV blocks to copy before the next forward pass. ``version`` changes with what the places hold.
    """

    def __init__(self, count: int) -> None:
        self.copies: Copies = []
        self.version = 0
        self._tables = np.zeros((count, 16), dtype=np.int32)
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    @property
    def tables(self) -> np.ndarray:
        """The block tables of all places, int32 [places, width]."""
        return self._tables

    def take(self, sequence: live.Sequence) -> None:
        """Give a sequence a place."""
        sequence.slot = self._free.pop()
        self.show(sequence)

    def give_back(self, sequence: live.Sequence) -> None:
        """Its place is free."""
        self.version += 1
        self._free.append(sequence.slot)
        sequence.slot = -1

    def show(self, sequence: live.Sequence) -> None:
        """Bring a sequence's row of the tables up to date."""
        self.version += 1
        blocks = sequence.table.blocks
        width = self._tables.shape[1]
        if len(blocks) > width:
            self._tables = np.pad(self._tables, ((0, 0), (0, max(width, len(blocks) - width))))
        self._tables[sequence.slot, : len(blocks)] = blocks

    def column(self, sequences: list[live.Sequence]) -> Batch:
        """The arrays of a step that feeds each sequence its last token."""
        tokens = np.array([s.tokens[-1] for s in sequences], dtype=np.int32)
        positions = np.array([s.computed for s in sequences], dtype=np.int32)
        rows = np.array([s.slot for s in sequences], dtype=np.int32)
        width = int(positions.max()) // BLOCK + 1
        tables = np.ascontiguousarray(self._tables[:, :width])
        return Batch(tokens, positions, rows, tables, np.arange(len(rows), dtype=np.int32))

    def batch(self, work: list[Work]) -> Batch:
        """The step's arrays."""
        parts = [w.tokens for w in work]
        starts, slots = [w.sequence.computed for w in work], [w.sequence.slot for w in work]
        return flatten(parts, starts, slots, self._tables, _wanted(work))


def flatten(
    parts: Sequence[Sequence[int]], starts: list[int], slots: list[int], tables: np.ndarray, wanted: np.ndarray
) -> Batch:
    """A batch of some sequences: the tokens of each from its start on, and its row of the ``tables``."""
    first, rows = np.array(starts, dtype=np.int32), np.array(slots, dtype=np.int32)
    counts = np.array([len(p) for p in parts], dtype=np.int32)
    if (m := int(counts.sum())) == len(parts):
        tokens, positions = np.array([p[0] for p in parts], dtype=np.int32), first
    else:
        tokens = np.fromiter(itertools.chain.from_iterable(parts), np.int32, m)
        before = np.cumsum(counts, dtype=np.int32) - counts
        positions = np.repeat(first - before, counts) + np.arange(m, dtype=np.int32)
        rows = np.repeat(rows, counts)
    width = -(-(int(positions.max()) + 1) // BLOCK)
    return Batch(tokens, positions, rows, np.ascontiguousarray(tables[:, :width]), wanted)


def _wanted(work: list[Work]) -> np.ndarray:
    """Rows whose scores are wanted: the last ``wanted`` of each sequence's."""
    counts = np.array([len(w.tokens) for w in work], dtype=np.int32)
    last = np.array([w.wanted for w in work], dtype=np.int32)
    if last.max(initial=0) <= 1:
        return (np.cumsum(counts, dtype=np.int32) - 1)[last == 1]
    ends = np.cumsum(counts)
    parts = [np.arange(end - n, end) for end, n in zip(ends, last, strict=True)]
    return np.concatenate(parts).astype(np.int32)
