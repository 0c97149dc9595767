"""Adaptive consistency: a majority vote that ends when it is settled (Aggarwal et al. 2023, arXiv 2305.11860)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.decoding import votes
from engine.decoding.candidates import candidates, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.choices import StopRule
from spec.results import Candidate
from spec.strategy import Adaptive


def adaptive(question: Question, strategy: Adaptive) -> Search:
    """Samples in waves until the rule says stop. Under ``certain`` the winner is that of all n samples."""
    found: tuple[Candidate, ...] = ()
    while len(found) < strategy.n:
        wave = min(strategy.wave, strategy.n - len(found))
        drawn = yield from solve(question, wave, sampling_of(strategy), first=len(found))
        found += candidates(question, drawn)
        sizes = [len(g) for g in votes.classes([c.answer for c in found], question.equivalent)]
        if settled(sizes, strategy.n - len(found), strategy.rule, strategy.confidence):
            break
    return Outcome(found, votes.majority([c.answer for c in found], question.equivalent))


def settled(sizes: Sequence[int], left: int, rule: StopRule, confidence: float) -> bool:
    """Whether a vote with classes of these sizes is over, where ``left`` samples are to come."""
    first, second, *_ = [*sorted(sizes, reverse=True), 0, 0]
    if rule is StopRule.CERTAIN:
        return second + left <= first  # of equal classes the one that got there first wins
    return first > 0 and posterior(first, second) > confidence


def posterior(first: int, second: int) -> float:
    """Probability that the leader is the more frequent answer of the two: P(p > 1/2), p ~ Beta(first + 1, second + 1).

    Of whole numbers this is a binomial tail: heads at most ``first`` times in first + second + 1 tosses.

    >>> posterior(4, 0)
    0.96875
    """
    tosses = first + second + 1
    return float(sum(math.comb(tosses, heads) for heads in range(first + 1)) / 2**tosses)
