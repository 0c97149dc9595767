"""Accuracy against cost as a picture: one line for each model and strategy, with the band of its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.format import measure_text, percent
from analysis.lines import Cost, Line
from analysis.published import ACCOUNTING, POINTS, SOURCE, TASK
from analysis.scaling import Point
from spec.measures import MEASURES
from ui.charts import Figure, axis, escape, layout, measure_axis, to_json
from ui.theme import INK, MUTED, PAPER, colours, symbols

BANDS = 16  # lines above which bands would only cover each other
LABELS = 14
ROOM, HEIGHT = 0.16, 0.045  # of the picture; labels nearer to each other than that would overlap
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LEGEND: Figure = {
    "orientation": "h",
    "x": 0.0,
    "xanchor": "left",
    "y": 1.0,
    "yanchor": "bottom",
    "font": {"size": 13, "color": INK},
    "itemclick": False,
    "itemdoubleclick": False,
    "bgcolor": PAPER,
}


@dataclass(frozen=True, slots=True)
class Look:
    """Colours tell models apart, or strategies where there are more of these; the other one has its own mark.

    Strategies always have a symbol; models have a dash where the colour is the strategy's.
    """

    by_model: bool
    colour: Mapping[str, str]
    symbol: Mapping[str, str]
    dash: Mapping[str, str]

    def line(self, line: Line) -> tuple[str, str, str]:
        """Colour, symbol and dash of a line."""
        key = line.model if self.by_model else line.strategy
        return self.colour[key], self.symbol[line.strategy], self.dash[line.model]


def look(lines: Sequence[Line]) -> Look:
    """The marks of some lines."""
    models, strategies = sorted({line.model for line in lines}), sorted({line.strategy for line in lines})
    by_model = len(models) >= len(strategies)
    dashes = {m: "solid" if by_model else DASHES[i % len(DASHES)] for i, m in enumerate(models)}
    return Look(by_model, colours(models if by_model else strategies), symbols(strategies), dashes)


def scaling_figure(lines: Sequence[Line], cost: Cost, limits: Mapping[str, Sequence[Point]], paper: bool) -> str:
    """The figure's JSON. ``limits``: pass@k of some lines by their names; ``paper``: the published points too."""
    marks = look(lines)
    data: list[Figure] = []
    if len(lines) <= BANDS:
        data += [_band(line, marks, 0.14 if len(lines) <= 6 else 0.07) for line in lines if len(line.points) > 1]
    for line in lines:
        if line.name in limits:
            data.append(_limit(line, limits[line.name], marks))
    data += [_line(line, cost, marks) for line in lines]
    xs = [p.x for line in lines for p in line.points]
    if paper:
        data += _paper()
        xs += [p.flops for p in POINTS]
    if 0 < len(lines) <= LABELS:
        data.append(_labels(lines, xs))
    data += _keys(lines, marks, bool(limits), paper)
    figure: Figure = {
        "data": data,
        "layout": layout(
            xaxis=measure_axis(cost.measure, np.asarray(xs), log=True),
            yaxis=axis("Accuracy   <b>better →</b>", tickformat=".0%"),
            margin={"l": 12, "r": 44, "t": 8, "b": 12},
            dragmode="zoom",
            showlegend=True,
            legend=LEGEND,
            modebar={"orientation": "v", "bgcolor": PAPER, "color": MUTED, "activecolor": INK},
            uirevision=f"{cost}/{paper}",
        ),
    }
    return to_json(figure)


def _band(line: Line, marks: Look, opacity: float) -> Figure:
    there, back = line.points, line.points[::-1]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [p.x for p in there] + [p.x for p in back],
        "y": [p.high for p in there] + [p.low for p in back],
        "fill": "toself",
        "fillcolor": marks.line(line)[0],
        "line": {"width": 0},
        "opacity": opacity,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _line(line: Line, cost: Cost, marks: Look) -> Figure:
    colour, symbol, dash = marks.line(line)
    points = line.points
    found: Figure = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [p.x for p in points],
        "y": [p.accuracy for p in points],
        "customdata": [p.run_id for p in points],
        "hovertext": [card(line, p, cost) for p in points],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {
            "symbol": symbol,
            "color": colour,
            "size": [7 if p.is_part else 11 for p in points],
            "line": {"color": INK, "width": [0 if p.is_part else 1.3 for p in points]},
            "opacity": 1.0,
        },
        "cliponaxis": False,
        "showlegend": False,
    }
    if len(points) == 1:
        (p,) = points
        bar = {"type": "data", "symmetric": False, "color": MUTED, "thickness": 1.1, "width": 3}
        found["error_y"] = bar | {"array": [p.high - p.accuracy], "arrayminus": [p.accuracy - p.low]}
    return found


def card(line: Line, point: Point, cost: Cost) -> str:
    """The hover text of a point: what it is, what was measured, and whether it was a run of its own."""
    run = next((r for r in line.runs if r.run_id == point.run_id), line.runs[-1])
    if point.is_part:
        what = f"{escape(line.strategy)}, n = {point.n}"
        how = f"reckoned from parts of the {getattr(run.strategy, 'n', 0)} samples of one run"
    else:
        what, how = escape(run.strategy), "a run of its own"
    return "<br>".join(
        [
            f"<b>{escape(line.model)}</b>  {what}",
            f"Accuracy: {percent(point.accuracy, point.low, point.high)}",
            f"{cost.measure.label}: {measure_text(cost.measure, point.x)}",
            f"n = {point.problems} problems, {escape(run.weights)}",
            how,
        ]
    )


