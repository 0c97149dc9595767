"""From the stored runs to the points of the frontier page: load once per state of the database, filter, choose.

Columns of text are kept as pandas categories, so that 100,000 runs filter in milliseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.format import MISSING, measure_text, percent
from analysis.frontier import dominators, frontier
from spec.choices import Dtype, EnergyMethod
from spec.measures import MEASURES, Group, Measure
from store import Between, Run, Store
from ui.charts import escape
from ui.frontier_chart import Picture, Points
from ui.view import EVERYTHING, View

TEXTS = ("model", "precision", "strategy", "strategy_text", "task", "split", "hardware_id", "energy_method")
NUMBERS = ("batch_size", "n_problems", "accuracy_low", "accuracy_high", "created", "energy_valid")
USUAL_AXES = (
    ("flops_per_problem", "accuracy"),
    ("flops_total", "perplexity_byte"),
    ("flops_total", "perplexity_token"),
    ("wall_s", "throughput_tok_s"),
)
MAX_DRAWN = 1_500  # dominated ones; more only cover each other, and cost the browser most of a second
SAMPLE_SEED = 0
Indices = NDArray[np.intp]


def load(store: Store, x: str, y: str) -> pd.DataFrame:
    """Every succeeded run that has both measures, oldest first: x, y, run_id, ``TEXTS`` as categories, ``NUMBERS``.

    Where an axis is an energy, runs whose energy is not valid are left out.
    """
    rows = store.runs.frontier_rows(x, y, columns=("run_id", *TEXTS, *NUMBERS))
    if is_energy(x, y):
        valid = [v != 0 for v in rows["energy_valid"]]
        rows = {name: list(compress(values, valid)) for name, values in rows.items()}
    frame = pd.DataFrame({"run_id": np.asarray(rows["run_id"], dtype=object)})
    for name in ("x", "y", *NUMBERS):
        frame[name] = np.asarray(rows[name], dtype=np.float64)
    for name in TEXTS:
        codes, words = pd.factorize(np.asarray(rows[name], dtype=object))
        frame[name] = pd.Categorical.from_codes(codes, categories=words.astype(object))
    frame["where"] = grouped(frame, "task", "split")
    return frame


def is_energy(*names: str) -> bool:
    """Whether one of these measures is an energy."""
    return any(MEASURES[name].group is Group.ENERGY for name in names)


def invalid_energies(store: Store, x: str, y: str) -> int:
    """How many runs ``load`` leaves out because their energy is not valid."""
    found = {"state": "succeeded", "energy_valid": 0, x: Between(), y: Between()}
    return store.runs.count(found) if is_energy(x, y) else 0


def usual_view(store: Store, run: Run | None = None) -> View:
    """The view of the first axes of ``USUAL_AXES`` that ``run`` has, or else that some run has.

    Runs that score a text have no accuracy.
    """
    measures = run.result.measures if run and run.result else {}
    for x, y in USUAL_AXES:
        if measures.get(x) is not None and measures.get(y) is not None:
            return View(x, y)
    for x, y in USUAL_AXES:
        if store.runs.count({"state": "succeeded", x: Between(), y: Between()}):
            return View(x, y)
    return View()


def grouped(frame: pd.DataFrame, task: str, split: str) -> pd.Categorical:
    """Task and split as one word: ``lab-words``, or ``lab-words (validation)``."""
    tasks, splits = frame[task].cat, frame[split].cat
    width = max(1, len(splits.categories))
    codes, pairs = pd.factorize(tasks.codes.to_numpy() * width + splits.codes.to_numpy())
    words = [task_name(tasks.categories[p // width], splits.categories[p % width]) for p in pairs]
    return pd.Categorical.from_codes(codes, categories=pd.Index(words, dtype=object))


def task_name(task: str, split: str) -> str:
    """A task with its split, which is only named where it is not the usual one."""
    return task if split == "test" else f"{task} ({split})"


@dataclass(frozen=True, slots=True)
class Choice:
    """What can be filtered by, most frequent first, and what is shown when nothing was chosen."""

    tasks: list[str]
    hardware: list[str]
    models: list[str]
    strategies: list[str]
    precisions: list[str]
    task: str | None
    machine: str | None


def choices(frame: pd.DataFrame) -> Choice:
    """The values found; the default task and hardware are the pair with most runs."""
    pairs = frame.groupby(["where", "hardware_id"], observed=True).size()
    task, machine = pairs.idxmax() if len(pairs) else (None, None)
    found = [[str(v) for v in frame[c].value_counts().index] for c in ("where", "hardware_id", "strategy", "precision")]
    tasks, hardware, strategies, precisions = found
    models = sorted(str(m) for m in frame["model"].cat.categories)
    return Choice(tasks, hardware, models, strategies, precisions, task, machine)


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that pass the filters, the frontier among them (in the order of x), and how many are drawn."""

    frame: pd.DataFrame
    x: Measure
    y: Measure
    frontier: Indices
    drawn: Indices
    mixed_tasks: bool
    mixed_hardware: bool
    mixed_methods: bool

    @property
    def sampled(self) -> bool:
        """Whether some dominated points are left out of the picture."""
        return len(self.frontier) + len(self.drawn) < len(self.frame)


