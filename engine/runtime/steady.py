"""The stretch of steps in which the same sequences write, one token each, and nothing else happens.

Most steps of a run are like that. What such a step needs is kept from the one before: only the positions grow by one.
"""

from __future__ import annotations

from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.places import Places
from engine.runtime.sampler import is_greedy
from engine.runtime.sequence import Sequence


class Steady:
    """A stretch that begins with ``sequences``, all writing and with blocks of their own for the next token.

    ``batch``: the next step, in arrays that are its own and change from step to step. ``greedy``: see ``is_greedy``.
    """

    def __init__(self, sequences: list[Sequence], places: Places) -> None:
        self.sequences = sequences
        first = places.column(sequences)
        # As wide as the tables are, for the positions grow.
        self.batch = Batch(first.tokens, first.positions, first.slots, places.tables, first.wanted)
        self.greedy = is_greedy(sequences)
        self._left = min(len(s.table.blocks) * BLOCK - s.computed for s in sequences)
        self._places = places
        self._version = places.version

    @property
    def lasts(self) -> bool:
        """Whether the next step belongs to it: no sequence came or went, and none needs another block."""
        return self._left > 0 and self._version == self._places.version

    def advance(self, tokens: list[int]) -> None:
        """The step is done, and each sequence got one of the ``tokens``."""
        self._left -= 1
        self.batch.tokens[:] = tokens
        self.batch.positions[:] += 1
