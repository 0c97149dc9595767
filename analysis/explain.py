"""Why one configuration is worse than another, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.format import SHARES, measure_text, significant
from spec.measures import MEASURES, Better, Measure

_SHOWN = 4
_ELSEWHERE = {
    "hardware_id": "on another machine",
    "model_fingerprint": "with other weights under the same name",
    "task_hash": "on other data under the same task name",
    "commit": "by another version of the program",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A run on a chart: its name, its summary measures, and its specification as ``RunSpec.to_dict`` gives it.

    ``environment`` is what ran and where, as the result holds it; empty where that is not known.
    """

    label: str
    measures: Mapping[str, float | None]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of two specifications that differs; a side that has no such field shows ``-``."""

    field: str
    ours: str
    theirs: str


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    """The fields in which two specifications differ, dotted, in the order of the first."""
    a, b = dict(_flat(ours)), dict(_flat(theirs))
    return [
        Difference(name, _show(a.get(name, "-")), _show(b.get(name, "-")))
        for name in dict.fromkeys([*a, *b])
        if a.get(name, "-") != b.get(name, "-")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _show(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def why_dominated(point: Point, by: Point, x: str, y: str) -> str:
    """One sentence: what ``point`` costs more and gains less than ``by`` on the measures x and y, and why.

    >>> slow = Point("A", {"latency_p50_s": 1.8, "accuracy": 0.50}, {"precision": {"weights": "fp32"}})
    >>> fast = Point("B", {"latency_p50_s": 1.0, "accuracy": 0.52}, {"precision": {"weights": "bf16"}})
    >>> why_dominated(slow, fast, "latency_p50_s", "accuracy")
    '1.80x the median latency of B at 2.0 points lower accuracy; it differs in precision.weights: fp32 → bf16.'
    """
    # Cost first: "1.8x the latency at 2 points lower accuracy" reads better than the other way round.
    cost, gain = sorted((MEASURES[x], MEASURES[y]), key=lambda m: m.better is Better.HIGHER)
    phrase, link = _compare(cost, point.measures.get(cost.name), by.measures.get(cost.name))
    other, _ = _compare(gain, point.measures.get(gain.name), by.measures.get(gain.name))
    return f"{phrase} {link} {by.label} at {other}; {_because(point, by)}."


def _compare(measure: Measure, ours: float | None, theirs: float | None) -> tuple[str, str]:
    """How our value stands to theirs, and the word that leads on to their name."""
    name = _phrase(measure.label)
    if ours is None or theirs is None:
        return f"an unknown {name}", "against"
    if ours == theirs:
        return f"the same {name}", "as"
    if measure.name in SHARES:
        return f"{abs(ours - theirs) * 100:.1f} points {'higher' if ours > theirs else 'lower'} {name}", "than"
    if ours > 0 and theirs > 0:
        return f"{significant(ours / theirs)}x the {name}", "of"
    return f"{measure_text(measure, ours)} instead of {measure_text(measure, theirs)} {name}", "of"


def _phrase(label: str) -> str:
    """A measure's label inside a sentence: ``Latency, median`` becomes ``median latency``."""
    head, _, tail = label.partition(", ")
    words = head if head[1:2].isupper() else head[:1].lower() + head[1:]
    return f"{tail} {words}".strip()


def _differ(point: Point, by: Point, name: str) -> bool:
    ours, theirs = point.environment.get(name), by.environment.get(name)
    return ours is not None and theirs is not None and ours != theirs


def _because(point: Point, by: Point) -> str:
    found = differences(point.spec, by.spec)
    if not found:
        other = [words for name, words in _ELSEWHERE.items() if _differ(point, by, name)]
        if other:
            return f"the configurations are the same, but it was measured {' and '.join(other)}"
        return "the configurations are the same, so this is chance"
    shown = ", ".join(f"{d.field}: {d.ours} → {d.theirs}" for d in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"it differs in {shown}{more}"
