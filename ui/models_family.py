"""Families of prepared models as one picture: a tree, and beside each row size, agreement and accuracy."""

from __future__ import annotations

import time
from collections.abc import Sequence

from analysis.format import percent, si, significant
from ui.charts import Figure, axis, escape, layout, to_json
from ui.models_rows import Accuracy, Row, number, whole_label
from ui.theme import GRID, INK, MUTED, PALE, PAPER

ROW_PX, HEAD_PX, SCROLLED_PX = 30, 32, 560
TREE, SIZE, AGREE, RIGHT = (0.0, 0.45), (0.47, 0.63), (0.66, 0.81), (0.84, 1.0)
UNITS = 24.0  # width of the tree's column; a step down takes one
LABEL = 66  # characters for which the widest column has room
CLEAR = "rgba(0,0,0,0)"


def height(rows: Sequence[Row]) -> int:
    """Pixels of the whole picture."""
    return HEAD_PX + ROW_PX * len(rows) + 8


def family_figure(rows: Sequence[Row], selected: str | None) -> str:
    """The figure's JSON; the id of a row is its artifact's, that of a model none."""
    high = max([1.0, *(share for r in rows if (share := _share(r)) is not None)])
    agreements = [r.agreement for r in rows if r.agreement is not None]
    low = min([0.95, *agreements])
    accuracies = [r.accuracy for r in rows if r.accuracy is not None]
    floor, top = min([a.low for a in accuracies], default=0.0), max([a.high for a in accuracies], default=1.0)
    floor, top = max(0.0, floor - 0.05), min(1.0, top + 0.02)
    ranges = {
        "x": [-0.6, UNITS],
        "x2": [0.0, high * 1.62],  # here figures stand behind the bars, there in front of the dots
        "x3": [low - 0.75 * (1.0 - low), 1.0 + 0.09 * (1.0 - low)],
        "x4": [floor - 0.75 * (top - floor), top + 0.06 * (top - floor)],
    }
    data = [_lines(rows), *(_targets(rows, name, span) for name, span in ranges.items())]
    data += [_nodes(rows), _names(rows), *_sizes(rows, high), *_agreements(rows, ranges["x3"][0])]
    data += _accuracies(rows, ranges["x4"][0])
    quiet: Figure = {"showgrid": False, "showline": False, "showticklabels": False, "ticks": "", "fixedrange": True}
    heads = {"Size": SIZE, "Agreement": AGREE, "Accuracy": RIGHT}
    head = {"yref": "paper", "y": 1, "yanchor": "bottom", "xref": "paper", "xanchor": "left", "showarrow": False}
    notes = [
        head | {"x": domain[0], "text": words, "font": {"size": 13, "color": MUTED}} for words, domain in heads.items()
    ]
    axes = {
        f"xaxis{name[1:]}": axis("", **quiet, range=span, domain=list(domain), anchor="y", automargin=False)
        for (name, span), domain in zip(ranges.items(), (TREE, SIZE, AGREE, RIGHT), strict=True)
    }
    return to_json(
        {
            "data": data,
            "layout": layout(
                **axes,
                yaxis={"range": [len(rows) - 0.5, -0.5], "visible": False, "fixedrange": True},
                shapes=[*_bands(rows, selected), *_parents(rows)],
                annotations=notes,
                margin={"l": 4, "r": 4, "t": HEAD_PX - 4, "b": 4},
                barmode="overlay",
                dragmode=False,
                uirevision="models-family",
            ),
        }
    )


def _share(r: Row) -> float | None:
    return r.bytes / r.parent_bytes if r.parent_bytes > 0 else None


def _targets(rows: Sequence[Row], name: str, span: Sequence[float]) -> Figure:
    """Unseen bars as wide as a column, so that the whole row takes a click and shows its card."""
    return {
        "type": "bar", "orientation": "h", "xaxis": name, "y": list(range(len(rows))), "width": 1,
        "base": [span[0]] * len(rows), "x": [span[1] - span[0]] * len(rows), "marker": {"color": CLEAR},
        "customdata": [r.artifact.id if r.artifact else "" for r in rows],
        "hovertext": [card(r) for r in rows], "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip


def _lines(rows: Sequence[Row]) -> Figure:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for at, r in enumerate(rows):
        if r.up is not None:
            xs += [rows[r.up].depth, rows[r.up].depth, r.depth, None]
            ys += [r.up, at, at, None]
    line = {"color": PALE, "width": 1.2}
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip"}


def _nodes(rows: Sequence[Row]) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "x": [r.depth for r in rows], "y": list(range(len(rows))),
        "hoverinfo": "skip",
        "marker": {"size": [11 if r.artifact is None else 8 for r in rows],
                   "symbol": ["square" if r.artifact is None else "circle" for r in rows],
                   "color": [INK if r.artifact is None else "@c0" for r in rows],
                   "line": {"color": PAPER, "width": 1}},
    }  # fmt: skip


def _names(rows: Sequence[Row]) -> Figure:
    texts = []
    for r in rows:
        words = shortened(r.label, LABEL - 3 * r.depth)
        texts.append(f"<b>{escape(words)}</b>" if r.artifact is None else escape(words))
    return {
        "type": "scatter", "mode": "text", "x": [r.depth + 0.55 for r in rows], "y": list(range(len(rows))),
        "text": texts, "textposition": "middle right", "textfont": {"size": 13, "color": INK}, "hoverinfo": "skip",
        "cliponaxis": True,
    }  # fmt: skip


