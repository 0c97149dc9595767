"""Decoding strategies as types. Each holds only its own parameters; ``STRATEGIES`` maps the word to the type.

>>> parse_strategy("majority:n=8,temperature=0.8")
Majority(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, n=8)
"""

from __future__ import annotations

import re
from typing import Any

from spec.errors import SpecError, shorten, unknown
from spec.parameters import build
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

_PART = re.compile(r"(?:\\.|[^,])+", re.DOTALL)
_ESCAPED = re.compile(r"\\([\\,])")

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
    if not isinstance(text, str) or not text.strip():
        raise SpecError(f"A strategy must be given, one of: {', '.join(STRATEGIES)}.", field="strategy")
    name, _, rest = text.strip().partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in _PART.findall(rest))):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals or not value:
            raise SpecError(f"Write strategy parameters as name=value, not {shorten(part)}.", field="strategy")
        if key in values:
            raise SpecError(f"Strategy parameter {key!r} is given twice.", field="strategy")
        values[key] = _ESCAPED.sub(r"\1", value)
    return strategy_from_dict({"name": name.strip()} | values)


def strategy_from_dict(data: dict[str, Any]) -> Strategy:
    """The strategy of ``to_dict``; strict: unknown names and parameters are errors."""
    if not isinstance(data, dict) or "name" not in data:
        raise SpecError(f"strategy must be an object with a name, not {shorten(data)}.", field="strategy")
    values = dict(data)
    name = str(values.pop("name"))
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES, field="strategy")
    strategy: Strategy = build(STRATEGIES[name], values, name)
    return strategy
