"""The pictures of the page Kernels: times, errors, curves. One colour and mark for each implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.format import duration, percent, si
from engine.laboratory.cases import OPS
from spec.kernel_result import KernelResult, KernelStatus
from ui.charts import Figure, axis, escape, layout, log_ticks, tick_text, to_json
from ui.kernels_rows import Sweep, baseline, case_words, hardware, is_ours, label
from ui.theme import INK, MUTED, PALE, PAPER

# An implementation looks the same wherever it stands. Colours are few: those that never run on one machine share one,
# and further kernels of a library have none; each symbol is its own within an operation.
LOOKS: dict[str, tuple[str, str]] = {
    "triton": ("@c0", "circle"), "native": ("@c1", "square"), "tma": ("@c1", "triangle-down"),
    "unshared": ("@c1", "triangle-down"), "gathered": ("@c2", "diamond"), "eager": ("@c3", "triangle-up"),
    "sdpa": ("@c4", "cross"), "rms-norm": ("@c4", "cross"), "unquantized": ("@c4", "cross"),
    "gluon": ("@c5", "bowtie"), "packed": ("@c5", "hexagon"), "sdpa-flash": ("@c6", "star"),
    "sdpa-math": (MUTED, "x"), "sdpa-efficient": (MUTED, "pentagon"), "sdpa-cudnn": (MUTED, "hourglass"),
    "flex": (MUTED, "hexagon2"),
}  # fmt: skip
UNKNOWN = (MUTED, "octagon")  # of another version
SPACE = "\u00a0" * 5  # plain spaces at the edge of a label are lost
TWICE = 2.0  # times PyTorch's own error is what a kernel may have
TICK_ROOM = 0.08  # of the width of a linear axis, between the ticks of two values
ZERO_ROOM = 0.12  # of the width of a log scale, on each side of a 0 beside it
MARGIN: Figure = {"l": 12, "r": 16, "t": 12, "b": 12}
BAR: Figure = {
    "orientation": "v",
    "bgcolor": PAPER,
    "color": MUTED,
    "activecolor": INK,
}  # beside the picture, not on it


def look(result: KernelResult) -> tuple[str, str]:
    """Colour role and symbol of the implementation."""
    return LOOKS.get(result.side, UNKNOWN)


def times(shown: Sequence[KernelResult]) -> str:
    """Bars of the median time of each side, the fastest on top, with quartiles as whiskers."""
    rows = [r for r in shown if r.median_s][::-1]
    medians = [float(r.median_s or 0) for r in rows]
    trace = {
        "type": "bar", "orientation": "h", "x": medians, "y": [escape(label(r)) for r in rows],
        "width": min(0.65, 0.2 + 0.1 * len(rows)),  # of a few rows, no walls
        "marker": {"color": [look(r)[0] for r in rows],
                   "line": {"color": INK, "width": [1.4 if is_ours(r) else 0 for r in rows]}},
        "error_x": {"type": "data", "symmetric": False, "color": INK, "thickness": 1.2, "width": 4,
                    "array": [(r.q3_s or m) - m for r, m in zip(rows, medians, strict=True)],
                    "arrayminus": [m - (r.q1_s or m) for r, m in zip(rows, medians, strict=True)]},
        "hovertext": [card(r) for r in rows], "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip
    # Beside the whisker, not in the bar, where its colour would decide whether one can read it.
    words = {
        "type": "scatter", "mode": "text", "x": [max(r.q3_s or 0, m) for r, m in zip(rows, medians, strict=True)],
        "y": trace["y"], "text": [f"{SPACE}{duration(m)}" for m in medians], "textposition": "middle right",
        "textfont": {"size": 12, "color": INK}, "hoverinfo": "skip", "cliponaxis": False,
    }  # fmt: skip
    ends = max((max(r.q3_s or 0, m) for r, m in zip(rows, medians, strict=True)), default=1.0)
    return to_json(
        {
            "data": [trace, words],
            "layout": layout(
                xaxis=axis("Time of one call   <b>← better</b>", tickformat="~s", ticksuffix="s", nticks=5,
                           range=[0, ends * 1.25]),
                yaxis=axis("", showgrid=False, ticks="", tickfont={"color": INK}),
                margin=MARGIN, uirevision="kernels-times",
            ),
        }
    )  # fmt: skip


def has_errors(shown: Sequence[KernelResult]) -> bool:
    """Whether any error differs from 0, which is what there is to draw."""
    return any(r.error is not None and (r.error or r.torch_error) for r in shown)


def errors(shown: Sequence[KernelResult]) -> str:
    """The error of each side beside that of plain PyTorch, the baseline, and twice that, the most a kernel may have.

    Needs ``has_errors``. A log scale has no place for 0: sides without any error stand left of it, at a tick of theirs.
    """
    rows = [r for r in shown if r.error is not None][::-1]
    theirs = [r.torch_error for r in rows if r.torch_error is not None]
    torch = next(filter(None, theirs), 0.0) if theirs else None
    found = [float(r.error or 0) for r in rows]
    values = np.array([e for e in found if e] + ([torch / 3, torch * 4] if torch else []), dtype=float)
    low, high = float(values.min()) / 1.5, float(values.max()) * 1.5
    across = log_axis("Error against fp64   <b>← better</b>", values, "", [low, high], power=True, most=5)
    left, zero = low, 0.0  # where the picture begins, and where 0 stands in it
    shapes: list[Figure] = []
    if torch == 0 or 0 in found:
        step = (high / low) ** ZERO_ROOM
        left, zero = low / step**2, low / step
        across = _beside_zero(across, low, zero) | {"range": [float(np.log10(left)), float(np.log10(high))]}
        shapes.append(_upright(low, PALE, "solid"))
    notes: list[Figure] = []
    if torch is not None:
        shapes.append(_upright(torch or zero, MUTED, "dot"))
        font = {"size": 12, "color": MUTED}
        notes.append({"x": float(np.log10(torch or zero)), "y": 1, "yref": "paper", "yanchor": "bottom",
                      "showarrow": False, "text": escape(baseline(rows[0].op)), "font": font})  # fmt: skip
    if torch:
        band = {"type": "rect", "x0": left, "x1": TWICE * torch, "y0": 0, "y1": 1, "yref": "paper",
                "fillcolor": "@good", "opacity": 0.10, "line": {"width": 0}, "layer": "below"}  # fmt: skip
        shapes.insert(0, band)
        notes.append({"x": float(np.log10(TWICE * torch)), "y": 0, "yref": "paper", "yanchor": "bottom",
                      "xanchor": "left", "showarrow": False, "text": " twice that", "font": font})  # fmt: skip
    trace = {
        "type": "scatter", "mode": "markers", "x": [e or zero for e in found], "y": [escape(label(r)) for r in rows],
        "marker": {"size": 12, "color": [look(r)[0] for r in rows], "symbol": [look(r)[1] for r in rows],
                   "line": {"color": INK, "width": [1.4 if is_ours(r) else 0.6 for r in rows]}},
        "hovertext": [card(r) for r in rows], "hovertemplate": "%{hovertext}<extra></extra>", "cliponaxis": False,
    }  # fmt: skip
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=across,
                yaxis=axis("", ticks="", tickfont={"color": INK}),
                shapes=shapes, annotations=notes, margin=MARGIN | {"t": 26}, uirevision="kernels-errors",
            ),
        }
    )  # fmt: skip


def _upright(x: float, colour: str, dash: str) -> Figure:
    """A line from the bottom of the picture to its top."""
    line = {"color": colour, "width": 1.4, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _beside_zero(across: Figure, low: float, zero: float) -> Figure:
    """A log axis from ``low`` on, with one more tick left of it, which is 0."""
    ticks = [(v, word) for v, word in zip(across["tickvals"], across["ticktext"], strict=True) if v >= low]
    title = across["title"] | {"text": across["title"]["text"].replace(", log scale", ", log scale right of 0")}
    ticks = [(zero, "0"), *ticks]
    return across | {"tickvals": [v for v, _ in ticks], "ticktext": [word for _, word in ticks], "title": title}


def curves(sweep: Sweep, op: str, shares: bool) -> str:
    """Time, or share of the ceiling that binds, of each side along a field."""
    data: list[Figure] = []
    ys: list[float] = []
    for line in sorted(sweep.lines.values(), key=lambda line: line[-1][1].median_s or 0.0):  # the fastest first
        some = [(x, r, r.share if shares else r.median_s) for x, r in line]
        some = [p for p in some if p[2]]
        if not some:
            continue
        first = some[0][1]
        colour, symbol = look(first)
        ys += [float(y or 0) for _, _, y in some]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": escape(label(first)),
                "x": [x for x, _, _ in some], "y": [y for _, _, y in some],
                "customdata": [r.case_key for _, r, _ in some],
                "line": {"color": colour, "width": 2.6 if is_ours(first) else 1.5},
                "marker": {"size": 9, "color": colour, "symbol": symbol,
                           "line": {"color": INK, "width": 1.2 if is_ours(first) else 0}},
                "hovertext": [card(r) for _, r, _ in some], "hovertemplate": "%{hovertext}<extra></extra>",
                "cliponaxis": False,
            }
        )  # fmt: skip
    values = sorted({x for line in sweep.lines.values() for x, _ in line})
    name = next((f.label for f in OPS[op].fields if f.name == sweep.field), sweep.field)
    up = axis("Share of the ceiling   <b>better →</b>", tickformat=".0%", rangemode="tozero")
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12, "color": INK}}
    return to_json(
        {
            "data": data,
            "layout": layout(
                xaxis=_across(name, values),
                yaxis=up if shares else log_axis("Time of one call   <b>← better</b>", np.array(ys), "s"),
                margin=MARGIN | {"r": 44}, modebar=BAR, showlegend=True, legend=legend,
                uirevision=f"kernels-{sweep.field}-{shares}-{values[0] == 0}",  # a zoom holds for one kind of axis
            ),
        }
    )  # fmt: skip


def _across(name: str, values: Sequence[int]) -> Figure:
    """The axis of a curve's field, with its values as ticks: a log axis, but for a 0, which it has no place for."""
    title, kind, ticks = f"{name}, log scale", "log", list(values)
    if values[0] == 0:
        title, kind, ticks = name, "linear", [0]
        for value in reversed(values[1:]):  # from the end on, for the small ones are crowded there
            if all(abs(value - other) >= TICK_ROOM * values[-1] for other in ticks):
                ticks.append(value)
    return axis(title, type=kind, tickmode="array", tickvals=sorted(ticks), ticktext=[f"{v}" for v in sorted(ticks)])


