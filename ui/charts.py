"""Rows in, plotly figures out, as JSON text. Colours are roles that the browser fills in (see ``ui.theme``)."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.format import SHARES, si
from spec.measures import Better, Measure
from spec.statistics import percentile, wilson
from ui.theme import GRID, INK, MUTED, PALE, PAPER

Figure = dict[str, Any]
PREFIXED = "~s"  # plotly's format with SI prefixes
NARROW = 0.05  # a range of shares whose ticks need a decimal
SYMBOLS = ("s", "B", "J", "W", "FLOP")  # units that take a prefix and stand at the ticks, not in the title
FONT = "'Source Sans', 'Segoe UI', Helvetica, Arial, sans-serif"


def to_json(figure: Figure) -> str:
    """The figure's JSON; numpy arrays travel as base64, which plotly.js reads without parsing numbers."""
    return json.dumps(figure, default=_encode, separators=(",", ":"), allow_nan=False)


def _encode(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot draw {type(value).__name__}")
    if value.dtype.kind not in "fi" or value.size < 32:
        return [None if isinstance(v, float) and v != v else v for v in value.tolist()]
    return {"dtype": f"{value.dtype.kind}{value.dtype.itemsize}", "bdata": base64.b64encode(value).decode()}


def escape(text: object) -> str:
    """User text inside a chart: plotly reads a little HTML, so nothing of it may come from a name."""
    return html.escape(str(text), quote=False)


def layout(**changes: Any) -> Figure:
    """What all charts share."""
    base: Figure = {
        "template": {"data": {}, "layout": {}},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {"l": 12, "r": 16, "t": 12, "b": 12},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": MUTED, "font": {"color": INK, "size": 13}, "align": "left"},
        "showlegend": False,
        "hovermode": "closest",
        "autosize": True,
    }
    return base | changes


def axis(title: str, **changes: Any) -> Figure:
    """One axis with quiet grid lines."""
    base: Figure = {
        "title": {"text": title, "font": {"size": 13, "color": MUTED}, "standoff": 8},
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": PALE,
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": PALE,
        "tickfont": {"color": MUTED},
    }
    return base | changes


def measure_axis(measure: Measure, values: NDArray[np.float64], log: bool) -> Figure:
    """The axis of a measure: label, unit, an arrow towards better, ticks with SI prefixes."""
    arrow = {Better.HIGHER: "better →", Better.LOWER: "← better"}.get(measure.better, "")
    unit = f" ({measure.unit})" if measure.unit and measure.unit not in SYMBOLS else ""
    scale = ", log scale" if log else ""
    title = f"{measure.label}{unit}{scale}" + (f"   <b>{arrow}</b>" if arrow else "")
    form, words = _ticks(measure, values)
    ticks: Figure = {"tickformat": form, "ticksuffix": measure.unit if form == PREFIXED and not unit else ""}
    if log:
        at = log_ticks(values)
        ticks |= {"type": "log", "tickmode": "array", "tickvals": at, "ticktext": [words(v) for v in at]}
    return axis(title, **ticks)


def _ticks(measure: Measure, values: NDArray[np.float64]) -> tuple[str, Callable[[float], str]]:
    """How a measure's numbers stand at its ticks: plotly's format, and the same for ticks that are set by hand."""
    if measure.name in SHARES:
        found = values[np.isfinite(values)]
        digits = 1 if found.size > 1 and float(np.ptp(found)) < NARROW else 0
        return f".{digits}%", lambda v: f"{v:.{digits}%}"
    if measure.unit == "nats":
        return "~g", lambda v: f"{v:g}"  # a thousandth of a nat is no unit that anybody uses
    return PREFIXED, lambda v: tick_text(v, measure.unit if measure.unit in SYMBOLS else "")


def log_ticks(values: NDArray[np.float64]) -> list[float]:
    """Round numbers across the range of the values, at most about ten."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return []
    low, high = math.log10(positive.min()), math.log10(positive.max())
    span = high - low
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 0.7 else (1, 2, 5) if span < 3 else (1, 3) if span < 5 else (1,)
    every = max(1, math.ceil(span / 10))
    decades = range(math.floor(low) - 1, math.ceil(high) + 2, every)
    edge = 0.12 * span + 0.05
    found = [step * 10.0**d for d in decades for step in steps]
    return [v for v in found if low - edge <= math.log10(v) <= high + edge]


def tick_text(value: float, unit: str) -> str:
    """``50 ms``: like ``si``, without the zeros that a round number does not need."""
    number, _, rest = si(value, unit).partition(" ")
    return f"{float(number):g} {rest}".strip()


def by_level(levels: dict[int, dict[str, int]]) -> str:
    """Accuracy by level with Wilson intervals; the number of problems on hover."""
    keys = sorted(levels)
    n = [levels[k]["n"] for k in keys]
    share = [levels[k]["correct"] / levels[k]["n"] for k in keys]
    bounds = [wilson(levels[k]["correct"], levels[k]["n"]) for k in keys]
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": keys,
        "y": share,
        "line": {"color": PALE, "width": 1},
        "marker": {"size": 9, "color": "@c0", "line": {"color": INK, "width": 1}},
        "cliponaxis": False,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - p for (_, high), p in zip(bounds, share, strict=True)],
            "arrayminus": [p - low for (low, _), p in zip(bounds, share, strict=True)],
            "color": MUTED,
            "thickness": 1.2,
            "width": 4,
        },
        "text": [
            f"Level {k}: {p:.1%} ({low:.1%} - {high:.1%})<br>{levels[k]['correct']} of {m} problems"
            for k, p, (low, high), m in zip(keys, share, bounds, n, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=axis("Level (steps)", dtick=1, showgrid=False),
                yaxis=axis("Accuracy", tickformat=".0%", range=[-0.06, 1.06], tickvals=[0, 0.25, 0.5, 0.75, 1]),
                uirevision="by-level",
            ),
        }
    )


def by_layer(layers: list[float]) -> str:
    """The share of the tokens that left the model at each layer."""
    at, found = np.unique(np.asarray(layers, dtype=int), return_counts=True)
    share = found / found.sum()
    trace = {
        "type": "bar",
        "x": at.tolist(),
        "y": share.tolist(),
        "marker": {"color": "@c0", "line": {"color": INK, "width": 1}},
        "text": [f"Layer {k}: {p:.1%} of the tokens" for k, p in zip(at.tolist(), share.tolist(), strict=True)],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    every = max(1, math.ceil((int(at.max()) - int(at.min())) / 12))
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=axis("Layer where the token was certain enough", dtick=every, showgrid=False),
                yaxis=axis("Share of tokens", tickformat=".0%", rangemode="tozero"),
                bargap=0.25,
                uirevision="by-layer",
            ),
        }
    )


def distribution(seconds: list[float], title: str, marks: tuple[float, ...] = (50, 95)) -> str:
    """Histogram of a series of seconds with its percentiles drawn in."""
    ordered = sorted(seconds)
    low, high = ordered[0], ordered[-1]
    bins = min(40, max(8, round(len(ordered) ** 0.5 * 2)))
    trace = {
        "type": "histogram",
        "x": np.asarray(ordered, dtype="f4"),
        "xbins": {"start": low, "end": high, "size": (high - low) / bins or 1.0},
        "marker": {"color": "@c0", "line": {"color": PAPER, "width": 1}},
        "hovertemplate": "%{x}s: %{y} of " + str(len(ordered)) + "<extra></extra>",
    }
    shapes, notes = [], []
    for place, mark in enumerate(marks):
        at = percentile(ordered, mark)
        shapes.append(
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": INK, "width": 1.2, "dash": "dot"},
            }
        )
        notes.append(
            {
                "x": at,
                "y": 1 - 0.11 * place,
                "yref": "paper",
                "yanchor": "top",
                "xanchor": "left" if at < (low + high) / 2 else "right",
                "showarrow": False,
                "text": f" p{mark:g} ",
                "font": {"size": 12, "color": INK},
                "bgcolor": PAPER,
            }
        )
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=axis(title, tickformat="~s", ticksuffix="s", showgrid=False),
                yaxis=axis("Count"),
                shapes=shapes,
                annotations=notes,
                bargap=0,
                uirevision="distribution",
            ),
        }
    )
