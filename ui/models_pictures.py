"""Pictures of one prepared model: matrices, layers, losses, what was taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.format import percent, significant
from ui.charts import Figure, axis, escape, layout, to_json
from ui.models_grid import AT_4, AT_8, BITS, ERROR, RANK, ZEROS, Grid
from ui.theme import GRID, INK, MUTED, PALE, PAPER, SYMBOLS

SCALE = "Viridis"
WRITTEN = 14  # columns up to which each cell has room for its number
TICKS = 16
DARK_HALF = 0.52  # of the scale; below it white is read better than black
LEAST_SPREAD = 0.7  # of the largest value, where the scale of colours begins at the latest
TITLES = {
    ERROR: "Difference of the weights over their norm",
    AT_4: "Rise of the loss with this matrix alone in 4 bits, nats",
    AT_8: "Rise of the loss with this matrix alone in 8 bits, nats",
    BITS: "Bits of a weight",
    ZEROS: "Weights that are zero",
    RANK: "Rank that is left",
}
SHARES = (ERROR, ZEROS)
SMALLER = "Smaller than its parent's: no difference to tell"
DOT = {"size": 8, "color": "@c0", "line": {"color": INK, "width": 0.8}}


def grid_height(grid: Grid) -> int:
    """Pixels of the heat map."""
    return max(190, 74 + 34 * len(grid.kinds))


def heat_map(grid: Grid, name: str) -> str:
    """Kinds of matrix down, layers across, and the output layer beside them."""
    values = grid.values
    low, high = (min(values), max(values)) if name != BITS else (4.0, 16.0)
    low = min(low, LEAST_SPREAD * high)  # what hardly differs has hardly another colour
    high = high if high > low else low + 1.0
    columns = [str(layer) for layer in grid.layers]
    kinds = [escape(kind) for kind in grid.kinds]
    colours = {"zmin": low, "zmax": high, "colorscale": SCALE, "showscale": False}
    cells = {
        "type": "heatmap", "x": columns, "y": kinds, "z": [list(row) for row in grid.cells],
        "xgap": 2, "ygap": 2, "hoverongaps": False,
        "hovertext": [
            [_cell(name, kind, f"layer {layer}", v) for layer, v in zip(grid.layers, row, strict=True)]
            for kind, row in zip(grid.kinds, grid.cells, strict=True)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>", **colours,
    }  # fmt: skip
    data: list[Figure] = [cells] if grid.kinds else []
    if len(columns) <= WRITTEN:
        at = [
            (column, kind, value)
            for kind, row in zip(kinds, grid.cells, strict=True)
            for column, value in zip(columns, row, strict=True)
            if value is not None
        ]
        data.append(_numbers(at, name, low, high))
    if any(map(any, grid.changed)):
        data.append(_changed(grid, columns))
    wide = [0.0, 1.0] if grid.head is None or not grid.kinds else [0.0, 1 - 1.6 / (len(columns) + 1.6)]
    title = f"Layer  ·  {TITLES[name][:1].lower()}{TITLES[name][1:]}"
    bare: Figure = {"type": "category", "showgrid": False, "showline": False, "ticks": ""}
    axes: Figure = {
        "xaxis": axis(title, **bare, domain=wide, **_few(columns)),
        "yaxis": axis("", **bare, autorange="reversed", tickfont={"color": INK}, ticklabelstandoff=6),
    }
    if grid.head is not None:
        data.append(_head(grid, name) | colours)
        data.append(_numbers([("head", 0, grid.head)], name, low, high) | {"xaxis": "x2", "yaxis": "y2"})
        beside = [wide[1] + 0.012, 1.0] if grid.kinds else [0.0, 0.3]
        axes["xaxis2"] = axis("", **bare, anchor="y2", domain=beside, tickfont={"color": INK})
        low_row = [0, 1 / max(1, len(grid.kinds))]
        axes["yaxis2"] = {"domain": low_row, "anchor": "x2", "visible": False, "fixedrange": True}
    margin = {"l": 12, "r": 8, "t": 6, "b": 12}
    return to_json({"data": data, "layout": layout(**axes, margin=margin, uirevision=f"models-grid-{name}")})


def _numbers(at: Sequence[tuple[str, str | int, float]], name: str, low: float, high: float) -> Figure:
    """The figures in their cells, in what can be read on the cell's colour."""
    dark = [(value - low) / (high - low) < DARK_HALF for _, _, value in at]
    return {
        "type": "scatter", "mode": "text", "x": [x for x, _, _ in at], "y": [y for _, y, _ in at],
        "text": [_figure(name, value) for _, _, value in at], "hoverinfo": "skip", "cliponaxis": False,
        "textfont": {"size": 12, "color": ["#FFFFFF" if d else "#10161D" for d in dark]},
    }  # fmt: skip


