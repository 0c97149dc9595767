"""Sample: one solution drawn at random."""

from __future__ import annotations

from engine.decoding.candidates import candidates, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.strategy import Sample


def sample(question: Question, strategy: Sample) -> Search:
    """One sampled solution."""
    found = candidates(question, (yield from solve(question, 1, sampling_of(strategy))))
    return Outcome(found, 0 if found[0].answer is not None else None)
