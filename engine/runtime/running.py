"""The sequences in the batch, each with its place and its KV blocks."""

from __future__ import annotations

from engine.runtime.blocks import BLOCK, BlockPool, Table
from engine.runtime.places import Places
from engine.runtime.sequence import Sequence


class Running:
    """At most ``count`` sequences. ``kv_cache``: whether one that leaves leaves behind what it computed.

    ``places`` names their blocks to the model; ``reserved`` of them are kept for rows that wait for their context.
    """

    def __init__(self, pool: BlockPool, count: int, kv_cache: bool) -> None:
        self.sequences: list[Sequence] = []
        self.places = Places(count)
        self.reserved = 0
        self._pool = pool
        self._kv_cache = kv_cache

    def __bool__(self) -> bool:
        return bool(self.sequences)

    @property
    def open(self) -> int:
        """Places that are neither taken nor reserved."""
        return self.places.free - self.reserved

    @property
    def last(self) -> Sequence:
        """The one that would be put back first."""
        return max(self.sequences, key=lambda s: (s.row.order, s.started_s))

    def enter(self, sequence: Sequence) -> None:
        """Give it a place, and what is known of its tokens; the last one is always computed, for its scores."""
        row, limit = sequence.row, len(sequence.tokens) - 1
        if row.replay:
            limit = min(limit, len(row.context) - row.replay)
        had = max((end for _, end in sequence.spans), default=0)
        sequence.table, found = self._pool.find(sequence.tokens, limit)
        sequence.computed = sequence.since = found
        sequence.shared = True
        # After it was put back, others may have computed what it had not come to yet.
        sequence.cached = sequence.cached + max(0, found - had) if had else found
        self._take(sequence)

    def join(self, sequence: Sequence, table: Table) -> None:
        """Give it a place, and the blocks of its whole context."""
        sequence.table = self._pool.fork(table)
        sequence.computed = sequence.since = sequence.cached = len(sequence.row.context)
        self._take(sequence)

    def fits(self, sequence: Sequence, end: int) -> bool:
        """Whether it has blocks of its own for its tokens up to ``end``."""
        return not sequence.shared and end <= len(sequence.table.blocks) * BLOCK

    def grow(self, sequence: Sequence, end: int) -> None:
        """Give it blocks of its own for its next tokens, up to ``end``. Raises OutOfBlocks."""
        self._pool.grow(sequence.table, sequence.computed, end, self.places.copies)
        sequence.shared = False
        self.places.show(sequence)

    def publish(self, sequence: Sequence) -> None:
        """Let others find what it computed."""
        if sequence.keeps_cache and self._pool.commit(sequence.table, sequence.tokens, sequence.computed):
            self.places.show(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Free its place and its blocks; what it computed stays findable."""
        sequence.close_span()
        length = sequence.computed if sequence.keeps_cache else min(sequence.computed, len(sequence.row.context))
        self._pool.release(sequence.table, sequence.tokens, length if self._kv_cache else 0)
        self.places.give_back(sequence)
        self.sequences.remove(sequence)

    def _take(self, sequence: Sequence) -> None:
        self.places.take(sequence)
        self.sequences.append(sequence)
