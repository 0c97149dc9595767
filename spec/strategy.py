"""Decoding strategies as types. Each holds only its own parameters; ``STRATEGIES`` maps the word to the type.

>>> parse_strategy("majority:n=8,temperature=0.8")
Majority(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, n=8)
"""

from __future__ import annotations

from typing import Any

from spec.named import named_from_dict, parse_named
from spec.strategies.base import LOGPROB, Strategy
from spec.strategies.fast import Drafted, EarlyExit, Lookup, Speculative
from spec.strategies.sampling import Adaptive, Beam, BestOfN, Budget, Greedy, Majority, Sample, Weighted
from spec.strategies.search import Dvts, Lookahead, Mcts, Particle, Rebase, RoundSearch, StepBeam, StepSearch
from spec.strategies.several import Cascade, Ensemble

__all__ = [
    "LOGPROB",
    "STRATEGIES",
    "Adaptive",
    "Beam",
    "BestOfN",
    "Budget",
    "Cascade",
    "Drafted",
    "Dvts",
    "EarlyExit",
    "Ensemble",
    "Greedy",
    "Lookahead",
    "Lookup",
    "Majority",
    "Mcts",
    "Particle",
    "Rebase",
    "RoundSearch",
    "Sample",
    "Speculative",
    "StepBeam",
    "StepSearch",
    "Strategy",
    "Weighted",
    "parse_strategy",
    "strategy_from_dict",
]

STRATEGIES: dict[str, type[Strategy]] = {
    s.name: s
    for s in (
        *(Greedy, Sample, Majority, Weighted, BestOfN, Adaptive, Beam),
        *(StepBeam, Dvts, Lookahead, Mcts, Rebase, Particle),
        *(Speculative, Lookup, EarlyExit, Budget, Cascade, Ensemble),
    )
}


def parse_strategy(text: str) -> Strategy:
    """The strategy written as ``name:parameter=value,...``; raises SpecError with the nearest valid word.

    A comma or backslash that belongs to a value, e.g. to the path of a reward model, has a backslash before it.
    """
    return parse_named(text, STRATEGIES, "strategy")


def strategy_from_dict(data: dict[str, Any]) -> Strategy:
    """The strategy of ``to_dict``; strict: unknown names and parameters are errors."""
    return named_from_dict(data, STRATEGIES, "strategy")
