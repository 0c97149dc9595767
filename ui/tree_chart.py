"""A search tree as a picture: colour is the score, size the tokens, the thick path leads to the answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from analysis.format import duration
from spec.choices import Fate
from spec.results import Answer
from ui.charts import Figure, axis, escape, layout, to_json
from ui.theme import GRID, INK, MUTED, PALE, PAPER
from ui.tree import DROPPED, Step, Tree

ROOT = "question"
SYMBOLS = {
    Fate.EXPANDED: "circle",
    Fate.FINISHED: "square",
    Fate.CUT: "diamond",
    Fate.PRUNED: "circle",
    Fate.DUPLICATE: "circle-open",
}
KEYS = {
    Fate.EXPANDED: "continued",
    Fate.FINISHED: "ended its solution",
    Fate.CUT: "cut",
    Fate.PRUNED: "dropped",
    Fate.DUPLICATE: "dropped, same text",
}
MARKS = {True: " ✓", False: " ✗", None: ""}
LEAF_PX, LOW_PX, HIGH_PX = 17, 300, 700
LABELLED = 48  # rooms of leaves up to which each answer finds room beside its leaf
LABEL_PX = 12
WIDTH_PX = 470  # of the drawing, about
CUT_TEXT = 300
SCALE_PX = 92  # beside the drawing, for the scale of the colours and, right of it, the buttons


def height(trees: Sequence[Tree]) -> int:
    """Pixels for the largest of some trees that are shown side by side."""
    return round(max(LOW_PX, min(HIGH_PX, 70 + LEAF_PX * max((t.width for t in trees), default=0))))


def tree_figure(tree: Tree, answer: Answer, selected: int | None, pixels: int) -> str:
    """The figure's JSON; the id of a step is its index as text, that of the question is ``ROOT``."""
    largest = max((s.tokens for s in tree.steps), default=1) or 1
    room = _room(tree, pixels)
    kept = [s for s in tree.steps if s.fate not in DROPPED or s.is_chosen]
    data = [
        _edges(tree, [s for s in tree.steps if s.fate in DROPPED and not s.is_chosen], GRID, 1.2),
        _edges(tree, [s for s in kept if not s.is_chosen], PALE, 1.2),
        _edges(tree, [s for s in kept if s.is_chosen], INK, 4.0),
        _root(tree, answer),
    ]
    for fate in Fate:
        some = [s for s in tree.steps if s.fate is fate]
        if some:
            data.append(_steps(tree, some, answer, fate, largest, room))
    if selected is not None and 0 <= selected < len(tree.steps):
        data.append(_ring(tree.steps[selected], room))
    labels = _labels(tree, answer, pixels)
    if labels:
        data.append(_answers(tree, labels, room))
    scored = any(s.score is not None for s in tree.steps)
    data += _legend(tree, is_vote=not tree.has_steps and not scored)
    title = "Depth (steps of a solution)" if tree.has_steps else "Candidates of the vote"
    figure: Figure = {
        "data": data,
        "layout": layout(
            xaxis=axis(
                title,
                range=[-0.3, tree.depth + _margin(tree, bool(labels))],
                dtick=1 if tree.depth <= 20 else None,
                tick0=0,
                showgrid=False,
                showticklabels=tree.has_steps,
            ),
            yaxis={"range": [tree.width + 0.5, -0.5], "visible": False, "fixedrange": False},
            margin={"l": 8, "r": 44, "t": 8, "b": 8},
            modebar={"orientation": "v", "bgcolor": PAPER, "color": MUTED, "activecolor": INK},
            dragmode="pan",
            showlegend=True,
            legend={
                "orientation": "h",
                "x": 0,
                "y": 1,
                "yanchor": "bottom",
                "font": {"size": 12, "color": INK},
                "itemclick": False,
                "itemdoubleclick": False,
                "bgcolor": PAPER,
            },
            uirevision="tree",
        ),
    }
    if scored:
        figure["layout"]["margin"]["r"] = SCALE_PX
        figure["layout"]["coloraxis"] = _scale([s.score for s in tree.steps if s.score is not None])
    return to_json(figure)


