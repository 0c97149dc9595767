"""The first visit: what will be here, and the one button that makes it so."""

from __future__ import annotations

import streamlit as st

from engine.catalog import list_models
from spec.choices import FINAL_STATES, JobState
from spec.tour import TOUR_LIMIT, TOUR_MODELS, tour_specs
from store import Job, Store
from ui import components
from ui.charts import axis, layout, to_json
from ui.plot import plot
from ui.theme import INK, MUTED, PALE


def invitation(store: Store) -> None:
    """Explain a frontier in a picture and offer the tour."""
    words, drawing = st.container(key="page_columns").columns([1, 1], gap="large", vertical_alignment="center")
    with words:
        st.markdown(
            "Each **point** is one way to run a model: its size, its number format, how it looks for an answer. "
            "It lies further up the more questions it gets right, and further left the less that costs."
        )
        st.markdown(
            "The **line** is the frontier: the ways that no other beats on both counts. What lies below it pays too "
            "much."
        )
        st.markdown("Nothing has been measured here yet.")
        offer(store)
    with drawing:
        plot(schematic(), key="schematic", alt=ALT, height=330, modebar=False)


ALT = "A sketch of a frontier: five points joined by a step line, and paler points below and to the right of it."


def offer(store: Store) -> None:
    """The button that queues the tour, or how far it is, or the reason why it cannot run here."""
    if left := len(going(store)):
        st.markdown(f"The tour is on its way, {left} of {len(tour_specs())} runs to go. The points appear here.")
        components.worker_banner(store)
        return
    reason = unavailable()
    label = f"Take the tour: {len(tour_specs())} runs, about a minute"
    if st.button(label, type="primary", icon=":material/play_arrow:", disabled=reason is not None, key="tour"):
        start(store)
        st.rerun()
    if reason:
        st.caption(components.plain(reason))
        st.page_link(components.RUN_PAGE, label="Start a run of your own", icon=":material/play_arrow:")
        return
    st.caption(
        f"Three small models that came with Isoquant, each answering {TOUR_LIMIT} word problems: once straight out, "
        "once by the majority of eight attempts. The points appear here as they are measured."
    )
    components.worker_banner(store)


def unavailable() -> str | None:
    """Why the tour cannot run here; None where it can."""
    found = {m.name: m for m in list_models()}
    missing = [m for m in TOUR_MODELS if m not in found or not found[m].available]
    if not missing:
        return None
    return f"The tour needs {', '.join(TOUR_MODELS)}. {getattr(found.get(missing[0]), 'reason', '')}".strip()


def start(store: Store) -> None:
    """Queue all of the tour, or nothing of it where it is queued already, whoever did so."""
    with store.write():
        if not going(store):
            for spec in tour_specs():
                store.jobs.enqueue(spec, source="tour")


def going(store: Store) -> list[Job]:
    """The jobs of a tour that have not ended."""
    live = [s for s in JobState if s not in FINAL_STATES]
    return [job for job in store.jobs.list(live, limit=None) if job.source == "tour"]


def schematic() -> str:
    """A frontier without numbers: it explains, it does not claim."""
    x, y = [1.0, 2.0, 3.4, 5.2, 7.6], [0.9, 2.6, 4.0, 4.9, 5.5]
    below = [(2.2, 1.5), (3.1, 2.2), (4.4, 3.3), (5.4, 2.6), (6.4, 4.2), (7.4, 3.6), (8.2, 5.0), (4.1, 1.4)]
    line = {
        "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "hoverinfo": "skip",
        "line": {"color": INK, "width": 1.8, "shape": "hv"},
        "marker": {"size": 12, "color": "@c0", "line": {"color": INK, "width": 1.3}},
    }  # fmt: skip
    rest = {
        "type": "scatter", "mode": "markers", "x": [p[0] for p in below], "y": [p[1] for p in below],
        "hoverinfo": "skip", "marker": {"size": 8, "color": PALE},
    }  # fmt: skip

    def note(x: float, y: float, text: str, anchor: str) -> dict[str, object]:
        font = {"size": 14, "color": MUTED}
        return {"x": x, "y": y, "text": text, "showarrow": False, "xanchor": anchor, "font": font}

    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "fixedrange": True}
    return to_json(
        {
            "data": [rest, line],
            "layout": layout(
                xaxis=axis("Cost: time, energy, compute", **bare, range=[0, 9.4]),
                yaxis=axis("Accuracy", **bare, range=[0, 6.6]),
                annotations=[
                    note(0.3, 6.2, "↖ better", "left"),
                    note(5.0, 5.5, "the frontier", "right"),
                    note(6.0, 1.9, "beaten by another run", "left"),
                ],
                dragmode=False,
            ),
        }
    )
