"""Prepared models as families: a model on top, what was made of it below, and what runs measured of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from engine import artifacts
from engine.artifacts import RECORD, Artifact
from store import Store
from ui.models_words import step_words

GROUP = ("model", "compression", "task")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a run without a search measured; ``low`` and ``high``: its Wilson interval."""

    share: float
    low: float
    high: float
    problems: int
    task: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the picture: a model (``artifact`` None) or one that was made of it.

    Attributes:
        depth: how far it is indented; ``up``: the row above that it was made from, None for a model.
    """

    model: str
    artifact: Artifact | None
    depth: int
    up: int | None
    label: str
    bytes: int
    parent_bytes: int
    agreement: float | None = None
    accuracy: Accuracy | None = None


def load() -> tuple[list[Artifact], list[str]]:
    """Every artifact, the oldest first, and a sentence for each that is damaged. Not to be changed by the caller."""
    return _load(_signature())


def _signature() -> tuple[tuple[str, int, int], ...]:
    found = []
    try:
        paths = sorted(artifacts.folder().iterdir())
    except OSError:
        return ()
    for path in paths:
        try:
            stat = (path / RECORD).stat()
            found.append((str(path), stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((str(path), 0, 0))
    return tuple(found)


@st.cache_resource(max_entries=4, show_spinner=False)
def _load(version: tuple[tuple[str, int, int], ...]) -> tuple[list[Artifact], list[str]]:
    found, damaged = artifacts.all_artifacts()
    odd = [a for a in found if not _sound(a)]
    words = [f"The record of the prepared model {a.id} holds values of another kind than Isoquant writes." for a in odd]
    return [a for a in found if a not in odd], [*damaged, *words]


def _sound(a: Artifact) -> bool:
    numbers = (a.bytes, a.parent_bytes, a.created, a.seconds, a.parameters)
    texts = (a.id, a.model, a.dtype)
    return (
        all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers)
        and all(isinstance(t, str) for t in texts)
        and isinstance(a.before, str | None)
        and isinstance(a.errors, dict)
        and isinstance(a.facts, dict)
        and a.id == a.path.name
        and bool(a.recipe.work)
    )


def number(values: Any, name: str) -> float | None:
    """A finite number of a record, which may be of another version; None where there is none."""
    found = values.get(name) if isinstance(values, Mapping) else None
    usable = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if usable else None


def measured(store: Store) -> dict[tuple[str, str], dict[str, Accuracy]]:
    """Accuracy of greedy runs by model and recipe, then by task: the run with most problems, else the newest."""
    columns = (*GROUP, "accuracy", "accuracy_low", "accuracy_high", "n_problems", "run_id")
    rows = store.runs.of_each(GROUP, "n_problems", columns, {"strategy": "greedy"})
    found: dict[tuple[str, str], dict[str, Accuracy]] = {}
    for at, share in enumerate(rows["accuracy"]):
        one = {name: rows[name][at] for name in columns}
        if share is None:
            continue
        bounds = [share if one[n] is None else one[n] for n in ("accuracy_low", "accuracy_high")]
        accuracy = Accuracy(share, *bounds, int(one["n_problems"] or 0), one["task"], one["run_id"])
        found.setdefault((one["model"], one["compression"] or ""), {})[one["task"]] = accuracy
    return found


def families(
    found: Sequence[Artifact], runs: Mapping[tuple[str, str], Mapping[str, Accuracy]], only: str | None = None
) -> list[Row]:
    """The rows of all families, or of one model's: children below what they were made from, the largest first."""
    rows: list[Row] = []
    for model in dict.fromkeys(a.model for a in found):
        if only is None or model == only:
            rows += _family(model, [a for a in found if a.model == model], runs, len(rows))
    return rows


def _family(
    model: str, mine: Sequence[Artifact], runs: Mapping[tuple[str, str], Mapping[str, Accuracy]], first: int
) -> list[Row]:
    ids = {a.id for a in mine}
    below: dict[str | None, list[Artifact]] = {}
    for a in sorted(mine, key=lambda a: (-a.bytes, a.created)):
        below.setdefault(a.before if a.before in ids and a.before != a.id else None, []).append(a)
    task = _task([runs.get((model, text), {}) for text in ("", *(str(a.recipe) for a in mine))])
    whole = max(a.parent_bytes for a in mine)
    rows = [Row(model, None, 0, None, model, whole, whole, None, runs.get((model, ""), {}).get(task))]

    def add(before: str | None, depth: int, up: int) -> None:
        for a in below.pop(before, []):
            rows.append(
                Row(
                    model=model,
                    artifact=a,
                    depth=depth,
                    up=up,
                    label=label(a),
                    bytes=a.bytes,
                    parent_bytes=a.parent_bytes,
                    agreement=number(a.errors, "top1_agreement"),
                    accuracy=runs.get((model, str(a.recipe)), {}).get(task),
                )
            )
            add(a.id, depth + 1, first + len(rows) - 1)

    while below:  # without a beginning are only those whose records go round in a circle
        add(next(iter(below)), 1, first)
    return rows


def _task(measured_on: Iterable[Mapping[str, Accuracy]]) -> str:
    """The task that most of a family was measured on; of several the one with most problems."""
    counts: dict[str, tuple[int, int]] = {}
    for one in measured_on:
        for task, accuracy in one.items():
            times, most = counts.get(task, (0, 0))
            counts[task] = times + 1, max(most, accuracy.problems)
    return max(counts, key=lambda t: (counts[t], t), default="")


def label(artifact: Artifact) -> str:
    """Its last step in words; all of its steps where what they made is not kept."""
    steps = artifact.recipe.work
    last = step_words(steps[-1], artifact.facts) if steps else "no step"
    if artifact.before is None and len(steps) > 1:
        return " + ".join([*(step_words(s) for s in steps[:-1]), last])
    return last


def whole_label(artifact: Artifact) -> str:
    """All of its steps in words."""
    steps = artifact.recipe.work
    words = [step_words(s) for s in steps[:-1]] + ([step_words(steps[-1], artifact.facts)] if steps else [])
    return " + ".join(words)


def children(found: Sequence[Artifact], artifact: Artifact) -> list[Artifact]:
    """Those that were made from it."""
    return [a for a in found if a.before == artifact.id and a.id != artifact.id]


def ancestors(found: Sequence[Artifact], artifact: Artifact) -> list[Artifact]:
    """What it was made from, the nearest first; the model itself is none of them."""
    by_id = {a.id: a for a in found}
    seen: list[Artifact] = []
    at = by_id.get(artifact.before or "")
    while at is not None and at not in seen and at.id != artifact.id:
        seen.append(at)
        at = by_id.get(at.before or "")
    return seen