def _room(tree: Tree, pixels: int) -> float:
    """The largest mark that does not cover its neighbours."""
    return min(20.0, max(5.0, 1.15 * (pixels - 70) / max(1.0, tree.width)))


def _margin(tree: Tree, labelled: bool) -> float:
    """Room to the right of the last steps, in steps: for the answers, where they stand there."""
    return 0.2 * (tree.depth + 1) + 0.1 if labelled else 0.35


def _scale(scores: Sequence[float]) -> Figure:
    low, high = min(0.0, *scores, 0.0), max(1.0, *scores, 1.0)
    bar = {
        "title": {"text": "Score", "font": {"size": 12, "color": MUTED}, "side": "top"},
        "thickness": 10,
        "len": 130,
        "lenmode": "pixels",
        "x": 1.0,
        "xpad": 4,
        "y": 0.0,
        "yanchor": "bottom",
        "tickfont": {"color": MUTED, "size": 11},
        "outlinewidth": 0,
    }
    return {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar}


def _edges(tree: Tree, steps: Sequence[Step], colour: str, width: float) -> Figure:
    x: list[float | None] = []
    y: list[float | None] = []
    for s in steps:
        parent = None if s.parent is None else tree.steps[s.parent]
        start = (0.0, tree.root_y) if parent is None else (float(parent.depth), parent.y)
        # A level stretch before the step keeps the fans of neighbours apart.
        x += [start[0], start[0] + 0.55, float(s.depth), None]
        y += [start[1], s.y, s.y, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": colour, "width": width},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _root(tree: Tree, answer: Answer) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [0],
        "y": [tree.root_y],
        "customdata": [ROOT],
        "hovertext": [f"<b>The question</b><br>{_wrapped(answer.question)}"],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"size": 13, "symbol": "star", "color": INK},
        "showlegend": False,
    }


def _steps(tree: Tree, some: Sequence[Step], answer: Answer, fate: Fate, largest: int, room: float) -> Figure:
    dropped = fate in DROPPED
    marker: Figure = {
        "symbol": SYMBOLS[fate],
        "size": [_size(s, largest, room, dropped) for s in some],
        "opacity": 1.0,
        "line": {"color": INK, "width": [2.0 if s.is_chosen else 0.0 if dropped else 0.8 for s in some]},
    }
    if dropped:
        marker["color"] = PALE
    elif all(s.score is None for s in some):
        same = [tree.has_steps or answer.candidates[s.index].answer == answer.answer for s in some]
        marker["color"] = ["@c0" if is_same else PAPER for is_same in same]
    else:
        marker |= {"color": [s.score for s in some], "coloraxis": "coloraxis"}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [s.depth for s in some],
        "y": [s.y for s in some],
        "customdata": [str(s.index) for s in some],
        "hovertext": [card(s, answer, tree.has_steps) for s in some],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": marker,
        "cliponaxis": False,
        "showlegend": False,
    }


def _size(s: Step, largest: int, room: float, dropped: bool) -> float:
    """Area by tokens; as large as the tree leaves room for."""
    size = room * (0.45 + 0.55 * (s.tokens / largest) ** 0.5)
    return round(max(4.0, size * (0.7 if dropped else 1.0)), 1)


def card(s: Step, answer: Answer, has_steps: bool) -> str:
    """The hover text of a step: what became of it and why, what it took, how it begins."""
    head = f"<b>{f'Step {s.depth}' if has_steps else f'Candidate {s.index + 1}'}</b>"
    parts = [head, escape(words(s))]
    if s.candidate is not None:
        c = answer.candidates[s.candidate]
        given = c.answer if c.answer is not None else "none"
        chosen = ", the answer given" if s.candidate == answer.chosen else ""
        parts.append(f"Answer: {escape(given[:60])}{MARKS[c.correct]}{chosen}")
    parts.append(_figures(s))
    if text := s.text.strip():
        parts.append(f"<i>{_wrapped(text)}</i>")
    return "<br>".join(parts)


def words(s: Step) -> str:
    """What became of a step, with the strategy's figures: ``continued (3 of 16 continuations)``."""
    return s.fate.words + (f" ({s.note})" if s.note else "")


