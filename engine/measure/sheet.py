"""The sheet on which a run's summary is written: each measure of ``spec.measures.MEASURES`` or why it is missing."""

from __future__ import annotations

import math

from spec.measures import MEASURES

SCORES_TEXT = "the task scores a text and asks no questions"
NO_ANSWERS = "no problem was answered"


class Sheet:
    """The measures and reasons being filled in."""

    def __init__(self) -> None:
        self.measures: dict[str, float | int | None] = dict.fromkeys(MEASURES)
        self.reasons: dict[str, str] = {}

    def put(self, name: str, value: float | int | None, reason: str = "") -> None:
        """A value, or the reason for its absence."""
        if value is not None and not math.isfinite(value):
            value, reason = None, "the value is not finite"
        self.measures[name] = value
        if value is None:
            self.reasons[name] = reason
        else:
            self.reasons.pop(name, None)

    def ratio(self, name: str, part: float | int | None, whole: float, reason: str) -> None:
        """``part / whole``; the reason of an absent part is ``reason`` too."""
        self.put(name, None if part is None or not whole else part / whole, reason)
