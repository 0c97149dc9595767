"""Who enters the batch, and when.

A place that becomes free is filled at once (or, in static batches, when all are free), in the rows' order: a row for
which there is no room keeps its turn. Rows with the same context start as one: it is computed once, by the first of
them, and all share its blocks and draw their first token from its scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch

from engine.backends.rows import Row
from engine.runtime.blocks import BLOCK, BlockPool, NoRoom
from engine.runtime.plan import Plan
from engine.runtime.queue import Group, Queue, Waiting
from engine.runtime.running import Running
from engine.runtime.sequence import Sequence

Started = tuple[list[Sequence], torch.Tensor]
"""Sequences whose context is computed, and the scores [sequences, vocabulary] behind it."""


class Admission:
    """Moves rows from the queue into the batch. ``new`` makes the sequence of a row."""

    def __init__(self, pool: BlockPool, running: Running, plan: Plan, new: Callable[[Row], Sequence]) -> None:
        self.queue = Queue()
        self._pool = pool
        self._running = running
        self._static = plan.static
        self._new = new
        self._groups: dict[Sequence, Group] = {}  # by the sequence that computes their context

    def submit(self, rows: Iterable[Row]) -> None:
        """Take rows over; neighbours with equal contexts become one group, where prefixes are shared."""
        for _, same in itertools.groupby(rows, key=lambda r: r.context):
            group: list[Row] = []
            for row in same:
                if row.peek or row.replay or not self._pool.shares:
                    self.queue.push(Group([row]))
                else:
                    group.append(row)
            if group:
                self.queue.push(Group(group))

    def admit(self) -> Iterator[Started]:
        """Fill the open places. What is yielded has to be extended before the next is asked for. Raises NoRoom."""
        if self._static and self._running:
            return
        while self.queue and self._running.open > 0:
            if not self._has_room(self.queue.first):  # it keeps its turn, and those behind it wait with it
                if self._running:
                    return
                if not self.queue.let_go(self._pool):
                    raise NoRoom
                continue
            what = self.queue.pop()
            if isinstance(what, Sequence):
                self._running.enter(what)
            elif what.logits is None:
                self._start(what)
            else:
                yield from self._join(what, self._running.open)

    def shares(self, sequence: Sequence) -> bool:
        """Whether others wait for the context that a sequence computes."""
        return sequence in self._groups

    def share(self, sequence: Sequence) -> None:
        """The context is computed: the others have its blocks too."""
        self._groups[sequence].table = self._pool.fork(sequence.table)
        sequence.shared = True

    def join(self, sequence: Sequence, logits: torch.Tensor) -> Iterator[Started]:
        """The others enter, as many as places were kept for, with the scores [vocabulary] behind the context."""
        group = self._groups.pop(sequence)
        group.logits = logits
        yield from self._join(group, group.reserved)

    def _has_room(self, what: Waiting) -> bool:
        if isinstance(what, Sequence):
            length = len(what.tokens)
        else:
            length = 0 if what.logits is not None else len(what.rows[0].context)
        return self._pool.available >= min(-(-(length + 1) // BLOCK), self._pool.count)

    def _start(self, group: Group) -> None:
        """The first row of a group computes the context; places are kept for as many of the others as there are."""
        sequence = self._new(group.rows.pop(0))
        self._running.enter(sequence)
        if group.rows:
            group.reserved = min(len(group.rows), self._running.open)
            self._running.reserved += group.reserved
            self._groups[sequence] = group

    def _join(self, group: Group, most: int) -> Iterator[Started]:
        """Up to ``most`` of the rows behind a context that is computed; the others wait with its scores."""
        assert group.logits is not None
        assert group.table is not None
        self._running.reserved -= group.reserved
        group.reserved = 0
        sequences = [self._new(row) for row in group.rows[:most]]
        logits = group.logits
        for sequence in sequences:
            self._running.join(sequence, group.table)
        del group.rows[:most]
        if group.rows:
            self.queue.push(group)
        else:
            self._pool.release(group.table)
        if sequences:
            yield sequences, logits.expand(len(sequences), -1)