def _figures(s: Step) -> str:
    found = [] if s.score is None else [f"score {s.score:.3f}"]
    found.append("1 token" if s.tokens == 1 else f"{s.tokens:,} tokens")
    found += [] if s.seconds is None else [duration(s.seconds)]
    return ", ".join(found)


def _wrapped(text: str) -> str:
    short = " ".join(text.split())
    short = short if len(short) <= CUT_TEXT else f"{short[:CUT_TEXT]} ..."
    return "<br>".join(escape(line) for line in textwrap.wrap(short, 70))


def _ring(s: Step, room: float) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [s.depth],
        "y": [s.y],
        "hoverinfo": "skip",
        "marker": {"size": room + 10, "symbol": "circle-open", "color": INK, "line": {"color": INK, "width": 2.2}},
        "cliponaxis": False,
        "showlegend": False,
    }


def _labels(tree: Tree, answer: Answer, pixels: int) -> list[tuple[Step, float, str]]:
    """The answers at the ends of their solutions: step, place across, text. Equal ones of a vote share a label."""
    if tree.has_steps:
        ends = [s for s in tree.steps if s.candidate is not None] if tree.width <= LABELLED else []
        return [(s, s.y, _given(answer, s)) for s in ends]
    groups: dict[str | None, list[Step]] = {}
    for s in sorted(tree.steps, key=lambda s: s.y):
        groups.setdefault(answer.candidates[s.index].answer, []).append(s)
    found: list[tuple[Step, float, str]] = []
    gap = LABEL_PX * tree.width / (pixels - 70)
    for some in groups.values():
        y = (some[0].y + some[-1].y) / 2
        if not found or y - found[-1][1] >= gap:
            times = f"  × {len(some)}" if len(some) > 1 else ""
            found.append((some[0], y, _given(answer, some[0]) + times))
    return found


def _given(answer: Answer, s: Step) -> str:
    c = answer.candidates[s.candidate or 0]
    given = "no answer" if c.answer is None else escape(c.answer if len(c.answer) <= 16 else f"{c.answer[:15]}…")
    return f"<b>{given}{MARKS[c.correct]}</b>" if s.is_chosen else f"{given}{MARKS[c.correct]}"


def _answers(tree: Tree, labels: Sequence[tuple[Step, float, str]], room: float) -> Figure:
    aside = (room / 2 + 5) * (tree.depth + 0.3 + _margin(tree, True)) / WIDTH_PX
    return {
        "type": "scatter",
        "mode": "text",
        "x": [s.depth + aside for s, _, _ in labels],
        "y": [y for _, y, _ in labels],
        "text": [text for _, _, text in labels],
        "textposition": "middle right",
        "textfont": {"size": 11, "color": [INK if s.is_chosen else MUTED for s, _, _ in labels]},
        "hoverinfo": "skip",
        "cliponaxis": False,
        "showlegend": False,
    }


def _legend(tree: Tree, is_vote: bool) -> list[Figure]:
    nothing: Figure = {"type": "scatter", "x": [None], "y": [None], "hoverinfo": "skip"}
    found = []
    if any(s.is_chosen for s in tree.steps):
        found.append(nothing | {"mode": "lines", "name": "path to the answer", "line": {"color": INK, "width": 4}})
    fates = {s.fate for s in tree.steps}
    for fate in Fate:
        if fate in fates:
            colour = PALE if fate in DROPPED else "@c0" if is_vote else PAPER
            stroke = {"color": PALE if fate in DROPPED else INK, "width": 1.2}
            marker = {"size": 10, "symbol": SYMBOLS[fate], "color": colour, "line": stroke}
            name = "same answer" if is_vote and fate is Fate.FINISHED else KEYS[fate]
            found.append(nothing | {"mode": "markers", "name": name, "marker": marker})
    if is_vote:
        marker = {"size": 10, "symbol": SYMBOLS[Fate.FINISHED], "color": PAPER, "line": {"color": INK, "width": 1.2}}
        found.append(nothing | {"mode": "markers", "name": "another answer", "marker": marker})
    return found
