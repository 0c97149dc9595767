"""The frontier page below its controls: the chart, the pinned run, the table of what was selected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from analysis.explain import Point, why_dominated
from analysis.format import SHARES, measure_text, si
from spec.choices import EnergyMethod
from spec.measures import MEASURES, Measure
from store import NotFound, Store
from ui import components, data, export, frontier, times
from ui.charts import SYMBOLS
from ui.controls import change_view, reset_view, settled
from ui.frontier import Selection
from ui.plot import plot
from ui.view import View

HEIGHT = 470
TABLE_ROWS = 500


def chart(store: Store, view: View) -> None:
    """The picture, and one sentence on what it says."""
    shown = data.selection(store, view)
    frame, _ = data.points(store, view)
    invalid = frontier.invalid_energies(store, view.x, view.y)
    lacking = store.runs.count({"state": "succeeded"}) - len(frame) - invalid
    st.caption(sentence(shown, view, lacking, invalid))
    if shown.mixed_hardware or shown.mixed_tasks:
        what = " and ".join(w for w, m in (("hardware", shown.mixed_hardware), ("tasks", shown.mixed_tasks)) if m)
        st.warning(
            f"Runs of different {what} share this chart, so the line compares what was not measured alike. "
            "Hollow marks are those of another kind than most.",
            icon=":material/compare_arrows:",
        )
    if shown.mixed_methods:
        methods = sorted(EnergyMethod(m).words for m in shown.frame["energy_method"].unique())
        st.warning(
            f"The energies come from different sources, which do not measure the same parts of a machine: "
            f"{', '.join(methods)}.",
            icon=":material/bolt:",
        )
    if len(shown.frame) == 0:
        empty(store, view)
        return
    plot(
        data.figure(store, view),
        key="frontier_plot",
        alt=alt(shown),
        height=HEIGHT,
        filename=f"frontier-{view.y}-{view.x}",
        on_click=lambda run_id: change_view(run=run_id),
        on_box=lambda box: change_view(box=box),
    )


def sentence(shown: Selection, view: View, left_out: int, invalid: int = 0) -> str:
    """What the chart says, and what it leaves out: runs without a measure, and those whose energy is not valid."""
    total, best = len(shown.frame), len(shown.frontier)
    parts = []
    if best:
        f = shown.frame
        ends = [f.iloc[int(shown.frontier[i])] for i in (0, -1)]
        spans = [f"{measure_text(shown.y, e['y'])} at {measure_text(shown.x, e['x'])}" for e in ends]
        reach = spans[0] if best == 1 else f"from {spans[0]} to {spans[1]}"
        runs = f"{best:,} of {total:,} runs {'is' if best == 1 else 'are'}" if total > 1 else "The only run here is"
        parts.append(f"{runs} on the frontier, {reach}.")
    if shown.sampled:
        drawn = len(shown.drawn) + best
        parts.append(f"{drawn:,} points are drawn: the frontier and a random sample of the rest.")
    if hidden := frontier.off_scale(shown, view):
        parts.append(f"{_runs(hidden, 'lies', 'lie')} at 0, which a log scale cannot show.")
    if invalid:
        parts.append(f"{_runs(invalid, 'has', 'have')} an energy that is not valid and cannot be compared.")
    if left_out:
        x, y = shown.x.label.lower(), shown.y.label.lower()
        parts.append(f"{_runs(left_out, 'has', 'have')} no {y} or no {x} and cannot be drawn.")
    return components.plain(" ".join(parts))


def _runs(number: int, one: str, several: str) -> str:
    return f"1 run {one}" if number == 1 else f"{number:,} runs {several}"


def alt(shown: Selection) -> str:
    """The chart in words, for those who cannot see it; the table below has the figures."""
    x, y = shown.x.label.lower(), shown.y.label.lower()
    best = len(shown.frontier)
    return f"{y} against {x}: {len(shown.frame)} runs, {best} of them on the frontier. The table lists them."


def empty(store: Store, view: View) -> None:
    """No run passes the filters, or none has both measures."""
    st.info(
        f"No run here has both {MEASURES[view.x].label.lower()} and {MEASURES[view.y].label.lower()} "
        "and passes the filters.",
        icon=":material/filter_alt_off:",
    )
    if view.to_params() != settled(store, frontier.usual_view(store)).to_params():
        st.button("Show everything", on_click=reset_view, icon=":material/restart_alt:")


def details(store: Store, view: View) -> None:
    """The pinned run, and the table of what is selected."""
    shown = data.selection(store, view)
    if view.run:
        _pinned(store, view, shown)
    if len(shown.frame):
        _table(store, view, shown)


def _pinned(store: Store, view: View, shown: Selection) -> None:
    run_id = str(view.run)
    with st.container(border=True):
        try:
            run = store.runs.get(run_id, samples=False)
        except NotFound as error:
            st.warning(components.plain(error), icon=":material/search_off:")
            st.button("Unpin", on_click=change_view, kwargs={"run": None}, icon=":material/close:")
            return
        words, buttons = st.columns([4, 1], vertical_alignment="center")
        row = frontier.find(shown, run_id)
        with words:
            st.markdown(f"**{components.plain(run.spec)}**")
            st.markdown(components.plain(verdict(store, view, shown, row)))
        with buttons:
            st.page_link(
                components.RUNS_PAGE, label="Look inside", icon=":material/table_rows:", query_params={"run": run_id}
            )
            st.button("Unpin", on_click=change_view, kwargs={"run": None}, icon=":material/close:", key="unpin")


def verdict(store: Store, view: View, shown: Selection, row: int | None) -> str:
    """Where a run stands: on the frontier, beaten by whom and why, or not in this picture."""
    if row is None:
        return "This run is not in the picture: the filters leave it out, or it lacks a measure or a valid energy."
    found = shown.frame.iloc[row]
    figures = f"{shown.y.label} {measure_text(shown.y, found['y'])}, {shown.x.label.lower()} "
    figures += f"{measure_text(shown.x, found['x'])}"
    figures += "." if pd.isna(found["n_problems"]) else f", n = {found['n_problems']:.0f}."
    by = frontier.dominator(shown, row)
    if by is None:
        return f"On the frontier: no run shown here is better on both counts. {figures}"
    ours, theirs = (_point(store, str(shown.frame.iloc[i]["run_id"])) for i in (row, by))
    return f"{figures} Beaten: {why_dominated(ours, theirs, view.x, view.y)}"


def _point(store: Store, run_id: str) -> Point:
    run = store.runs.get(run_id, samples=False)
    measures, environment = (run.result.measures, run.result.environment) if run.result else ({}, {})
    name = frontier.label(run.spec.model, str(run.spec.strategy))
    return Point(name, measures, run.spec.to_dict(), environment)


def _table(store: Store, view: View, shown: Selection) -> None:
    rows = frontier.within(shown, view)
    line = st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute")
    with line:
        what = (
            f"{len(rows):,} selected"
            if view.box
            else "1 run"
            if len(rows) == 1
            else f"All {len(rows):,} runs, the frontier first"
        )
        more = f"; the first {TABLE_ROWS} are listed" if len(rows) > TABLE_ROWS else ""
        hint = "" if view.box else " Drag a box on the chart to select; click a point to pin it."
        st.caption(f"{what}{more}.{hint}", width="stretch")
        if view.box:
            st.button("Clear", on_click=change_view, kwargs={"box": None}, icon=":material/close:")
        with st.popover("Export", icon=":material/download:"):
            export.buttons(store, rows, view)
    listed = rows.head(TABLE_ROWS)
    table, columns = columns_of(listed, shown, store.runs.hardware())
    st.dataframe(
        table,
        column_config=columns,
        height=min(420, 38 + 35 * len(listed)),
        hide_index=True,
        key="frontier_table",
        on_select=_picker(list(listed["run_id"])),
        selection_mode="single-row",
        alt="The runs of the chart, the frontier first.",
    )


def columns_of(rows: pd.DataFrame, shown: Selection, hardware: dict[str, str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and how its columns are drawn; shares in percent, other figures with their unit in the head."""
    found = pd.DataFrame({"Frontier": rows["on_frontier"]})
    for name, column in (("Model", "model"), ("Strategy", "strategy_text"), ("Precision", "precision")):
        found[name] = rows[column].astype(object)
    found["Batch"] = rows["batch_size"]
    looks: dict[str, Any] = {
        "Batch": st.column_config.NumberColumn(format="%d"),
        "Strategy": st.column_config.TextColumn(width="medium"),
    }
    for measure, values in ((shown.y, rows["y"]), (shown.x, rows["x"])):
        factor, unit = (100, "%") if measure.name in SHARES else column_unit(measure, values)
        title = f"{measure.label} ({unit})".removesuffix(" ()")
        found[title] = values * factor
        form = "%.1f" if measure.name in SHARES else "localized" if measure.integer and factor == 1 else "%.3g"
        looks[title] = st.column_config.NumberColumn(format=form, help=measure.formula)
    found["n"] = rows["n_problems"]
    looks["n"] = st.column_config.NumberColumn(format="%d", help="Problems answered.")
    if shown.mixed_methods:
        found["Energy by"] = [EnergyMethod(m).words for m in rows["energy_method"]]
    if shown.mixed_tasks:
        found["Task"] = rows["where"].astype(object)
    if shown.mixed_hardware:
        found["Hardware"] = [hardware.get(h, "unknown") for h in rows["hardware_id"]]
    found["Measured"] = [times.moment(t) for t in rows["created"]]
    looks["Measured"] = st.column_config.DatetimeColumn(format=times.COLUMN_FORMAT, help="Your local time.")
    found["Run"] = rows["run_id"].astype(object)
    return found, looks


def column_unit(measure: Measure, values: pd.Series) -> tuple[float, str]:
    """One prefix for a whole column, that of its middle value: what to multiply by, and the unit with the prefix."""
    middle = values[values > 0].median()
    if measure.unit not in SYMBOLS or pd.isna(middle):
        return 1.0, measure.unit
    number, _, unit = si(middle, measure.unit).partition(" ")
    return 10.0 ** (3 * round(math.log10(float(number) / middle) / 3)), unit


def _picker(ids: list[str]) -> Callable[[], None]:
    def pick() -> None:
        chosen = st.session_state["frontier_table"]["selection"]["rows"]
        change_view(run=ids[chosen[0]] if chosen else None)

    return pick