def select(frame: pd.DataFrame, view: View, offered: Choice) -> Selection:
    """Filter, find the frontier, and choose which dominated points to draw."""
    task, machine = view.task or offered.task, view.hardware or offered.machine
    keep = np.ones(len(frame), dtype=bool)
    if task != EVERYTHING:
        keep &= (frame["where"] == task).to_numpy()
    if machine != EVERYTHING:
        keep &= (frame["hardware_id"] == machine).to_numpy()
    for column, wanted in (("model", view.models), ("strategy", view.strategies), ("precision", view.precisions)):
        if wanted:
            keep &= frame[column].isin(wanted).to_numpy()
    rows = frame[keep].reset_index(drop=True)
    x, y = MEASURES[view.x], MEASURES[view.y]
    best = frontier(rows["x"], rows["y"], x.better, y.better)
    rest = np.setdiff1d(np.arange(len(rows)), best)
    if len(rest) > MAX_DRAWN:
        rest = np.sort(np.random.default_rng(SAMPLE_SEED).choice(rest, MAX_DRAWN, replace=False))
    return Selection(
        rows,
        x,
        y,
        best,
        rest,
        mixed_tasks=rows["where"].nunique() > 1,
        mixed_hardware=rows["hardware_id"].nunique() > 1,
        mixed_methods=is_energy(view.x, view.y) and rows["energy_method"].nunique() > 1,
    )


def off_scale(selection: Selection, view: View) -> int:
    """How many rows a log scale cannot show."""
    f = selection.frame
    return int(((f["x"] <= 0) & view.is_log_x | (f["y"] <= 0) & view.is_log_y).sum())


def find(selection: Selection, run_id: str | None) -> int | None:
    """The row of a run in the selection, or None."""
    at = np.flatnonzero(selection.frame["run_id"].to_numpy() == run_id)
    return int(at[0]) if run_id and at.size else None


def dominator(selection: Selection, row: int) -> int | None:
    """The frontier row that beats ``row`` at the least cost, or None for a frontier row."""
    f = selection.frame
    found = dominators(f["x"], f["y"], selection.x.better, selection.y.better)[row]
    return int(found) if found >= 0 else None


def within(selection: Selection, view: View) -> pd.DataFrame:
    """The rows inside the view's box, or all of them; frontier rows first, then by x."""
    f = selection.frame.assign(on_frontier=False)
    f.loc[selection.frontier, "on_frontier"] = True
    if view.box:
        b = view.box
        f = f[f["x"].between(b.x0, b.x1) & f["y"].between(b.y0, b.y1)]
    return f.sort_values(["on_frontier", "x"], ascending=[False, True], kind="stable")


def picture(selection: Selection, view: View, hardware: dict[str, str], pinned: int | None) -> Picture:
    """Everything the chart needs, and only the points that it draws."""
    extra = [] if pinned is None else [pinned]
    at = np.unique(np.concatenate([selection.frontier, selection.drawn, extra]).astype(np.intp))
    new = {int(old): i for i, old in enumerate(at)}
    main_task, main_machine = _most(selection.frame, "where"), _most(selection.frame, "hardware_id")
    rows = selection.frame.iloc[at]
    is_odd = ((rows["where"] != main_task) | (rows["hardware_id"] != main_machine)).to_numpy()
    x_low, x_high = _interval(rows, selection.x)
    y_low, y_high = _interval(rows, selection.y)
    points = Points(
        run_id=rows["run_id"].to_numpy(dtype=object),
        x=rows["x"].to_numpy(),
        y=rows["y"].to_numpy(),
        x_low=x_low,
        x_high=x_high,
        y_low=y_low,
        y_high=y_high,
        model=rows["model"].to_numpy(dtype=object),
        family=rows["strategy"].to_numpy(dtype=object),
        card=np.asarray(_cards(rows, selection, hardware), dtype=object),
        odd=is_odd,
    )
    best = selection.frame.iloc[selection.frontier]
    return Picture(
        selection.x,
        selection.y,
        view.is_log_x,
        view.is_log_y,
        points,
        frontier=np.asarray([new[int(i)] for i in selection.frontier], dtype=np.intp),
        labels=[label(*row) for row in zip(best["model"], best["strategy_text"], best["precision"], strict=True)],
        dominated=np.asarray([new[int(i)] for i in selection.drawn], dtype=np.intp),
        pinned=None if pinned is None else new[pinned],
        box=None if view.box is None else (view.box.x0, view.box.x1, view.box.y0, view.box.y1),
    )


