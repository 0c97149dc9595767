"""Best of n: the solution that the reward model scores highest (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from engine.decoding import votes
from engine.decoding.candidates import candidates, score, solve
from engine.decoding.requests import Outcome, Question, Search
from engine.sampling import Sampling
from spec.strategy import BestOfN


def best_of_n(question: Question, strategy: BestOfN) -> Search:
    """n sampled solutions; the highest score among those with an answer wins."""
    solutions = yield from solve(question, strategy.n, Sampling.of(strategy))
    found = candidates(question, solutions, (yield from score(solutions)), strategy.aggregate)
    return Outcome(found, votes.best([c.answer for c in found], [c.score for c in found]))
