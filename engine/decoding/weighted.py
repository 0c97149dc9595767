"""Weighted majority voting: each solution votes with its reward (Li et al. 2022, arXiv 2206.02336)."""

from __future__ import annotations

from engine.decoding import votes
from engine.decoding.candidates import candidates, confidence, judge, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.strategy import Weighted


def weighted(question: Question, strategy: Weighted) -> Search:
    """n sampled solutions; the answer with the largest sum of scores wins."""
    solutions = yield from solve(question, strategy.n, sampling_of(strategy), logprobs=strategy.by_logprob)
    steps = yield from judge(strategy, [s.text for s in solutions], [confidence(s) for s in solutions])
    found = candidates(question, solutions, steps, strategy.aggregate)
    answers, weights = [c.answer for c in found], [c.score for c in found]
    return Outcome(found, votes.weighted(answers, weights, question.equivalent))