def _sizes(rows: Sequence[Row], high: float) -> list[Figure]:
    bars = {
        "type": "bar", "orientation": "h", "xaxis": "x2", "x": [_share(r) or 0.0 for r in rows],
        "y": list(range(len(rows))), "width": 0.46, "hoverinfo": "skip",
        "marker": {"color": [PALE if r.artifact is None else "@c0" for r in rows]},
    }  # fmt: skip
    return [bars, _column("x2", 1.08 * high, [si(r.bytes, "B") for r in rows])]


def _column(xaxis: str, x: float, texts: Sequence[str], colour: str = INK) -> Figure:
    """Figures below each other, as in a table, where no mark is."""
    return {
        "type": "scatter", "mode": "text", "xaxis": xaxis, "x": [x] * len(texts), "y": list(range(len(texts))),
        "text": list(texts), "textposition": "middle right", "textfont": {"size": 12, "color": colour},
        "hoverinfo": "skip", "cliponaxis": False,
    }  # fmt: skip


def _agreements(rows: Sequence[Row], left: float) -> list[Figure]:
    some = [(at, r.agreement) for at, r in enumerate(rows) if r.agreement is not None]
    dots = {
        "type": "scatter", "mode": "markers", "xaxis": "x3", "x": [v for _, v in some], "y": [at for at, _ in some],
        "hoverinfo": "skip", "cliponaxis": False,
        "marker": {"size": 9, "color": "@c2", "line": {"color": INK, "width": 0.8}},
    }  # fmt: skip
    return [dots, _column("x3", left, [percent(r.agreement) if r.agreement is not None else "" for r in rows])]


def _accuracies(rows: Sequence[Row], left: float) -> list[Figure]:
    some = [(at, r.accuracy) for at, r in enumerate(rows) if r.accuracy is not None]
    dots = {
        "type": "scatter", "mode": "markers", "xaxis": "x4", "x": [a.share for _, a in some],
        "y": [at for at, _ in some], "hoverinfo": "skip", "cliponaxis": False,
        "marker": {"size": 9, "color": "@c4", "symbol": "diamond", "line": {"color": INK, "width": 0.8}},
        "error_x": {"type": "data", "symmetric": False, "color": MUTED, "thickness": 1.4, "width": 3,
                    "array": [a.high - a.share for _, a in some], "arrayminus": [a.share - a.low for _, a in some]},
    }  # fmt: skip
    words = _column("x4", left, [percent(r.accuracy.share) if r.accuracy else "" for r in rows])
    return [dots, words, _column("x4", left, ["" if r.accuracy else "–" for r in rows], MUTED)]


def _bands(rows: Sequence[Row], selected: str | None) -> list[Figure]:
    found: list[Figure] = []
    for at, r in enumerate(rows):
        chosen = r.artifact is not None and r.artifact.id == selected
        if chosen:
            found.append(
                {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": at - 0.5, "y1": at + 0.5, "layer": "below",
                 "fillcolor": "@c5", "opacity": 0.22, "line": {"width": 0}}
            )  # fmt: skip
        if r.artifact is None and at:
            found.append(
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at - 0.5, "y1": at - 0.5, "layer": "below",
                 "line": {"color": GRID, "width": 1}}
            )  # fmt: skip
    return found


def _parents(rows: Sequence[Row]) -> list[Figure]:
    """Thin lines where the model itself stands, from its row down to the last of its family."""
    found: list[Figure] = []
    for at, r in enumerate(rows):
        if r.artifact is not None:
            continue
        last = next((i for i in range(at + 1, len(rows)) if rows[i].artifact is None), len(rows)) - 0.5
        marks = [("x2", 1.0), ("x3", 1.0)] + ([("x4", r.accuracy.share)] if r.accuracy else [])
        found += [
            {"type": "line", "xref": name, "x0": x, "x1": x, "y0": at + 0.5, "y1": last, "layer": "below",
             "line": {"color": MUTED, "width": 1, "dash": "dot"}}
            for name, x in marks
        ]  # fmt: skip
    return found


def card(r: Row) -> str:
    """The hover text: all steps, what came out, what was measured."""
    a = r.artifact
    if a is None:
        return "<br>".join(
            [f"<b>{escape(shortened(r.model, 80))}</b>", f"{si(r.bytes, 'B')}, as it was saved", _accuracy(r.accuracy)]
        )
    e = a.errors
    lines = [f"<b>{escape(shortened(r.model, 80))}</b>", *map(escape, whole_label(a).split(" + "))]
    lines.append(f"Size: {si(a.bytes, 'B')}, {percent(_share(r))} of the model's")
    lines.append(f"Same likeliest next token: {percent(r.agreement)}")
    kl, before, after = (number(e, name) for name in ("logit_kl", "perplexity_parent", "perplexity"))
    lines.append(f"Divergence: {'n/a' if kl is None else nats(kl)}")
    if before is not None and after is not None:
        lines.append(f"Perplexity: {significant(before)} → {significant(after)}")
    prepared = time.strftime("%Y-%m-%d %H:%M", time.localtime(a.created))
    return "<br>".join([*lines, _accuracy(r.accuracy), f"Prepared {prepared}"])


def nats(value: float) -> str:
    """A divergence: small ones by their power of ten."""
    if value == 0 or value >= 1e-3:
        return f"{significant(value)} nats"
    head, _, power = f"{value:.1e}".partition("e")
    return f"{head}e{int(power)} nats"


def _accuracy(found: Accuracy | None) -> str:
    if found is None:
        return "Accuracy: not measured"
    share = percent(found.share, found.low, found.high)
    return f"Accuracy on {escape(shortened(found.task, 40))}: {share}, n = {found.problems:,}"


def shortened(text: str, limit: int) -> str:
    """One line of at most ``limit`` characters."""
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: max(1, limit - 1)].rstrip() + "…"
