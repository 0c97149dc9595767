"""A plotly chart that keeps its zoom when its data changes and sends back an id or a box, never the points.

Streamlit's own chart element redraws from nothing on any change and answers a selection with every selected point,
again on every later rerun; with many points that is megabytes. This one is a small component over the same plotly.js,
which the app serves itself (``app.py``): nothing is fetched from elsewhere, and nothing can be sent elsewhere.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import plotly
import streamlit as st

from ui.theme import DARK, LIGHT

HERE = Path(__file__).parent
SCRIPT_PATH = f"/assets/plotly-{plotly.__version__}.min.js"
CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["lasso2d", "autoScale2d", "toggleSpikelines"],
}

_component = st.components.v2.component(
    "isoquant.plot",
    html="<div class='isoquant-plot'></div><div class='isoquant-plot-note'></div>",
    css=".isoquant-plot { width: 100%; } .isoquant-plot .main-svg { border-radius: 4px; }",
    js=(HERE / "static" / "plot.js").read_text(),
    isolate_styles=False,
)


@dataclass(frozen=True, slots=True)
class Box:
    """The bounds of a box selection, in the units of the axes."""

    x0: float
    x1: float
    y0: float
    y1: float


def plot(
    figure: str,
    *,
    key: str,
    alt: str,
    height: int,
    filename: str = "isoquant",
    on_click: Callable[[str], None] | None = None,
    on_box: Callable[[Box | None], None] | None = None,
    modebar: bool = True,
) -> None:
    """Draw ``figure`` (JSON of ``ui.charts``); ``alt`` says in words what it shows.

    ``on_click`` gets the id (``customdata``) of a clicked point, ``on_box`` a box or None when it is cleared; both run
    before the page does, so what they put into the URL is already there.
    """
    config = CONFIG | {
        "toImageButtonOptions": {"format": "png", "scale": 2, "filename": filename},
        "displayModeBar": modebar,
    }
    data = {
        "figure": figure,
        "alt": alt,
        "height": height,
        "config": config,
        "light": LIGHT,
        "dark": DARK,
        "theme": st.context.theme.type,  # a change of theme must reach the component, which then looks for itself
        "src": st.get_option("server.baseUrlPath").rstrip("/") + SCRIPT_PATH,
    }
    _component(
        key=key,
        data=data,
        height="content",
        on_click_change=lambda: _clicked(key, on_click),
        on_box_change=lambda: _boxed(key, on_box),
    )


def _clicked(key: str, tell: Callable[[str], None] | None) -> None:
    event = st.session_state[key].click
    if tell and isinstance(event, dict) and isinstance(event.get("id"), str):
        tell(event["id"])


def _boxed(key: str, tell: Callable[[Box | None], None] | None) -> None:
    if tell:
        tell(box_of(st.session_state[key].box))


def box_of(event: Any) -> Box | None:
    """A box from what the browser sent; None for no box or anything that is none."""
    try:
        (x0, x1), (y0, y1) = (sorted(float(v) for v in event[axis]) for axis in "xy")
    except (TypeError, KeyError, ValueError):
        return None
    return Box(x0, x1, y0, y1)


@cache
def script_gzip() -> bytes:
    """plotly.js as installed with plotly, compressed once."""
    path = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
