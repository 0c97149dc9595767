"""What the Frontier shows, as a value that fits in a link. Bad parameters are dropped and named, never obeyed.

>>> view, complaints = View.from_params({"x": ["wall_s"], "model": ["lab-s", "lab-m"], "y": ["nonsense"]})
>>> view.x, view.models, complaints
('wall_s', ('lab-s', 'lab-m'), ["The link asks for the measure 'nonsense', which does not exist; showing Accuracy."])
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spec.errors import shorten
from spec.measures import MEASURES, Better, Group, Measure
from ui.plot import Box

EVERYTHING = "*"
AXES = [m for m in MEASURES.values() if m.better is not Better.NEITHER]
RUN_ID = re.compile(r"[0-9a-f]{12}")
MAX_VALUE = 300
Params = Mapping[str, Sequence[str]]


def log_by_default(measure: Measure) -> bool:
    """Costs span decades; shares and perplexities do not."""
    return measure.group is not Group.QUALITY


@dataclass(frozen=True, slots=True)
class View:
    """Axes, scales (None: the measure's own default), filters (empty: no restriction), the pinned run and the box.

    ``task`` and ``hardware``: None takes those of the pinned run, or else those with most runs; ``*`` mixes all.
    """

    x: str = "flops_per_problem"  # the cost that no batch size and no busy machine can distort
    y: str = "accuracy"
    log_x: bool | None = None
    log_y: bool | None = None
    task: str | None = None
    hardware: str | None = None
    models: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    run: str | None = None
    box: Box | None = None

    @property
    def is_log_x(self) -> bool:
        """Whether the x axis is logarithmic."""
        return log_by_default(MEASURES[self.x]) if self.log_x is None else self.log_x

    @property
    def is_log_y(self) -> bool:
        """Whether the y axis is logarithmic."""
        return log_by_default(MEASURES[self.y]) if self.log_y is None else self.log_y

    def to_params(self) -> dict[str, list[str]]:
        """The query parameters that bring this view back, also when later runs have changed what is usual."""
        named = {"x": self.x, "y": self.y, "task": self.task, "hw": self.hardware, "run": self.run}
        found = {name: [value] for name, value in named.items() if value is not None}
        for axis, chosen in (("x", self.log_x), ("y", self.log_y)):
            measure = MEASURES[self.x if axis == "x" else self.y]
            if chosen is not None and chosen != log_by_default(measure):
                found[f"{axis}scale"] = ["log" if chosen else "linear"]
        for name, values in (("model", self.models), ("strategy", self.strategies), ("precision", self.precisions)):
            if values:
                found[name] = list(values)
        if self.box:
            b = self.box
            found["box"] = [",".join(f"{v:.12g}" for v in (b.x0, b.x1, b.y0, b.y1))]
        return found

    @classmethod
    def from_params(cls, params: Params) -> tuple[View, list[str]]:
        """The view of a link, and a sentence for each part of it that makes no sense."""
        view, complaints = cls(), []
        for axis in ("x", "y"):
            name = one_param(params, axis)
            if name is None or name in {m.name for m in AXES}:
                view = replace(view, **{axis: name or getattr(view, axis)})
            else:
                usual = MEASURES[getattr(view, axis)].label
                complaints.append(
                    f"The link asks for the measure {shorten(name)}, which does not exist; showing {usual}."
                )
            scale = one_param(params, f"{axis}scale")
            if scale in ("log", "linear"):
                view = replace(view, **{f"log_{axis}": scale == "log"})
            elif scale is not None:
                complaints.append(f"The link asks for the scale {shorten(scale)}; a scale is log or linear.")
        run = one_param(params, "run")
        if run is not None and not RUN_ID.fullmatch(run):
            complaints.append(f"{shorten(run)} is no run: a run's id has twelve hexadecimal digits.")
            run = None
        box_text = one_param(params, "box")
        box = _box(box_text)
        if box_text is not None and box is None:
            complaints.append("The selection in the link is not four numbers; nothing is selected.")
        return replace(
            view,
            task=one_param(params, "task"),
            hardware=one_param(params, "hw"),
            models=all_params(params, "model"),
            strategies=all_params(params, "strategy"),
            precisions=all_params(params, "precision"),
            run=run,
            box=box,
        ), complaints


def one_param(params: Params, name: str) -> str | None:
    """The last value of a parameter; None where it has none."""
    values = all_params(params, name)
    return values[-1] if values else None


def all_params(params: Params, name: str) -> tuple[str, ...]:
    """The different values of a parameter that are not empty, each cut to what a name may have."""
    return tuple(dict.fromkeys(v[:MAX_VALUE] for v in params.get(name, ()) if v))


def _box(text: str | None) -> Box | None:
    try:
        x0, x1, y0, y1 = (float(v) for v in (text or "").split(","))
    except ValueError:
        return None
    if not all(math.isfinite(v) for v in (x0, x1, y0, y1)):
        return None
    return Box(min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1))
