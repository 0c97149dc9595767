"""The frontier as a picture: a step line, its members with error bars, everything dominated small and pale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spec.measures import Better, Measure
from ui.charts import Figure, escape, layout, measure_axis, to_json
from ui.theme import INK, MUTED, PAPER, colours, symbols

CROWDED = 500  # dominated points above which they are drawn paler
LABEL_WIDTH, LABEL_HEIGHT = 0.2, 0.065  # of the picture; labels nearer to each other than that would overlap
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
Strings = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Points:
    """Runs as columns of equal length. ``x_low`` to ``y_high`` are interval ends, NaN where there is no interval.

    ``card`` is the hover text (already safe to show); ``odd`` marks points of a task or hardware other than the one
    most points have.
    """

    run_id: Strings
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    x_low: NDArray[np.float64]
    x_high: NDArray[np.float64]
    y_low: NDArray[np.float64]
    y_high: NDArray[np.float64]
    model: Strings
    family: Strings
    card: Strings
    odd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn: axes, points, and by index the frontier in its order, the dominated ones, the pinned one.

    ``labels`` belong to the frontier's points, short enough to stand beside them.
    """

    x: Measure
    y: Measure
    log_x: bool
    log_y: bool
    points: Points
    frontier: NDArray[np.intp]
    labels: list[str]
    dominated: NDArray[np.intp]
    pinned: int | None = None
    box: tuple[float, float, float, float] | None = None


def frontier_figure(picture: Picture) -> str:
    """The figure's JSON."""
    p = picture.points
    colour, symbol = colours(p.model), symbols(p.family)
    data = [
        *_dominated(picture, colour, symbol),
        *_frontier(picture, colour, symbol),
        *_pinned(picture, colour, symbol),
    ]
    data += _legend(colour, symbol, sorted(set(p.family)))
    figure: Figure = {
        "data": data,
        "layout": layout(
            xaxis=measure_axis(picture.x, p.x, picture.log_x),
            yaxis=measure_axis(picture.y, p.y, picture.log_y),
            margin={"l": 12, "r": 44, "t": 8, "b": 12},
            dragmode="select",
            newselection={"line": {"color": INK, "width": 1, "dash": "dot"}},
            activeselection={"fillcolor": MUTED, "opacity": 0.08},
            selections=_box(picture),
            showlegend=True,
            legend=LEGEND,
            modebar={"orientation": "v", "bgcolor": PAPER, "color": MUTED, "activecolor": INK},
            annotations=_corner(picture),
            uirevision=f"{picture.x.name}/{picture.log_x}/{picture.y.name}/{picture.log_y}",
        ),
    }
    return to_json(figure)


def _markers(p: Points, at: NDArray[np.intp], colour: dict[str, str], symbol: dict[str, str]) -> Figure:
    marks = [symbol[f] + ("-open" if o else "") for f, o in zip(p.family[at], p.odd[at], strict=True)]
    return {"color": [colour[m] for m in p.model[at]], "symbol": marks}


def _dominated(picture: Picture, colour: dict[str, str], symbol: dict[str, str]) -> list[Figure]:
    p, at = picture.points, picture.dominated
    traces = []
    for model in sorted(set(p.model[at])):
        some = at[p.model[at] == model]
        marks = _markers(p, some, {model: colour[model]}, symbol)["symbol"]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": p.x[some].astype("f4"),
                "y": p.y[some].astype("f4"),
                "customdata": list(p.run_id[some]),
                "text": list(p.card[some]),
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "size": 6 if len(at) <= CROWDED else 5,
                    "opacity": 0.5 if len(at) <= CROWDED else 0.3,
                    "color": colour[model],
                    "symbol": marks if len(set(marks)) > 1 else marks[0],
                },
                "selected": {"marker": {"opacity": 0.9}},
                "unselected": {"marker": {"opacity": 0.2}},
                "showlegend": False,
            }
        )
    return traces


def _frontier(picture: Picture, colour: dict[str, str], symbol: dict[str, str]) -> list[Figure]:
    p, at = picture.points, picture.frontier
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": p.x[at],
        "y": p.y[at],
        "line": {"color": INK, "width": 1.6, "shape": step_shape(picture.x.better)},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    members = {
        "type": "scatter",
        "mode": "markers+text",
        "x": p.x[at],
        "y": p.y[at],
        "customdata": list(p.run_id[at]),
        "hovertext": list(p.card[at]),
        "hovertemplate": "%{hovertext}<extra></extra>",
        "text": _spaced_labels(picture),
        "textposition": _label_places(picture),
        "textfont": {"size": 12, "color": MUTED},
        "cliponaxis": False,
        "marker": {"size": 11, "line": {"color": INK, "width": 1.3}, "opacity": 1.0} | _markers(p, at, colour, symbol),
        "unselected": {"marker": {"opacity": 1.0}, "textfont": {"color": MUTED}},
        "showlegend": False,
    }
    return [line, members | _errors(p, at, picture)] if len(at) else []


