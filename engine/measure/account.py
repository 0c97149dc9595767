"""What one problem cost: every token that a model processed for it, whoever asked and whatever became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.backends.rows import Grown, Row
from engine.measure.flops import ModelShape, exit_savings, spans_flops
from engine.rewards import Scored


@dataclass(frozen=True, slots=True)
class Shapes:
    """The models of a run: its own under None and others by name, the draft model and the reward model."""

    models: Mapping[str | None, ModelShape]
    draft: ModelShape | None = None
    verifier: ModelShape | None = None


@dataclass(slots=True)
class Account:
    """Sums over one problem; the fields are those of ``spec.results.Answer``.

    ``flops_generated`` is 2 N T over generated tokens. ``flops_total`` counts each position that was processed, of all
    models. ``flops_no_reuse`` adds the positions that were found computed, so it is what the same work would cost if
    every sequence read its text for itself. All are None once a model takes part whose N is not known.
    """

    shapes: Shapes
    tokens_prompt: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    tokens_verifier: int = 0
    tokens_drafted: int = 0
    tokens_accepted: int = 0
    target_passes: int = 0
    flops_generated: float | None = 0.0
    flops_total: float | None = 0.0
    flops_no_reuse: float | None = 0.0
    exits: Counter[int] = field(default_factory=Counter)

    def grew(self, row: Row, grown: Grown) -> None:
        """A row has ended."""
        shape = self.shapes.models[row.model]
        written = len(grown.token_s)
        self.tokens_prompt += _read(row, grown)
        self.tokens_cached += grown.cached
        self.tokens_generated += written
        self.tokens_drafted += grown.drafted
        self.tokens_accepted += grown.accepted
        self.target_passes += grown.passes
        exits = grown.extension.exits
        self.exits.update(exits)
        total, found = spans_flops(shape, grown.spans), spans_flops(shape, [(0, grown.cached)])
        if total is not None and exits:
            total -= exit_savings(shape, exits, len(row.context), row.exit.first if row.exit else 1)
        active = shape.active_parameters
        self._add(None if active is None else 2.0 * active * written, total, found)
        if grown.draft_spans and self.shapes.draft is not None:
            self._add(0.0, spans_flops(self.shapes.draft, grown.draft_spans), 0.0)

    def scored(self, scored: Scored) -> None:
        """The reward model has read a solution."""
        assert self.shapes.verifier is not None
        processed = sum(end - first for first, end in scored.spans)
        self.tokens_verifier += processed
        found = [(0, scored.tokens - processed)]
        self._add(0.0, spans_flops(self.shapes.verifier, scored.spans), spans_flops(self.shapes.verifier, found))

    def _add(self, generated: float | None, total: float | None, found: float | None) -> None:
        reused = None if total is None or found is None else total + found
        self.flops_generated = _sum(self.flops_generated, generated)
        self.flops_total = _sum(self.flops_total, total)
        self.flops_no_reuse = _sum(self.flops_no_reuse, reused)


def _read(row: Row, grown: Grown) -> int:
    """Tokens processed before writing went on, again included where something was lost.

    A row of T tokens is fed T - 1 of them while it writes, and one that continues a path the path's last token, which
    no row was fed before. The tokens that a draft got wrong are no reading.
    """
    if grown.passes:
        return len(row.context) - grown.cached
    processed = sum(end - first for first, end in grown.spans)
    written = max(0, len(grown.extension.ids) - 1)
    return max(0, processed - written - (1 if row.start else 0))


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
