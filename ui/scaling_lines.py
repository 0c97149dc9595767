"""From the stored runs to the lines of the page Scaling: filter, group, read the answers of those that need it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.lines import Cost, Line, Measured, costs_of, drawn, lines
from analysis.scaling import SHARED, VOTES, Growth, Point, Sketch, curve, growth, sketch
from spec.errors import SpecError
from spec.strategy import Strategy, parse_strategy
from store import Between, Store
from ui.frontier import Choice, choices, grouped
from ui.scaling_view import ScalingView
from ui.view import EVERYTHING

# What lines are told apart by besides, and in which words.
WAYS = {"backend": "{}", "prompt_style": "{}", "kv_cache": "{} cache"}
TEXTS = ("model", "precision", "strategy", "strategy_text", "task", "split", "hardware_id", "energy_method", *WAYS)
NUMBERS = (
    "accuracy",
    "created",
    "n_problems",
    "n_failed",
    "repeats",
    "accuracy_low",
    "accuracy_high",
    "tokens_per_problem",
    "flops_generated",
    "flops_per_problem",
    "flops_no_reuse",
    "latency_mean_s",
    "j_per_problem",
    "energy_valid",
)
MAX_LINES = 24
MAX_ANSWERS = 20_000  # read for curves; a second or two for each ten thousand, the first time
ALIKE = ("task", "split", "hardware_id", "model", "precision", "strategy_text", *WAYS)


@dataclass(frozen=True, slots=True)
class Selected:
    """The lines that pass the filters, and what must be said of them.

    ``left_out``: lines beyond ``MAX_LINES``; ``unread``: votes drawn without a curve, for it would take too many
    answers; ``lacking``: runs that do not know this cost.
    """

    lines: tuple[Line, ...]
    runs: int
    left_out: int
    unread: int
    lacking: int
    mixed_tasks: bool
    mixed_hardware: bool
    methods: tuple[str, ...]


def load(store: Store) -> tuple[pd.DataFrame, Choice]:
    """The succeeded runs with an accuracy, of equal configurations one, and what they can be filtered by."""
    rows = store.runs.of_each(ALIKE, "n_problems", ("run_id", *TEXTS, *NUMBERS), {"accuracy": Between()})
    frame = pd.DataFrame({"run_id": np.asarray(rows["run_id"], dtype=object), "count": rows["count"]})
    for name in NUMBERS:
        frame[name] = np.asarray(rows[name], dtype=np.float64)
    for name in TEXTS:
        codes, words = pd.factorize(np.asarray(rows[name], dtype=object))
        frame[name] = pd.Categorical.from_codes(codes, categories=words.astype(object))
    frame["where"] = grouped(frame, "task", "split")
    return frame, choices(frame)


def select(frame: pd.DataFrame, view: ScalingView, offered: Choice) -> Selected:
    """The lines of the runs that pass the filters; their points are still to be made."""
    task, machine = view.task or offered.task, view.hardware or offered.machine
    keep = np.ones(len(frame), dtype=bool)
    if task != EVERYTHING:
        keep &= (frame["where"] == task).to_numpy()
    if machine != EVERYTHING:
        keep &= (frame["hardware_id"] == machine).to_numpy()
    for column, wanted in (("model", view.models), ("strategy", view.strategies), ("precision", view.precisions)):
        if wanted:
            keep &= frame[column].isin(wanted).to_numpy()
    rows = frame[keep]
    runs = [run for row in rows.to_dict("records") if (run := measured(row)) is not None]
    able = [run for run in runs if view.x in run.costs]
    found = sorted(lines(able), key=lambda line: (line.source is None, -len(line.runs), -line.runs[-1].created))
    shown = found[:MAX_LINES]
    return Selected(
        tuple(sorted(shown, key=lambda line: (line.model, line.strategy, line.variant))),
        runs=int(rows["count"].sum()),
        left_out=len(found) - len(shown),
        unread=0,
        lacking=len(runs) - len(able),
        mixed_tasks=rows["where"].nunique() > 1,
        mixed_hardware=rows["hardware_id"].nunique() > 1,
        methods=tuple(sorted({str(m) for m in rows["energy_method"].unique()})) if view.x is Cost.JOULES else (),
    )


def measured(row: dict[str, Any]) -> Measured | None:
    """A row as a run; None for a strategy that this version does not know."""
    strategy = _strategy(str(row["strategy_text"]))
    if strategy is None:
        return None
    values = {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}
    accuracy = float(row["accuracy"])
    low, high = values["accuracy_low"], values["accuracy_high"]
    return Measured(
        str(row["run_id"]),
        str(row["model"]),
        str(row["precision"]),
        strategy,
        float(row["created"]),
        int(values["n_problems"] or 0),
        accuracy,
        accuracy if low is None else float(low),
        accuracy if high is None else float(high),
        costs_of(values),
        tuple(words.format(row[name]) for name, words in WAYS.items()),
    )


@lru_cache(maxsize=10_000)
def _strategy(text: str) -> Strategy | None:
    try:
        return parse_strategy(text)
    except SpecError:
        return None


def read(store: Store, run_id: str) -> tuple[Sketch, ...]:
    """The checked answers of a run without their texts."""
    return tuple(s for a in store.answers.of_run(run_id, trees=False) if (s := sketch(a)) is not None)


def wants_answers(selected: Selected, cost: Cost) -> list[Line]:
    """The lines of which a curve can be made on this axis, as many as ``MAX_ANSWERS`` allows, small runs first."""
    if cost not in SHARED:
        return []
    able = sorted((line for line in selected.lines if line.source), key=lambda line: _problems(line))
    total, found = 0, []
    for line in able:
        total += _problems(line)
        if total <= MAX_ANSWERS:
            found.append(line)
    return found


def _problems(line: Line) -> int:
    return line.source.problems if line.source else 0


@dataclass(frozen=True, slots=True)
class Grown:
    """The answers of a vote, how its accuracy grows with its samples, and how that of a perfect judge does."""

    sketches: tuple[Sketch, ...]
    vote: tuple[Growth, ...]
    limit: tuple[Growth, ...]


def grow(store: Store, run_id: str, strategy: str) -> Grown:
    """What a run's answers say of all smaller votes; nothing where none of them was checked."""
    sketches = read(store, run_id)
    return Grown(sketches, tuple(growth(sketches, VOTES[strategy])), tuple(growth(sketches, None)))


def with_points(
    selected: Selected, cost: Cost, grown: dict[str, Grown], limit: bool = False
) -> tuple[Selected, dict[str, tuple[Point, ...]]]:
    """The selection with the points of its lines, and for ``limit`` the pass@k curve of each by the line's name.

    ``grown``: by run, of the votes whose answers were read.
    """
    nothing = Grown((), (), ())
    made, limits = [], {}
    for line in selected.lines:
        own = grown.get(line.source.run_id, nothing) if line.source else nothing
        made.append(replace(line, points=drawn(line, cost, own.sketches, own.vote)))
        if limit and own.limit and line.source and cost in SHARED:
            limits[line.name] = tuple(curve(own.sketches, own.limit, cost, line.source.run_id))
    able = sum(1 for line in selected.lines if line.source) if cost in SHARED else 0
    unread = able - len(wants_answers(selected, cost))
    return replace(selected, lines=tuple(line for line in made if line.points), unread=unread), limits
