"""Majority voting, also called self-consistency (Wang et al. 2022, arXiv 2203.11171)."""

from __future__ import annotations

from engine.decoding import votes
from engine.decoding.candidates import candidates, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.strategy import Majority


def majority(question: Question, strategy: Majority) -> Search:
    """n sampled solutions; the most frequent answer wins."""
    found = candidates(question, (yield from solve(question, strategy.n, sampling_of(strategy))))
    return Outcome(found, votes.majority([c.answer for c in found], question.equivalent))
