"""The roofline of the page Kernels: operations per byte and per second, under what the hardware can do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.format import percent, si
from spec.kernel_result import KernelResult
from ui.charts import Figure, escape, layout, to_json
from ui.kernels_chart import BAR, MARGIN, SPACE, card, log_axis, look
from ui.kernels_rows import hardware, is_ours, label
from ui.theme import INK, MUTED

ROOM = 0.045  # of the height; labels nearer to each other would overlap


def roofline(shown: Sequence[KernelResult], others: Sequence[KernelResult]) -> str:
    """Operations per byte against operations per second; ``others``: paler, cases beside the one that is shown."""
    points = [r for r in shown if r.flop_per_s and r.intensity]
    beside = [r for r in others if r.flop_per_s and r.intensity]
    one = next((r for r in points if r.copy_bytes_per_s and r.matmul_flop_per_s), None)
    xs = np.array([r.intensity for r in (*points, *beside)], dtype=float)
    ys = np.array([r.flop_per_s for r in (*points, *beside)], dtype=float)
    low, high = float(xs.min()) / 4, float(xs.max()) * 12  # to the right there is room for names
    left = False  # where they stand
    data: list[Figure] = []
    if one is not None:
        copy, matmul = float(one.copy_bytes_per_s or 0), float(one.matmul_flop_per_s or 0)
        ridge = matmul / copy
        left = float(xs.min()) > ridge
        high = max(high / 3 if left else high, ridge * 4)
        low = min(low, ridge / 16)
        ys = np.append(ys, [matmul, low * copy])
        data += _ceiling((low, ridge, high), copy, matmul, hardware(one), below=left)
    data += [_point(r, 6, 0.45, 0) for r in beside]
    data += [_point(r, 13 if is_ours(r) else 11, 1.0, 1.4 if is_ours(r) else 0.6) for r in points]
    data.append(_names(points, float(np.log10(ys.max() / ys.min())) or 1.0, left))
    return to_json(
        {
            "data": data,
            "layout": layout(
                xaxis=log_axis("Operations per byte moved", np.array([low, high]), "", [low, high]),
                yaxis=log_axis("Operations per second   <b>better →</b>", ys, "FLOP/s"),
                margin=MARGIN | {"r": 44},
                modebar=BAR,
                uirevision="kernels-roofline",
            ),
        }
    )


def _ceiling(reach: tuple[float, float, float], copy: float, matmul: float, where: str, below: bool) -> list[Figure]:
    low, ridge, high = reach
    texts = [f"{si(copy, 'B/s')} copied", "", f"{si(matmul, 'FLOP/s')} multiplied"]
    line = {
        "type": "scatter", "mode": "lines", "x": [low, ridge, high], "y": [low * copy, matmul, matmul],
        "line": {"color": INK, "width": 2}, "hovertemplate": "%{text}<extra></extra>",
        "text": [f"Measured on {escape(where)}: {t}" if t else "" for t in texts],
    }  # fmt: skip
    # The words stand where no point is: above the slope and high up on it, or below it where all are right of it.
    level = {
        "type": "scatter", "mode": "lines", "x": [low, ridge], "y": [matmul, matmul], "hoverinfo": "skip",
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
    }  # fmt: skip
    corner = "bottom right" if below else "top left"
    at = low**0.6 * ridge**0.4 if below else low**0.2 * ridge**0.8
    words = {
        "type": "scatter", "mode": "text", "x": [at, low], "y": [at * copy, matmul], "hoverinfo": "skip",
        "text": [f"  {texts[0]}  ", f" {texts[2]}"], "textposition": [corner, "top right"],
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


def _names(points: Sequence[KernelResult], decades: float, left: bool) -> Figure:
    """Names right or left of the points, as far as they do not cover each other; ours first."""
    kept: list[KernelResult] = []
    for r in sorted(points, key=lambda r: (not is_ours(r), -(r.flop_per_s or 0))):
        height = np.log10(r.flop_per_s or 1) / decades
        if all(abs(height - np.log10(k.flop_per_s or 1) / decades) > ROOM for k in kept):
            kept.append(r)
    return {
        "type": "scatter", "mode": "text", "x": [r.intensity for r in kept], "y": [r.flop_per_s for r in kept],
        "text": [f"{SPACE}{escape(label(r))}  {percent(r.share)}{SPACE}" for r in kept],
        "textposition": "middle left" if left else "middle right",
        "textfont": {"size": 12, "color": INK}, "hoverinfo": "skip", "cliponaxis": False,
    }  # fmt: skip