def _limit(line: Line, points: Sequence[Point], marks: Look) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [p.x for p in points],
        "y": [p.accuracy for p in points],
        "hovertext": [f"pass@{p.n} of {escape(line.name)}: {percent(p.accuracy, p.low, p.high)}" for p in points],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "line": {"color": marks.line(line)[0], "width": 1.2, "dash": "dot"},
        "opacity": 0.8,
        "showlegend": False,
    }


def _paper() -> list[Figure]:
    """The published points, hollow and without colour: other models, another task."""
    found = []
    for model in sorted({p.model for p in POINTS}):
        some = sorted((p for p in POINTS if p.model == model), key=lambda p: p.flops)
        texts = [
            f"<b>{p.model}</b>  {p.strategy}, weighted vote, n = {p.n}<br>Accuracy: {percent(p.accuracy)} on {TASK}"
            f"<br>{measure_text(MEASURES['flops_generated'], p.flops)} ({ACCOUNTING})<br>{escape(SOURCE)}"
            for p in some
        ]
        found.append(
            {
                "type": "scatter",
                "mode": "lines+markers+text",
                "x": [p.flops for p in some],
                "y": [p.accuracy for p in some],
                "text": [f"{model}" if i == 0 else "" for i in range(len(some))],
                "textposition": "middle left",
                "textfont": {"size": 12, "color": MUTED},
                "hovertext": texts,
                "hovertemplate": "%{hovertext}<extra></extra>",
                "line": {"color": MUTED, "width": 1, "dash": "dot"},
                "marker": {
                    "symbol": ["star-open" if p.strategy == "REBASE" else "circle-open" for p in some],
                    "size": 10,
                    "color": MUTED,
                },
                "cliponaxis": False,
                "showlegend": False,
            }
        )
    return found


def _labels(lines: Sequence[Line], xs: Sequence[float]) -> Figure:
    """The names of the lines at their ends, as far as they do not cover each other; the dearest line first."""
    ends = sorted(((line, line.points[-1]) for line in lines), key=lambda e: -e[1].x)
    tops = [p.accuracy for line in lines for p in line.points]
    low, high = np.log10(max(min(xs), 1e-300)), np.log10(max(max(xs), 1e-300))
    width, height = (high - low) or 1.0, (max(tops) - min(tops)) or 1.0
    one_model = len({line.model for line in lines}) == 1
    taken: list[tuple[float, float]] = []
    kept = []
    for line, point in ends:
        at = ((np.log10(max(point.x, 1e-300)) - low) / width, point.accuracy / height)
        if all(abs(at[0] - x) > ROOM or abs(at[1] - y) > HEIGHT for x, y in taken):
            taken.append(at)
            kept.append((line, point, at[0]))
    return {
        "type": "scatter",
        "mode": "text",
        "x": [point.x for _, point, _ in kept],
        "y": [point.accuracy for _, point, _ in kept],
        "text": [f"  {escape(line.name.partition(' · ')[2] if one_model else line.name)}  " for line, _, _ in kept],
        "textposition": ["top left" if place > 0.5 else "top right" for _, _, place in kept],
        "textfont": {"size": 12, "color": MUTED},
        "hoverinfo": "skip",
        "cliponaxis": False,
        "showlegend": False,
    }


def _keys(lines: Sequence[Line], marks: Look, limits: bool, paper: bool) -> list[Figure]:
    """Keys that only explain: what colour, dash and shape stand for."""
    nothing: Figure = {"type": "scatter", "x": [None], "y": [None], "hoverinfo": "skip"}
    found = []
    for model in sorted({line.model for line in lines}):
        colour = marks.colour[model] if marks.by_model else INK
        stroke = {"color": colour, "width": 2.5, "dash": marks.dash[model]}
        found.append(nothing | {"mode": "lines", "name": escape(model), "line": stroke})
    for strategy in sorted({line.strategy for line in lines}):
        fill = PAPER if marks.by_model else marks.colour[strategy]
        shape = {"size": 10, "symbol": marks.symbol[strategy], "color": fill, "line": {"color": INK, "width": 1.4}}
        found.append(nothing | {"mode": "markers", "name": escape(strategy), "marker": shape})
    if any(p.is_part for line in lines for p in line.points):
        small = {"size": 6, "color": MUTED}
        found.append(nothing | {"mode": "markers", "name": "small: part of a run", "marker": small})
    if limits:
        dots = {"color": MUTED, "width": 1.2, "dash": "dot"}
        found.append(nothing | {"mode": "lines", "name": "pass@k", "line": dots})
    if paper:
        hollow = {"size": 10, "symbol": "star-open", "color": MUTED}
        name = f"a paper's models on {TASK}"
        found.append(nothing | {"mode": "markers", "name": name, "marker": hollow})
    return found