def _head(grid: Grid, name: str) -> Figure:
    return {
        "type": "heatmap", "xaxis": "x2", "yaxis": "y2", "x": ["head"], "y": [0], "z": [[grid.head]],
        "xgap": 2, "ygap": 2,
        "hovertext": [[_cell(name, "output layer", "", grid.head)]], "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip


def _changed(grid: Grid, columns: Sequence[str]) -> Figure:
    """Matrices that have another size than their parent's: there is no difference to be told."""
    at = [
        (c, k) for k, row in zip(grid.kinds, grid.changed, strict=True) for c, x in zip(columns, row, strict=True) if x
    ]
    return {
        "type": "scatter", "mode": "markers", "x": [c for c, _ in at], "y": [escape(k) for _, k in at],
        "marker": {"symbol": "line-ew-open", "size": 9, "color": MUTED},
        "hovertext": [f"<b>{escape(k)}</b>, layer {c}<br>{SMALLER}" for c, k in at],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip


def _cell(name: str, kind: str, where: str, value: float | None) -> str:
    head = f"<b>{escape(kind)}</b>{f', {where}' if where else ''}"
    return f"{head}<br>{TITLES[name]}: {_figure(name, value) or 'n/a'}"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in SHARES:
        return f"{100 * value:.2g} %" if value < 0.1 else f"{value:.0%}".replace("%", " %")
    if name in (BITS, RANK):
        return f"{value:g}"
    return _small(value)


def _small(value: float) -> str:
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.2g}"
    head, _, power = f"{value:.0e}".partition("e")
    return f"{head}e{int(power)}"


def _few(words: Sequence[str]) -> Figure:
    """Every so many of the words on an axis, so that they have room."""
    every = max(1, -(-len(words) // TICKS))
    return {"tickmode": "array", "tickvals": list(words[::every]), "ticktext": list(words[::every]), "tickangle": 0}


def state_errors(errors: Sequence[float | None], kept: Sequence[int], layers: int) -> str:
    """How far the hidden state is from the parent's after each layer, over its norm."""
    xs = [kept[i] if i < len(kept) else i for i in range(len(errors))]
    trace = {
        "type": "scatter", "mode": "lines+markers", "x": xs, "y": list(errors), "cliponaxis": False,
        "line": {"color": "@c0", "width": 2}, "marker": DOT,
        "hovertext": [f"After layer {x}: {percent(e)} of the state's norm" for x, e in zip(xs, errors, strict=True)],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=axis("Layer", showgrid=False, range=[-0.4, max(layers, *(x + 1 for x in xs)) - 0.6],
                           dtick=max(1, -(-layers // TICKS)), tick0=0),
                yaxis=axis("", tickformat=".1%" if max([e or 0 for e in errors]) < 0.03 else ".0%",
                           rangemode="tozero", nticks=6),
                margin={"l": 8, "r": 16, "t": 10, "b": 12},
                uirevision="models-states",
            ),
        }
    )  # fmt: skip


def losses(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """The loss while it was trained, a line for each training."""
    marks = list(SYMBOLS.values())
    data = []
    for at, (tag, curve) in enumerate(curves.items()):
        data.append(
            {
                "type": "scatter", "mode": "lines+markers" if len(curve) <= 60 else "lines",
                "name": escape(tag_words(tag)),
                "x": [x for x, _ in curve], "y": [y for _, y in curve], "cliponaxis": False,
                "line": {"color": f"@c{at % 6}", "width": 2},
                "marker": {"size": 6, "color": f"@c{at % 6}", "symbol": marks[at % len(marks)]},
                "hovertemplate": "Step %{x:,}: loss %{y:.4g}<extra></extra>",
            }
        )  # fmt: skip
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12, "color": INK}}
    return to_json(
        {
            "data": data,
            "layout": layout(
                xaxis=axis("Step of the training", showgrid=False, rangemode="tozero"),
                yaxis=axis("", nticks=6),
                margin={"l": 8, "r": 16, "t": 28 if len(data) > 1 else 10, "b": 12},
                showlegend=len(data) > 1, legend=legend, uirevision="models-loss",
            ),
        }
    )  # fmt: skip


def tag_words(tag: str) -> str:
    """``round-2`` as people say it."""
    kind, _, turn = tag.partition("-")
    return f"After round {turn}" if kind == "round" and turn else tag.capitalize()


def left_over(counts: Sequence[int], kept: Sequence[int], whole: int | None, what: str) -> str:
    """What is left in each layer as bars; ``whole``: what the parent has, as a line."""
    xs = [kept[i] if i < len(kept) else i for i in range(len(counts))]
    share = [f", {percent(c / whole)} of {whole:,}" if whole else "" for c in counts]
    trace = {
        "type": "bar", "x": xs, "y": list(counts), "marker": {"color": "@c0"}, "width": 0.7,
        "text": [f"{c:,}" for c in counts] if len(counts) <= WRITTEN else None, "textposition": "inside",
        "insidetextanchor": "end", "textangle": 0,
        "hovertext": [f"Layer {x}: {c:,} {what}{s}" for x, c, s in zip(xs, counts, share, strict=True)],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip
    shapes, notes = [], []
    if whole:
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": whole, "y1": whole,
                       "line": {"color": MUTED, "width": 1, "dash": "dot"}})  # fmt: skip
        notes.append({"xref": "paper", "x": 1, "xanchor": "right", "y": whole, "yanchor": "bottom", "showarrow": False,
                      "text": f"the model has {whole:,}", "font": {"size": 12, "color": MUTED}})  # fmt: skip
    return to_json(
        {
            "data": [trace],
            "layout": layout(
                xaxis=axis("Layer", showgrid=False, dtick=max(1, -(-len(counts) // TICKS)), tick0=0),
                yaxis=axis("", rangemode="tozero", nticks=5, range=[0, 1.18 * max([whole or 0, *counts, 1])]),
                shapes=shapes, annotations=notes, margin={"l": 8, "r": 12, "t": 8, "b": 12},
                uirevision=f"models-left-{what}",
            ),
        }
    )  # fmt: skip


def kept_strip(kept: Sequence[int], layers: int) -> str:
    """All the parent's layers in a row; those that were taken out are crossed."""
    inside = set(kept)
    gone = [i for i in range(layers) if i not in inside]
    squares = {
        "type": "bar", "x": list(range(layers)), "y": [1] * layers, "width": 0.86, "hoverinfo": "text",
        "marker": {"color": ["@c0" if i in inside else GRID for i in range(layers)],
                   "line": {"color": [INK if i in inside else PALE for i in range(layers)], "width": 1}},
        "hovertext": [f"Layer {i}: {'kept' if i in inside else 'taken out'}" for i in range(layers)],
        "textposition": "none",
    }  # fmt: skip
    crosses = {
        "type": "scatter", "mode": "markers", "x": gone, "y": [0.5] * len(gone), "hoverinfo": "skip",
        "marker": {"symbol": "x-thin-open", "size": 16, "color": INK, "line": {"width": 2}},
    }  # fmt: skip
    every = max(1, -(-layers // 32))
    return to_json(
        {
            "data": [squares, crosses],
            "layout": layout(
                xaxis=axis("Layer", showgrid=False, showline=False, ticks="", dtick=every, tick0=0,
                           range=[-0.6, layers - 0.4]),
                yaxis={"visible": False, "range": [0, 1.02], "fixedrange": True},
                margin={"l": 8, "r": 8, "t": 4, "b": 8}, plot_bgcolor=PAPER, uirevision="models-kept",
            ),
        }
    )  # fmt: skip


def curves_of(value: Any) -> dict[str, list[tuple[int, float]]]:
    """Loss curves of a record, as far as they are any."""
    found: dict[str, list[tuple[int, float]]] = {}
    for tag, points in value.items() if isinstance(value, Mapping) else ():
        some = [p for p in points if isinstance(p, (list, tuple)) and len(p) == 2] if isinstance(points, list) else []
        numbers = [(int(x), float(y)) for x, y in some if isinstance(x, int) and isinstance(y, (int, float)) and y == y]
        if numbers:
            found[str(tag)] = numbers
    return found


def figure(value: float | None) -> str:
    """A number of three digits, or n/a."""
    return "n/a" if value is None else significant(value)