def label(model: str, strategy: str, precision: str = "auto") -> str:
    """Short enough to stand beside a point: model, how it is compressed, strategy and its n."""
    name, _, rest = str(strategy).partition(":")
    n = next((p for p in rest.split(",") if p.startswith("n=")), "")
    short = str(model).rstrip("/").rpartition("/")[2]
    steps = [step.partition(":")[0] for step in str(precision).split("+")]
    made = "" if str(precision) in list(Dtype) else f" {'+'.join(s for s in steps if s != 'calibrate')}"
    return f"{short[:24]}{made[:20]} · {name}" + (f" {n}" if n else "")


def _most(frame: pd.DataFrame, column: str) -> Any:
    counts = frame[column].value_counts()
    return counts.index[0] if len(counts) and counts.iloc[0] else None


def _interval(rows: pd.DataFrame, measure: Measure) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if measure.name == "accuracy":
        return rows["accuracy_low"].to_numpy(), rows["accuracy_high"].to_numpy()
    nothing = np.full(len(rows), np.nan)
    return nothing, nothing


def _cards(rows: pd.DataFrame, selection: Selection, hardware: dict[str, str]) -> list[str]:
    """The hover texts: what was chosen, what was measured, how and when. Many, so repeated parts are made once."""
    columns = ["model", "strategy_text", "precision", "batch_size", "where", "energy_method", "hardware_id"]
    kinds, at = _distinct(rows, columns)
    heads = [
        f"<b>{escape(model)}</b>  {escape(strategy)}<br>{escape(precision)}, batch {batch:.0f}, {escape(task)}"
        for model, strategy, precision, batch, task, _, _ in kinds
    ]
    places = [escape(hardware.get(kind[-1], "unknown hardware")) for kind in kinds]
    if is_energy(selection.x.name, selection.y.name):
        places = [f"Energy by {EnergyMethod(kind[-2]).words}<br>{at}" for kind, at in zip(kinds, places, strict=True)]
    days, day_at = pd.factorize((rows["created"] // 86_400).to_numpy())[::-1]
    day_names = [time.strftime("%Y-%m-%d", time.gmtime(day * 86_400)) for day in days]
    low, high = rows["accuracy_low"].to_numpy(), rows["accuracy_high"].to_numpy()
    x = _texts(selection.x, rows["x"].to_numpy(), low, high)
    y = _texts(selection.y, rows["y"].to_numpy(), low, high)
    counts = [MISSING if n != n else f"{n:.0f}" for n in rows["n_problems"]]
    x_name, y_name = selection.x.label, selection.y.label
    return [
        f"{heads[k]}<br>{x_name}: {vx}<br>{y_name}: {vy}<br>n = {n}<br>{places[k]}, {day_names[d]}"
        for k, vx, vy, n, d in zip(at, x, y, counts, day_at, strict=True)
    ]


def _distinct(rows: pd.DataFrame, columns: list[str]) -> tuple[list[tuple[Any, ...]], NDArray[np.intp]]:
    """The distinct combinations of some columns, and for each row which one it has."""
    code = np.zeros(len(rows), dtype=np.int64)
    for name in columns:
        codes, words = pd.factorize(rows[name])
        code = code * (len(words) + 1) + codes
    at, kinds = pd.factorize(code)
    first = np.full(len(kinds), -1)
    first[at[::-1]] = np.arange(len(rows))[::-1]
    return list(rows[columns].iloc[first].itertuples(index=False, name=None)), at


def _texts(
    measure: Measure, values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> list[str]:
    """Values as text, with the interval of an accuracy; equal ones are made once."""
    if measure.name == "accuracy":
        return [_share(v, a, b) for v, a, b in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]
    return [_text(measure.name, f"{v:.3g}") for v in values.tolist()]


@lru_cache(maxsize=50_000)
def _text(measure: str, value: str) -> str:
    return measure_text(measure, float(value))


@lru_cache(maxsize=50_000)
def _share(value: float, low: float, high: float) -> str:
    return percent(value, low, high) if low == low else percent(value)
