"""What all benchmarks share: their options, how a figure is printed, where results are kept."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.measure.hardware import fingerprint

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """Ours and the peer's, both in ``unit``; ``ratio`` says how many times better ours is.

    ``note``: what the figure rests on, e.g. how many outputs were equal.
    """

    name: str
    ours: float
    peer: float
    ratio: float
    unit: str
    note: str = ""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark: ``--quick`` ends within 50 s, ``--json`` closes with one JSON object."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller measurement, under 50 s; nothing is kept")
    parser.add_argument("--json", action="store_true", help="close with {figure: {ours, peer, ratio}} on one line")
    return parser


def against(values: dict[str, float], goals: dict[str, float]) -> str:
    """Figures of which less is better, as the JSON line of ``--json``: the goal stands where a peer would."""
    return json.dumps(
        {
            name: {"ours": round(values[name], 4), "peer": goal, "ratio": round(goal / values[name], 3)}
            for name, goal in goals.items()
            if values.get(name)
        }
    )


class Report:
    """Prints figures as they come and keeps them, with hardware and commit, in ``bench/results/NAME.jsonl``."""

    def __init__(self, name: str, goals: dict[str, float], *, quick: bool, **more: Any) -> None:
        self._path = RESULTS / f"{name}.jsonl"
        self._goals = goals
        self._quick = quick
        self._more = more
        self._load = os.getloadavg()[0]
        self._figures: dict[str, dict[str, float]] = {}

    def add(self, figure: Figure) -> None:
        """Print a figure and keep it."""
        goal = self._goals.get(figure.name)
        against = "" if goal is None else f"  goal {goal:.3g}x: {'reached' if figure.ratio >= goal else 'NOT reached'}"
        note = f"  ({figure.note})" if figure.note else ""
        text = f"{figure.name:28} ours {figure.ours:10.4g}  peer {figure.peer:10.4g} {figure.unit:12}"
        print(f"{text} ratio {figure.ratio:6.2f}x{against}{note}", flush=True)
        self._figures[figure.name] = {
            "ours": float(f"{figure.ours:.5g}"),
            "peer": float(f"{figure.peer:.5g}"),
            "ratio": float(f"{figure.ratio:.4g}"),
        }

    def close(self, as_json: bool) -> None:
        """Append a full measurement to the results; print the JSON line where it is asked for."""
        if not self._quick:
            machine = fingerprint()
            record = {"hardware": machine["hardware_name"], "commit": machine["commit"], "load_before": self._load}
            RESULTS.mkdir(exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(record | self._more | {"goals": self._goals, "figures": self._figures}) + "\n")
        if as_json:
            print(json.dumps(self._figures))
