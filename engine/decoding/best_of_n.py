"""Best of n: the solution that the reward model scores highest (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from engine.decoding import votes
from engine.decoding.candidates import candidates, confidence, judge, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.strategy import BestOfN


def best_of_n(question: Question, strategy: BestOfN) -> Search:
    """n sampled solutions; the highest score among those with an answer wins."""
    solutions = yield from solve(question, strategy.n, sampling_of(strategy), logprobs=strategy.by_logprob)
    steps = yield from judge(strategy, [s.text for s in solutions], [confidence(s) for s in solutions])
    found = candidates(question, solutions, steps, strategy.aggregate)
    return Outcome(found, votes.best([c.answer for c in found], [c.score for c in found]))