def _pinned(picture: Picture, colour: dict[str, str], symbol: dict[str, str]) -> list[Figure]:
    if picture.pinned is None:
        return []
    p, at = picture.points, np.asarray([picture.pinned])
    ring = {
        "type": "scatter",
        "mode": "markers",
        "x": p.x[at],
        "y": p.y[at],
        "hoverinfo": "skip",
        "marker": {"size": 22, "symbol": "circle-open", "color": INK, "line": {"width": 2.2, "color": INK}},
        "unselected": {"marker": {"opacity": 1.0}},
        "showlegend": False,
    }
    marker = {"size": 11, "line": {"color": INK, "width": 1.3}} | _markers(p, at, colour, symbol)
    point = ring | {"hoverinfo": "skip", "marker": marker}
    return [point | _errors(p, at, picture), ring]


def _errors(p: Points, at: NDArray[np.intp], picture: Picture) -> Figure:
    """Error bars, where at least one point has an interval."""
    found: Figure = {}
    for name, value, low, high in (
        ("error_x", p.x[at], p.x_low[at], p.x_high[at]),
        ("error_y", p.y[at], p.y_low[at], p.y_high[at]),
    ):
        if np.isfinite(low).any():
            found[name] = {
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(high - value),
                "arrayminus": np.nan_to_num(value - low),
                "color": MUTED,
                "thickness": 1.1,
                "width": 3,
            }
    return found


def _legend(colour: dict[str, str], symbol: dict[str, str], families: list[str]) -> list[Figure]:
    """Two keys that only explain: colour is the model, shape the strategy."""
    nothing: Figure = {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "hoverinfo": "skip"}
    named = [m for m, c in colour.items() if c != MUTED]
    entries = [
        nothing | {"name": escape(m), "marker": {"size": 10, "color": colour[m], "line": {"color": INK, "width": 1}}}
        for m in named
    ]
    if rest := len(colour) - len(named):
        entries.append(nothing | {"name": f"{rest} more", "marker": {"size": 10, "color": MUTED}})
    entries += [
        nothing
        | {
            "name": escape(f),
            "marker": {"size": 10, "symbol": symbol[f], "color": PAPER, "line": {"color": INK, "width": 1.4}},
        }
        for f in families
    ]
    return entries


def _corner(picture: Picture) -> list[Figure]:
    """The corner that everybody wants to reach."""
    if Better.NEITHER in (picture.x.better, picture.y.better):
        return []
    right, up = picture.x.better is Better.HIGHER, picture.y.better is Better.HIGHER
    arrow = {(False, True): "↖", (True, True): "↗", (False, False): "↙", (True, False): "↘"}[right, up]
    return [
        {
            "xref": "paper",
            "yref": "paper",
            "x": 1 if right else 0,
            "y": 1 if up else 0,
            "xanchor": "right" if right else "left",
            "yanchor": "top" if up else "bottom",
            "text": f"better {arrow}" if right else f"{arrow} better",
            "showarrow": False,
            "font": {"size": 13, "color": MUTED},
        }
    ]


def _label_places(picture: Picture) -> list[str]:
    """Labels go towards the better corner, where by definition no point lies; at the edge to the opposite one.

    That one is behind the line, which leaves a point towards the other two.
    """
    up, down = ("bottom", "top") if picture.y.better is Better.LOWER else ("top", "bottom")
    at = _places(picture.points.x, picture.points.x[picture.frontier], picture.log_x)
    if picture.x.better is Better.HIGHER:
        return [f"{up} right" if place < 1 - LABEL_WIDTH else f"{down} left" for place in at]
    return [f"{up} left" if place > LABEL_WIDTH else f"{down} right" for place in at]


def _spaced_labels(picture: Picture) -> list[str]:
    """The labels that find room beside their points, dearest and best first; an empty text for the others."""
    p, at = picture.points, picture.frontier
    x, y = _places(p.x, p.x[at], picture.log_x), _places(p.y, p.y[at], picture.log_y)
    taken: list[tuple[float, float]] = []
    words = [""] * len(at)
    for i in reversed(range(len(at))):
        if all(abs(x[i] - a) > LABEL_WIDTH or abs(y[i] - b) > LABEL_HEIGHT for a, b in taken):
            taken.append((x[i], y[i]))
            words[i] = escape(picture.labels[i])
    return words


def _places(every: NDArray[np.float64], some: NDArray[np.float64], log: bool) -> NDArray[np.float64]:
    """Where values lie along their axis, from 0 to 1."""
    if not every.size:
        return some
    scale = (lambda v: np.log10(np.maximum(v, 1e-300))) if log else (lambda v: v)
    low, high = float(np.min(scale(every))), float(np.max(scale(every)))
    found: NDArray[np.float64] = (scale(some) - low) / ((high - low) or 1.0)
    return found


def _box(picture: Picture) -> list[dict[str, Any]]:
    if picture.box is None:
        return []
    x0, x1, y0, y1 = picture.box
    line = {"color": INK, "width": 1, "dash": "dot"}
    return [{"type": "rect", "xref": "x", "yref": "y", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": line}]


def step_shape(x_better: Better) -> str:
    """The step that never promises more than was measured.

    Between two members a buyer gets the value of the cheaper one until the dearer one can be paid: with a cost on x the
    line first goes level, then up (``hv``); with a gain on x it goes the other way round (``vh``).
    """
    return "vh" if x_better is Better.HIGHER else "hv"
