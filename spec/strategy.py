"""Decoding strategies as types. Each holds only its own parameters; ``STRATEGIES`` maps the word to the type.

>>> parse_strategy("majority:n=8,temperature=0.8")
Majority(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, n=8)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from spec.choices import Aggregate
from spec.errors import SpecError, shorten, unknown
from spec.parameters import build, parameter, parameters, validate

_PART = re.compile(r"(?:\\.|[^,])+", re.DOTALL)
_ESCAPED = re.compile(r"\\([\\,])")


@dataclass(frozen=True)
class Strategy:
    """Base of all strategies. ``name`` is the word used everywhere; ``summary`` the sentence shown beside it."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    def __post_init__(self) -> None:
        validate(self, self.name)

    @property
    def samples(self) -> int:
        """Candidates made per problem."""
        return int(getattr(self, "n", 1))

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., <parameter>: ...}``, all parameters present."""
        return {"name": self.name} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def __str__(self) -> str:
        """Compact text form: the name, ``n`` and ``temperature``, then what differs from its default."""
        parts = [
            f"{p.name}={_escape(str(_plain(getattr(self, p.name))))}"
            for p in sorted(parameters(type(self)), key=lambda p: p.name != "n")
            if p.name in ("n", "temperature") or getattr(self, p.name) != p.default
        ]
        return self.name + (":" + ",".join(parts) if parts else "")


@dataclass(frozen=True)
class Greedy(Strategy):
    """Argmax at every token."""

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "One answer, always the most likely token. The cheapest, and the same every time."


@dataclass(frozen=True)
class Sample(Strategy):
    """One sampled path."""

    name: ClassVar[str] = "sample"
    summary: ClassVar[str] = "One answer drawn at random; shows what a single path is worth at this temperature."
    temperature: float = parameter(
        0.8, low=0.01, high=5.0, help="Spread of the sampling: below 1 sharpens, above 1 flattens."
    )
    top_k: int = parameter(0, low=0, high=1_000_000, help="Keep only the k most likely tokens; 0 keeps all.")
    top_p: float = parameter(
        1.0, low=0.01, high=1.0, help="Keep the smallest set of tokens whose probability reaches p; 1 keeps all."
    )
    min_p: float = parameter(
        0.0, low=0.0, high=1.0, help="Drop tokens less likely than min_p times the most likely one; 0 keeps all."
    )


@dataclass(frozen=True)
class Majority(Sample):
    """Self-consistency (Wang et al. 2022, arXiv 2203.11171): sample n paths, the most frequent answer wins."""

    name: ClassVar[str] = "majority"
    summary: ClassVar[str] = "Sample n answers, the most frequent one wins (self-consistency)."
    n: int = parameter(8, low=1, high=4096, help="How many samples are drawn for each problem.")


@dataclass(frozen=True)
class Weighted(Majority):
    """Majority vote in which each candidate votes with its reward-model score."""

    name: ClassVar[str] = "weighted"
    summary: ClassVar[str] = "Sample n answers, each votes with the score a reward model gives it."
    reward: str = parameter("lab-prm", help="Reward model that scores the candidates: a name or a folder.")
    aggregate: Aggregate = parameter(
        Aggregate.LAST, help="How the scores of a candidate's steps become one: last, min, prod or mean."
    )


@dataclass(frozen=True)
class BestOfN(Weighted):
    """The single candidate with the highest reward-model score."""

    name: ClassVar[str] = "best-of-n"
    summary: ClassVar[str] = "Sample n answers, keep the one a reward model scores highest."


STRATEGIES: dict[str, type[Strategy]] = {s.name: s for s in (Greedy, Sample, Majority, Weighted, BestOfN)}


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


def _escape(value: str) -> str:
    """``value`` as ``parse_strategy`` reads it."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value
