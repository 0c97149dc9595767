"""The stretch of steps in which the same sequences write, one token each, and nothing else happens.

Most steps of a run are like that. What such a step needs is kept from the one before: positions grow by one, and each
sequence's ``computed`` follows from its tokens when the stretch is over.
"""

from __future__ import annotations

import numpy as np

from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.places import Places
from engine.runtime.sequence import Sequence


class Steady:
    """A stretch that begins with ``sequences``, all writing and with blocks of their own for the next token.

    ``batch``: the arrays of the next step. ``left``: steps until a sequence needs another block or reaches its limit.
    """

    def __init__(self, sequences: list[Sequence], places: Places) -> None:
        self.sequences = sequences
        first = places.column(sequences)
        # As wide as the tables are, for the positions grow.
        self.batch = Batch(first.tokens, first.positions, first.slots, places.tables, first.wanted)
        self.left = min(min(len(s.table.blocks) * BLOCK - s.computed, s.most - len(s.tokens)) for s in sequences)
        self._places = places
        self._version = places.version

    @property
    def lasts(self) -> bool:
        """Whether the next step belongs to it: nothing came or went, and there is room for another token."""
        return self.left > 0 and self._version == self._places.version

    def harmless(self, tokens: list[int]) -> bool:
        """Whether tokens are known to end none of the sequences."""
        return all(t in s.harmless for t, s in zip(tokens, self.sequences, strict=True))

    def write(self, tokens: list[int], at: float) -> None:
        """Append a token to each sequence."""
        for sequence, token in zip(self.sequences, tokens, strict=True):
            sequence.tokens.append(token)
            sequence.token_s.append(at)
        batch = self.batch
        self.left -= 1
        positions = batch.positions + np.int32(1)
        self.batch = Batch(np.array(tokens, dtype=np.int32), positions, batch.slots, batch.tables, batch.wanted)

    def settle(self) -> None:
        """The stretch is over: all but the last token of each sequence is computed."""
        for sequence in self.sequences:
            sequence.computed = len(sequence.tokens) - 1
