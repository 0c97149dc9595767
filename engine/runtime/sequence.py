"""One sequence on its way through the runtime."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.backends.rows import Grown, Row
from engine.decoding.requests import Extension
from engine.runtime.blocks import Table
from engine.sampling import uniforms

_AHEAD = 128  # random numbers made at a time


@dataclass(slots=True, eq=False)
class Sequence:
    """A row with its tokens and its place in the batch.

    Attributes:
        tokens: context and what was generated; the keys and values of the first ``computed`` of them are in ``table``.
        most: tokens it has when its limit is reached; ``harmless``: tokens that are known to end no sequence.
        slot: its row of the block tables while it is in the batch, -1 before and after.
        spans: positions processed, as (first, end) runs; ``since``: where the present run began.
        shared: whether its next token may fall into a block that is not its own alone.
        proposed: draft tokens that its next pass verifies.
    """

    row: Row
    tokens: list[int]
    started_s: float
    most: int
    harmless: Container[int]
    table: Table = field(default_factory=Table)
    computed: int = 0
    slot: int = -1
    cached: int = 0
    shared: bool = True
    since: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    draft_spans: list[tuple[int, int]] = field(default_factory=list)
    finish: str | None = None
    _numbers: np.ndarray | None = None
    _numbers_from: int = 0

    @property
    def writing(self) -> bool:
        """Whether its context is behind it and a pass over its last token gives it just its next one."""
        row, computed = self.row, self.computed
        if computed < len(row.context) or len(self.tokens) - computed != 1:
            return False
        return not (row.peek or row.replay or row.draft or row.exit)

    @property
    def generated(self) -> list[int]:
        """The tokens behind the context."""
        return self.tokens[len(self.row.context) :]

    @property
    def decoding(self) -> bool:
        """Whether its context is behind it and all but its last token is computed, so that guesses can follow."""
        return self.computed >= len(self.row.context) and len(self.tokens) - self.computed == 1

    @property
    def keeps_cache(self) -> bool:
        """Whether what it computed is the model's own, for others to find; not where layers were left out."""
        return self.row.exit is None

    def number(self, index: int) -> float:
        """The random number, from 0 to 1, of its generated token ``index``."""
        at = index - self._numbers_from
        if self._numbers is None or not 0 <= at < len(self._numbers):
            self._numbers = uniforms([self.row.key], [self.row.start + index], _AHEAD)[0]
            self._numbers_from, at = index, 0
        return float(self._numbers[at])

    def close_span(self) -> None:
        """What comes next does not follow on what was processed last."""
        if self.computed > self.since:
            self.spans.append((self.since, self.computed))
        self.since = self.computed

    def restart(self) -> None:
        """Without a cache everything is computed again."""
        self.close_span()
        self.computed = self.since = 0

    def grown(self, extension: Extension, **more: Any) -> Grown:
        """The record of what became of it; ``more`` are further fields of ``Grown``."""
        return Grown(
            extension,
            self.started_s,
            self.token_s,
            self.spans,
            cached=self.cached,
            drafted=self.drafted,
            accepted=self.accepted,
            passes=self.passes,
            draft_spans=self.draft_spans,
            **more,
        )
