"""Greedy: one solution, always the most likely token."""

from __future__ import annotations

from engine.decoding.candidates import candidates, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.strategy import Greedy


def greedy(question: Question, strategy: Greedy) -> Search:
    """One solution by argmax."""
    found = candidates(question, (yield from solve(question, 1, None)))
    return Outcome(found, 0 if found[0].answer is not None else None)
