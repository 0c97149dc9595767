"""One run's measures as a table, grouped as ``spec.measures`` groups them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.format import count, measure_text, percent
from commands.output import print_table, say
from spec.choices import EnergyMethod
from spec.measures import MEASURES, Group, Measure
from spec.results import RunResult

NOT_VALID = " (not valid)"
_BESIDE = ("accuracy_low", "accuracy_high")


def print_measures(result: RunResult) -> None:
    """A table for each group; what could not be measured is n/a, with the reason below, once.

    Energies that are not valid are marked one by one, and where joules come from is said.
    """
    measures, reasons = result.measures, result.reasons
    missing: dict[str, list[str]] = {}
    for group in Group:
        rows = []
        for measure in (m for m in MEASURES.values() if m.group is group and m.name not in _BESIDE):
            value = measures.get(measure.name)
            if value is None:
                missing.setdefault(reasons.get(measure.name, "not measured"), []).append(measure.label)
            text = cell(measure, value, measures)
            if value is not None and result.energy_valid is False and measure.rests_on_energy:
                text += NOT_VALID
            rows.append((measure.label, text))
        print_table((group.value, ""), rows, right=("",))
        say("")
    if any(result.measures.get(m.name) is not None for m in MEASURES.values() if m.rests_on_energy):
        trust = f"; not valid: {result.energy_reason or 'no reason given'}" if result.energy_valid is False else ""
        say(f"energy: {EnergyMethod(result.energy_method).words}{trust}")
    for reason, labels in missing.items():
        say(f"n/a: {', '.join(labels)}: {reason}")


def flat(result: RunResult) -> dict[str, Any]:
    """The result as one flat object: each measure by its name, then what qualifies them."""
    data = result.to_dict()
    del data["samples"]
    return data.pop("measures") | data


def print_levels(by_level: Mapping[int, Mapping[str, int]]) -> None:
    """Accuracy by difficulty, where the task has levels."""
    rows = [
        (level, percent(v["correct"] / v["n"] if v["n"] else None), f"{v['correct']} of {v['n']}")
        for level, v in sorted(by_level.items())
    ]
    if rows:
        print_table(("level", "accuracy", "correct"), rows, right=("level", "accuracy", "correct"))
        say("")


def cell(measure: Measure, value: Any, measures: Mapping[str, Any]) -> str:
    """A value with its unit, three significant digits; the accuracy with its interval and count."""
    if measure.name == "accuracy" and value is not None:
        return f"{percent(value, *(measures.get(k) for k in _BESIDE))}, n = {count(measures.get('n_problems'))}"
    return measure_text(measure, value)
