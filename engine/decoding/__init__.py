"""Decoding strategies: one file each, a generator of requests; ``begin`` starts the one that a spec names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.decoding.best_of_n import best_of_n
from engine.decoding.greedy import greedy
from engine.decoding.majority import majority
from engine.decoding.requests import Question, Search
from engine.decoding.sample import sample
from engine.decoding.weighted import weighted
from spec.strategy import BestOfN, Greedy, Majority, Sample, Strategy, Weighted

SEARCHES: dict[type[Strategy], Callable[[Question, Any], Search]] = {
    Greedy: greedy,
    Sample: sample,
    Majority: majority,
    Weighted: weighted,
    BestOfN: best_of_n,
}


def begin(question: Question, strategy: Strategy) -> Search:
    """The strategy's generator for one problem."""
    return SEARCHES[type(strategy)](question, strategy)
