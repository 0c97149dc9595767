"""Which stored runs make one line of the scaling chart, and what each of them tells of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from analysis.scaling import SHARED, VOTES, Growth, Point, Sketch, curve
from spec.measures import Better, Group, Measure
from spec.parameters import parameters
from spec.strategy import STRATEGIES, Strategy

# What a strategy spends more of, where that is not its n: runs that differ in nothing else lie on one line.
BUDGETS: dict[str, tuple[str, ...]] = {
    "beam": ("width",),
    "mcts": ("expansions",),
    "budget": ("max_tokens",),
    "early-exit": ("threshold",),
    "speculative": ("tokens",),
    "lookup": ("tokens",),
    "cascade": ("agreement", "k", "n"),
}


class Cost(StrEnum):
    """What accuracy is held against, always per problem."""

    TOKENS = "tokens"
    FLOPS_GENERATED = "flops_generated"
    FLOPS_TOTAL = "flops_total"
    FLOPS_NO_REUSE = "flops_no_reuse"
    SECONDS = "seconds"
    JOULES = "joules"

    @property
    def measure(self) -> Measure:
        """Label, unit and meaning, as of a measure."""
        return _MEASURES[self]


def _cost(name: str, label: str, unit: str, group: Group, formula: str) -> Measure:
    return Measure(name, label, unit, Better.LOWER, group, formula)


_MEASURES = {
    Cost.TOKENS: _cost("tokens", "Tokens per problem", "tokens", Group.COMPUTE, "every token written for a problem"),
    Cost.FLOPS_GENERATED: _cost(
        "flops_generated",
        "Compute per problem, generated",
        "FLOP",
        Group.COMPUTE,
        "2 N T: prompt, attention and reward model are free, as in the literature on inference scaling",
    ),
    Cost.FLOPS_TOTAL: _cost(
        "flops_total",
        "Compute per problem, all",
        "FLOP",
        Group.COMPUTE,
        "every token processed: prompt, attention and reward model included",
    ),
    Cost.FLOPS_NO_REUSE: _cost(
        "flops_no_reuse",
        "Compute per problem, no reuse",
        "FLOP",
        Group.COMPUTE,
        "all compute, if no prompt and no step were shared between samples",
    ),
    Cost.SECONDS: _cost("seconds", "Latency, mean", "s", Group.TIME, "mean time from question to answer"),
    Cost.JOULES: _cost("joules", "Energy per problem", "J", Group.ENERGY, "energy of the run / problems answered"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished run, as its row in the store tells it.

    ``costs``: per problem, those that are known. ``ways``: how it ran, where that may change answers or what they cost.
    """

    run_id: str
    model: str
    weights: str
    strategy: Strategy
    created: float
    problems: int
    accuracy: float
    low: float
    high: float
    costs: Mapping[Cost, float]
    ways: tuple[str, ...] = ()

    def point(self, cost: Cost) -> Point | None:
        """The run as a point; None where its cost is not known."""
        x = self.costs.get(cost)
        n = getattr(self.strategy, "n", None)
        if x is None:
            return None
        return Point(n, x, self.accuracy, self.low, self.high, self.problems, self.run_id)


@dataclass(frozen=True, slots=True)
class Line:
    """Runs of one model and strategy that differ only in how much they spend, the smallest budget first.

    Attributes:
        variant: what tells the line from others of the same model and strategy; empty where there is none.
        source: the run with most samples, of whose parts a curve can be made; None where parts are no smaller runs.
    """

    model: str
    strategy: str
    variant: str
    runs: tuple[Measured, ...]
    source: Measured | None
    points: tuple[Point, ...] = field(default=())

    @property
    def name(self) -> str:
        """Model and strategy, with what tells it from others."""
        words = [self.model.rstrip("/").rpartition("/")[2], self.strategy]
        return " · ".join([*words, *([self.variant] if self.variant else [])])


def costs_of(row: Mapping[str, Any]) -> dict[Cost, float]:
    """Costs per problem from the summary columns of a run; an energy that is not valid is none.

    Sums of compute hold failed problems too, and are divided by all that were asked.
    """
    asked = (row["n_problems"] or 0) * (row["repeats"] or 1) + (row["n_failed"] or 0)
    found = {
        Cost.TOKENS: row["tokens_per_problem"],
        Cost.FLOPS_GENERATED: _per(row["flops_generated"], asked),
        Cost.FLOPS_TOTAL: row["flops_per_problem"],
        Cost.FLOPS_NO_REUSE: _per(row["flops_no_reuse"], asked),
        Cost.SECONDS: row["latency_mean_s"],
        Cost.JOULES: row["j_per_problem"] if row["energy_valid"] else None,
    }
    return {cost: float(value) for cost, value in found.items() if value is not None and math.isfinite(value)}


def _per(total: float | None, count: int) -> float | None:
    return None if total is None or not count else total / count


def lines(runs: Sequence[Measured]) -> list[Line]:
    """Group runs into lines, by model, then strategy.

    Of runs with the same budget the one with most problems stands for all, of several the newest.
    """
    groups: dict[tuple[str, str, tuple[str, ...]], list[Measured]] = {}
    for run in sorted(runs, key=lambda r: (r.problems, r.created)):
        groups.setdefault((run.model, run.strategy.name, _variant(run)), []).append(run)
    counts: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for model, strategy, variant in groups:
        counts.setdefault((model, strategy), []).append(variant)
    found = []
    for (model, strategy, variant), some in sorted(groups.items(), key=lambda g: g[0]):
        best = {_budget(run.strategy): run for run in some}
        kept = tuple(best[key] for key in sorted(best))
        source = kept[-1] if strategy in VOTES else None
        found.append(Line(model, strategy, _told_apart(variant, counts[model, strategy]), kept, source))
    return found


def _variant(run: Measured) -> tuple[str, ...]:
    """What must be equal for two runs of a model and a strategy to lie on one line: precision, ways and parameters."""
    return (run.weights, *run.ways, *(f"{name}={value}" for name, value in _values(run.strategy, budget=False)))


def _budget(strategy: Strategy) -> tuple[float, ...]:
    return tuple(float(value) for _, value in _values(strategy, budget=True))


def _values(strategy: Strategy, *, budget: bool) -> list[tuple[str, Any]]:
    wanted = BUDGETS.get(strategy.name, ("n",))
    names = [p.name for p in parameters(STRATEGIES[strategy.name])]
    return [(name, getattr(strategy, name)) for name in names if (name in wanted) is budget]


def _told_apart(variant: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """The parts of a variant in which the variants of one model and strategy differ."""
    return ", ".join(part for i, part in enumerate(variant) if len({other[i] for other in others}) > 1)


def drawn(line: Line, cost: Cost, sketches: Sequence[Sketch] = (), grown: Sequence[Growth] = ()) -> tuple[Point, ...]:
    """The points of a line, the cheapest first.

    The curve of ``sketches``, the answers of its ``source``, with its vote's growth, where a part of a run has a share
    of the cost; nobody measured the seconds and joules of a part, so there, and without answers, each run is one point.
    """
    if grown and line.source is not None and cost in SHARED:
        made = curve(sketches, grown, cost, line.source.run_id)
        if made:
            return tuple(made)
    found = [point for run in line.runs if (point := run.point(cost)) is not None]
    return tuple(sorted(found, key=lambda p: p.x))
