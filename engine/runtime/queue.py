"""The rows that wait for a place: by their order, then as they came."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import torch

from engine.backends.rows import Row
from engine.runtime.blocks import BlockPool, Table
from engine.runtime.sequence import Sequence


@dataclass(slots=True, eq=False)
class Group:
    """Rows with one context. ``logits``: the scores behind it, and ``table`` its blocks, once they are computed.

    ``reserved``: places kept free for those of its rows that wait for that.
    """

    rows: list[Row]
    table: Table | None = None
    logits: torch.Tensor | None = None
    reserved: int = 0


Waiting = Group | Sequence
"""Rows that were never in the batch, or a sequence that was put back."""


class Queue:
    """What waits. ``rows``: how many rows that is."""

    def __init__(self) -> None:
        self.rows = 0
        self._heap: list[tuple[tuple[int, ...], int, Waiting]] = []
        self._count = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def first(self) -> Waiting:
        """Whose turn it is."""
        return self._heap[0][2]

    def push(self, what: Waiting) -> None:
        """A group has the order of its first row."""
        row = what.rows[0] if isinstance(what, Group) else what.row
        heapq.heappush(self._heap, (row.order, next(self._count), what))
        self.rows += _rows(what)

    def pop(self) -> Waiting:
        """The first, which waits no longer."""
        what = heapq.heappop(self._heap)[2]
        self.rows -= _rows(what)
        return what

    def let_go(self, pool: BlockPool) -> bool:
        """Give up the blocks of contexts that groups share, so that each is computed anew; False where none has any."""
        held = [w for _, _, w in self._heap if isinstance(w, Group) and w.table is not None]
        for group in held:
            context = group.rows[0].context
            pool.release(group.table or Table(), context, len(context))
            group.table = group.logits = None
        return bool(held)


def _rows(what: Waiting) -> int:
    return len(what.rows) if isinstance(what, Group) else 1
