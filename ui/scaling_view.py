"""What the page Scaling shows, as a value that fits in a link. Bad parameters are dropped and named, never obeyed.

>>> ScalingView.from_params({"x": ["tokens"], "model": ["lab-s"], "paper": ["1"]})[0].to_params()
{'x': ['tokens'], 'model': ['lab-s'], 'paper': ['1']}
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.lines import Cost
from spec.errors import shorten
from ui.view import RUN_ID, Params, all_params, one_param

SWITCHES = ("paper", "limit")


@dataclass(frozen=True, slots=True)
class ScalingView:
    """The cost across, filters (empty: no restriction), and what is drawn besides.

    ``task`` and ``hardware``: None takes those with most runs, ``*`` mixes all. ``paper``: published points beside
    ours. ``limit``: pass@k above each vote. ``run``: the run that was clicked.
    """

    x: Cost = Cost.FLOPS_TOTAL
    task: str | None = None
    hardware: str | None = None
    models: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    paper: bool = False
    limit: bool = False
    run: str | None = None

    @property
    def shows_paper(self) -> bool:
        """Published points are counted one way only, and shown on that axis alone."""
        return self.paper and self.x is Cost.FLOPS_GENERATED

    def to_params(self) -> dict[str, list[str]]:
        """The query parameters that bring this view back."""
        named = {"x": str(self.x), "task": self.task, "hw": self.hardware, "run": self.run}
        found = {name: [value] for name, value in named.items() if value is not None}
        for name, values in (("model", self.models), ("strategy", self.strategies), ("precision", self.precisions)):
            if values:
                found[name] = list(values)
        return found | {name: ["1"] for name in SWITCHES if getattr(self, name)}

    @classmethod
    def from_params(cls, params: Params) -> tuple[ScalingView, list[str]]:
        """The view of a link, and a sentence for each part of it that makes no sense."""
        complaints = []
        x = one_param(params, "x") or cls().x
        if x not in list(Cost):
            usual = cls().x.measure.label
            complaints.append(f"The link asks for the cost {shorten(x)}, which does not exist; showing {usual}.")
            x = cls().x
        run = one_param(params, "run")
        if run is not None and not RUN_ID.fullmatch(run):
            complaints.append(f"{shorten(run)} is no run: a run's id has twelve hexadecimal digits.")
            run = None
        return cls(
            Cost(x),
            task=one_param(params, "task"),
            hardware=one_param(params, "hw"),
            models=all_params(params, "model"),
            strategies=all_params(params, "strategy"),
            precisions=all_params(params, "precision"),
            paper=one_param(params, "paper") == "1",
            limit=one_param(params, "limit") == "1",
            run=run,
        ), complaints
