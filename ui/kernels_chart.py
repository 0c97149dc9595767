"""The pictures of the page Kernels: roofline, times, errors, curves. One colour and mark for each implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.format import duration, percent, si
from engine.laboratory.cases import OPS
from spec.kernel_result import KernelResult, KernelStatus
from ui.charts import Figure, axis, escape, layout, log_ticks, tick_text, to_json
from ui.kernels_rows import Sweep, is_ours, label
from ui.theme import CATEGORIES, INK, MUTED, PAPER

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hourglass", "hexagon")
SPACE = "\u00a0" * 5  # plain spaces at the edge of a label are lost
TWICE = 2.0  # times PyTorch's own error is what a kernel may have
ROOM = 0.045  # of the height; labels nearer to each other would overlap
MARGIN: Figure = {"l": 12, "r": 16, "t": 12, "b": 12}
BAR: Figure = {
    "orientation": "v",
    "bgcolor": PAPER,
    "color": MUTED,
    "activecolor": INK,
}  # beside the picture, not on it


def look(result: KernelResult) -> tuple[str, str]:
    """Colour role and symbol, by the implementation's place in its operation's list."""
    names = [s.name for s in OPS[result.op].sides] if result.op in OPS else []
    at = names.index(result.side) if result.side in names else len(names)
    return f"@c{at}" if at < CATEGORIES else MUTED, SYMBOLS[at % len(SYMBOLS)]


def roofline(shown: Sequence[KernelResult], others: Sequence[KernelResult]) -> str:
    """Operations per byte against operations per second; ``others``: paler, cases beside the one that is shown."""
    points = [r for r in shown if r.flop_per_s and r.intensity]
    beside = [r for r in others if r.flop_per_s and r.intensity]
    one = next((r for r in points if r.copy_bytes_per_s and r.matmul_flop_per_s), None)
    xs = np.array([r.intensity for r in (*points, *beside)], dtype=float)
    ys = np.array([r.flop_per_s for r in (*points, *beside)], dtype=float)
    low, high = float(xs.min()) / 4, float(xs.max()) * 12  # to the right there is room for names
    data: list[Figure] = []
    if one is not None:
        copy, matmul = float(one.copy_bytes_per_s or 0), float(one.matmul_flop_per_s or 0)
        ridge = matmul / copy
        high = max(high, ridge * 4)
        low = min(low, ridge / 16)
        ys = np.append(ys, [matmul, low * copy])
        data += _ceiling(low, ridge, high, copy, matmul)
    data += [_point(r, 6, 0.45, 0) for r in beside]
    data += [_point(r, 13 if is_ours(r) else 11, 1.0, 1.4 if is_ours(r) else 0.6) for r in points]
    data.append(_names(points, float(np.log10(ys.max() / ys.min())) or 1.0))
    return to_json(
        {
            "data": data,
            "layout": layout(
                xaxis=_log_axis("Operations per byte moved", np.array([low, high]), "", [low, high]),
                yaxis=_log_axis("Operations per second   <b>better →</b>", ys, "FLOP/s"),
                margin=MARGIN | {"r": 44},
                modebar=BAR,
                uirevision="kernels-roofline",
            ),
        }
    )


def _ceiling(low: float, ridge: float, high: float, copy: float, matmul: float) -> list[Figure]:
    texts = [f"{si(copy, 'B/s')} copied", "", f"{si(matmul, 'FLOP/s')} multiplied"]
    line = {
        "type": "scatter", "mode": "lines", "x": [low, ridge, high], "y": [low * copy, matmul, matmul],
        "line": {"color": INK, "width": 2}, "hovertemplate": "%{text}<extra></extra>",
        "text": [f"Measured here: {t}" if t else "" for t in texts],
    }  # fmt: skip
    # The words stand where no point can be: above the slope.
    level = {
        "type": "scatter", "mode": "lines", "x": [low, ridge], "y": [matmul, matmul], "hoverinfo": "skip",
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
    }  # fmt: skip
    middle = (low * ridge) ** 0.5
    words = {
        "type": "scatter", "mode": "text", "x": [middle, low], "y": [middle * copy, matmul],
        "text": [f"{texts[0]}  ", f" {texts[2]}"], "textposition": ["top left", "top right"], "hoverinfo": "skip",
        "textfont": {"size": 12, "color": MUTED}, "cliponaxis": False,
    }  # fmt: skip
    return [level, line, words]


def _point(r: KernelResult, size: int, opacity: float, edge: float) -> Figure:
    colour, symbol = look(r)
    return {
        "type": "scatter", "mode": "markers", "x": [r.intensity], "y": [r.flop_per_s], "customdata": [r.case_key],
        "hovertext": [card(r)], "hovertemplate": "%{hovertext}<extra></extra>", "cliponaxis": False,
        "marker": {"size": size, "color": colour, "symbol": symbol, "opacity": opacity,
                   "line": {"color": INK, "width": edge}},
    }  # fmt: skip


def _names(points: Sequence[KernelResult], decades: float) -> Figure:
    """Names beside the points as far as they do not cover each other; ours first."""
    kept: list[KernelResult] = []
    for r in sorted(points, key=lambda r: (not is_ours(r), -(r.flop_per_s or 0))):
        height = np.log10(r.flop_per_s or 1) / decades
        if all(abs(height - np.log10(k.flop_per_s or 1) / decades) > ROOM for k in kept):
            kept.append(r)
    return {
        "type": "scatter", "mode": "text", "x": [r.intensity for r in kept], "y": [r.flop_per_s for r in kept],
        "text": [f"{SPACE}{escape(label(r))}  {percent(r.share)}" for r in kept], "textposition": "middle right",
        "textfont": {"size": 12, "color": INK}, "hoverinfo": "skip", "cliponaxis": False,
    }  # fmt: skip


def times(shown: Sequence[KernelResult]) -> str:
    """Bars of the median time of each side, the fastest on top, with quartiles as whiskers."""
    rows = [r for r in shown if r.median_s][::-1]
    medians = [float(r.median_s or 0) for r in rows]
    trace = {
        "type": "bar", "orientation": "h", "x": medians, "y": [escape(label(r)) for r in rows],
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
                margin=MARGIN, bargap=0.35, uirevision="kernels-times",
            ),
        }
    )  # fmt: skip


def errors(shown: Sequence[KernelResult]) -> str:
    """The error of each side beside that of plain PyTorch, and twice that, the most that a kernel may have."""
    rows = [r for r in shown if r.error][::-1]
    names = [escape(label(r)) for r in rows]
    torch = next((r.torch_error for r in rows if r.torch_error), None)
    values = np.array([r.error for r in rows] + ([torch / 3, torch * 4] if torch else []), dtype=float)
    low, high = float(values.min()) / 1.5, float(values.max()) * 1.5
    shapes, notes = [], []
    if torch:
        shapes.append(
            {
                "type": "rect",
                "x0": low,
                "x1": TWICE * torch,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "fillcolor": "@good",
                "opacity": 0.10,
                "line": {"width": 0},
                "layer": "below",
            }
        )
        shapes.append(
            {
                "type": "line",
                "x0": torch,
                "x1": torch,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": MUTED, "width": 1.4, "dash": "dot"},
            }
        )
        font = {"size": 12, "color": MUTED}
        notes.append(
            {
                "x": float(np.log10(torch)),
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "text": "plain PyTorch",
                "font": font,
            }
        )
        notes.append({"x": float(np.log10(TWICE * torch)), "y": 0, "yref": "paper", "yanchor": "bottom",
                      "xanchor": "left", "showarrow": False, "text": " twice that", "font": font})  # fmt: skip
    trace = {
        "type": "scatter", "mode": "markers", "x": [r.error for r in rows], "y": names, "cliponaxis": False,
        "marker": {"size": 12, "color": [look(r)[0] for r in rows], "symbol": [look(r)[1] for r in rows],
                   "line": {"color": INK, "width": [1.4 if is_ours(r) else 0.6 for r in rows]}},
        "hovertext": [card(r) for r in rows], "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=_log_axis("Error against fp64   <b>← better</b>", values, "", [low, high], power=True),
                yaxis=axis("", ticks="", tickfont={"color": INK}),
                shapes=shapes, annotations=notes, margin=MARGIN | {"t": 26}, uirevision="kernels-errors",
            ),
        }
    )  # fmt: skip


def curves(sweep: Sweep, op: str, shares: bool) -> str:
    """Time, or share of the ceiling that binds, of each side along a field."""
    data: list[Figure] = []
    ys: list[float] = []
    for line in sweep.lines.values():
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
    across = axis(
        f"{name}, log scale", type="log", tickmode="array", tickvals=values, ticktext=[f"{v}" for v in values]
    )
    return to_json(
        {
            "data": data,
            "layout": layout(
                xaxis=across,
                yaxis=up if shares else _log_axis("Time of one call   <b>← better</b>", np.array(ys), "s"),
                margin=MARGIN | {"r": 44}, modebar=BAR, showlegend=True, legend=legend,
                uirevision=f"kernels-{sweep.field}-{shares}",
            ),
        }
    )  # fmt: skip


def card(r: KernelResult) -> str:
    """The hover text: what it is, what was measured, on what."""
    lines = [f"<b>{escape(label(r))}</b>", escape(r.case_text).replace(",", ", ")]
    if r.status is KernelStatus.MEASURED:
        lines += [
            f"Time: {duration(r.median_s)} ({duration(r.q1_s)} - {duration(r.q3_s)}), n = {r.repeats}",
            f"{si(r.bytes_per_s, 'B/s')}, {percent(r.share_of_copy)} of copying",
            f"{si(r.flop_per_s, 'FLOP/s')}, {percent(r.share_of_matmul)} of matrix products",
            f"Error: {figure(r.error)}; plain PyTorch: {figure(r.torch_error)}",
        ]
    if r.note:
        lines.append(escape(r.note))
    hardware = escape(r.environment.get("hardware_name", "unknown hardware"))
    return "<br>".join([*lines, f"{hardware}, commit {escape(r.environment.get('commit') or 'unknown')}"])


def figure(error: float | None) -> str:
    """An error as people read it: 1.6e-3."""
    if error is None:
        return "n/a"
    head, _, power = f"{error:.1e}".partition("e")
    return f"{head}e{int(power)}" if error else "0"


def _log_axis(title: str, values: Any, unit: str, reach: Sequence[float] | None = None, power: bool = False) -> Figure:
    ticks = log_ticks(values)
    words = [figure(v) if power else tick_text(v, unit) if unit else f"{v:g}" for v in ticks]
    more: Figure = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": words}
    if reach is not None:
        more["range"] = [float(np.log10(v)) for v in reach]
    return axis(title.replace("   <b>", ", log scale   <b>") if "<b>" in title else f"{title}, log scale", **more)
