"""Ensemble (Dietterich 2000, "Ensemble methods in machine learning"): several models vote together."""

from __future__ import annotations

from engine.decoding import votes
from engine.decoding.candidates import candidates, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.results import Candidate
from spec.strategy import Ensemble


def ensemble(question: Question, strategy: Ensemble) -> Search:
    """n samples of each model, the run's own first; each sample votes with its model's weight."""
    found: tuple[Candidate, ...] = ()
    for name in (None, *strategy.models):
        drawn = yield from solve(question, strategy.n, sampling_of(strategy), first=len(found), model=name)
        found += candidates(question, drawn, model=name)
    weights = [weight for weight in strategy.weights for _ in range(strategy.n)]
    return Outcome(found, votes.weighted([c.answer for c in found], weights, question.equivalent))