def card(r: KernelResult) -> str:
    """The hover text: what it is, what was measured, on what."""
    lines = [f"<b>{escape(label(r))}</b>", escape(case_words(r))]
    if r.status is KernelStatus.MEASURED:
        lines += [
            f"Time: {duration(r.median_s)} ({duration(r.q1_s)} - {duration(r.q3_s)}), n = {r.repeats}",
            f"{si(r.bytes_per_s, 'B/s')}, {percent(r.share_of_copy)} of copying",
            f"{si(r.flop_per_s, 'FLOP/s')}, {percent(r.share_of_matmul)} of matrix products",
            f"Error: {figure(r.error)}; {escape(baseline(r.op))}: {figure(r.torch_error)}",
        ]
    if r.note:
        lines.append(escape(r.note))
    return "<br>".join([*lines, f"{escape(hardware(r))}, commit {escape(r.environment.get('commit') or 'unknown')}"])


def figure(error: float | None) -> str:
    """An error as people read it: 1.6e-3."""
    if error is None:
        return "n/a"
    head, _, power = f"{error:.1e}".partition("e")
    return f"{head}e{int(power)}" if error else "0"


def log_axis(
    title: str,
    values: Any,
    unit: str,
    reach: Sequence[float] | None = None,
    power: bool = False,
    most: int = 10,
) -> Figure:
    """A log axis with at most so many ticks; ``power``: these are errors."""
    ticks = log_ticks(values)
    ticks = ticks[:: -(-len(ticks) // most) or 1]
    words = [figure(v) if power else tick_text(v, unit) if unit else f"{v:g}" for v in ticks]
    more: Figure = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": words, "tickangle": 0}
    if reach is not None:
        more["range"] = [float(np.log10(v)) for v in reach]
    return axis(title.replace("   <b>", ", log scale   <b>") if "<b>" in title else f"{title}, log scale", **more)
