"""The frontier page's parts: controls in the sidebar, the chart, and below it what was selected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from analysis.explain import Point, why_dominated
from analysis.format import SHARES, measure_text
from spec.measures import MEASURES, Measure
from store import NotFound, Store
from ui import components, data, export, frontier
from ui.frontier import Choice, Selection
from ui.plot import plot
from ui.view import AXES, EVERYTHING, View, log_by_default

HEIGHT = 470
TABLE_ROWS = 500
SEEN = "frontier_link"


def read_view() -> View:
    """The view of the URL; widgets are set anew when the URL has changed by itself (a link, the back button)."""
    params = {name: st.query_params.get_all(name) for name in st.query_params}
    if params != st.session_state.get(SEEN):
        view, complaints = View.from_params(params)
        st.session_state["frontier_complaints"] = complaints
        for key in [k for k in st.session_state if str(k).startswith("fr_")]:
            del st.session_state[key]
        st.session_state["frontier_view"] = view
        st.session_state[SEEN] = params
    return st.session_state["frontier_view"]


def write_view(view: View) -> None:
    """Put the view into the URL, so that the address is a permalink."""
    params = view.to_params()
    if params != st.session_state.get(SEEN):
        st.query_params.from_dict(params)
    st.session_state["frontier_view"], st.session_state[SEEN] = view, params


def controls(store: Store) -> View:
    """Axes and filters; returns the view they describe, which is then in the URL too."""
    view = read_view()
    with st.sidebar:
        x, log_x = _axis("Across", "x", view.x, view.log_x)
        y, log_y = _axis("Up", "y", view.y, view.log_y)
        view = replace(view, x=x, y=y, log_x=log_x, log_y=log_y)
        _, offered = data.points(store, view)
        view = _filters(view, offered, store.runs.hardware())
    for complaint in st.session_state.pop("frontier_complaints", ()):
        st.warning(components.plain(complaint), icon=":material/link_off:")
    write_view(view)
    return view


def _axis(label: str, axis: str, name: str, log: bool | None) -> tuple[str, bool]:
    names = [m.name for m in AXES]
    chosen = st.selectbox(
        label,
        names,
        index=names.index(name),
        format_func=lambda n: _axis_label(MEASURES[n]),
        key=f"fr_{axis}",
        help=MEASURES[name].formula,
    )
    value = log if log is not None and chosen == name else log_by_default(MEASURES[chosen])
    is_log = st.toggle("Log scale", value, key=f"fr_log_{axis}_{chosen}")
    return chosen, is_log


def _axis_label(measure: Measure) -> str:
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def _filters(view: View, offered: Choice, hardware: dict[str, str]) -> View:
    task = _one_of("Task", "task", offered.tasks, view.task, offered.task, {})
    machine = _one_of("Hardware", "hw", offered.hardware, view.hardware, offered.machine, _unique(hardware))
    models = _some_of("Models", "models", offered.models, view.models)
    strategies = _some_of("Strategies", "strategies", offered.strategies, view.strategies)
    precisions = _some_of("Precision", "precisions", offered.precisions, view.precisions)
    return replace(
        view,
        task=None if task == offered.task else task,
        hardware=None if machine == offered.machine else machine,
        models=models,
        strategies=strategies,
        precisions=precisions,
    )


def _one_of(
    label: str, key: str, found: list[str], chosen: str | None, usual: str | None, names: dict[str, str]
) -> str | None:
    """One value, or all of them mixed; nothing to choose among fewer than two."""
    if len(found) < 2 and chosen in (None, usual):
        return usual
    options = [*found, EVERYTHING]
    if chosen is not None and chosen not in options:
        options.insert(0, chosen)
    return st.selectbox(
        label,
        options,
        index=options.index(chosen or usual or EVERYTHING),
        format_func=lambda v: f"All, mixed ({len(found)})" if v == EVERYTHING else names.get(v, v),
        key=f"fr_{key}",
        help="Runs of one kind are compared with each other; mixing kinds is possible and marked.",
    )


def _some_of(label: str, key: str, found: list[str], chosen: tuple[str, ...]) -> tuple[str, ...]:
    options = list(dict.fromkeys([*found, *chosen]))
    return tuple(st.multiselect(label, options, list(chosen), key=f"fr_{key}", placeholder="all"))


def _unique(hardware: dict[str, str]) -> dict[str, str]:
    """Names of machines, with a piece of the id where two share a name."""
    names = list(hardware.values())
    return {k: v if names.count(v) == 1 else f"{v} [{k[:4]}]" for k, v in hardware.items()}


def chart(store: Store, view: View) -> None:
    """The picture, and one sentence on what it says."""
    shown = data.selection(store, view)
    frame, _ = data.points(store, view)
    st.caption(sentence(shown, view, left_out=_without_values(store, len(frame))))
    if shown.mixed_hardware or shown.mixed_tasks:
        what = " and ".join(w for w, m in (("hardware", shown.mixed_hardware), ("tasks", shown.mixed_tasks)) if m)
        st.warning(
            f"Runs of different {what} share this chart, so the line compares what was not measured alike. "
            "Hollow marks are those of another kind than most.",
            icon=":material/compare_arrows:",
        )
    if len(shown.frame) == 0:
        empty(view)
        return
    plot(
        data.figure(store, view),
        key="frontier_plot",
        alt=alt(shown),
        height=HEIGHT,
        filename=f"frontier-{view.y}-{view.x}",
        on_click=lambda run_id: _change(run=run_id),
        on_box=lambda box: _change(box=box),
    )


def _without_values(store: Store, points: int) -> int:
    return store.runs.count({"state": "succeeded"}) - points


def _change(**changes: Any) -> None:
    """Change the view from a callback, which runs before the page does."""
    view: View = replace(st.session_state["frontier_view"], **changes)
    st.session_state["frontier_view"] = view
    params = view.to_params()
    st.query_params.from_dict(params)
    st.session_state[SEEN] = params


def sentence(shown: Selection, view: View, left_out: int) -> str:
    """What the chart says, and what it leaves out."""
    total, best = len(shown.frame), len(shown.frontier)
    parts = []
    if best:
        f = shown.frame
        ends = [f.iloc[int(shown.frontier[i])] for i in (0, -1)]
        spans = [f"{measure_text(shown.y, e['y'])} at {measure_text(shown.x, e['x'])}" for e in ends]
        reach = spans[0] if best == 1 else f"from {spans[0]} to {spans[1]}"
        parts.append(f"{best:,} of {total:,} runs are on the frontier, {reach}.")
    if shown.sampled:
        drawn = len(shown.drawn) + best
        parts.append(f"{drawn:,} points are drawn: the frontier and a random sample of the rest.")
    if left_out:
        x, y = shown.x.label.lower(), shown.y.label.lower()
        runs = "1 run has" if left_out == 1 else f"{left_out:,} runs have"
        parts.append(f"{runs} no {y} or no {x} and cannot be drawn.")
    return components.plain(" ".join(parts))


def alt(shown: Selection) -> str:
    """The chart in words, for those who cannot see it; the table below has the figures."""
    x, y = shown.x.label.lower(), shown.y.label.lower()
    best = len(shown.frontier)
    return f"{y} against {x}: {len(shown.frame)} runs, {best} of them on the frontier. The table lists them."


def empty(view: View) -> None:
    """No run passes the filters, or none has both measures."""
    st.info(
        f"No run here has both {MEASURES[view.x].label.lower()} and {MEASURES[view.y].label.lower()} "
        "and passes the filters.",
        icon=":material/filter_alt_off:",
    )
    if view != View():
        st.button("Show everything", on_click=_reset, icon=":material/restart_alt:")


def _reset() -> None:
    st.query_params.clear()
    st.session_state.pop(SEEN, None)


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
            st.button("Unpin", on_click=_change, kwargs={"run": None}, icon=":material/close:")
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
            st.button("Unpin", on_click=_change, kwargs={"run": None}, icon=":material/close:", key="unpin")


def verdict(store: Store, view: View, shown: Selection, row: int | None) -> str:
    """Where a run stands: on the frontier, beaten by whom and why, or not in this picture."""
    if row is None:
        return "This run is not in the picture: the filters leave it out, or it lacks one of the two measures."
    found = shown.frame.iloc[row]
    figures = f"{shown.y.label} {measure_text(shown.y, found['y'])}, {shown.x.label.lower()} "
    figures += f"{measure_text(shown.x, found['x'])}, n = {found['n_problems']:.0f}."
    by = frontier.dominator(shown, row)
    if by is None:
        return f"On the frontier: no run shown here is better on both counts. {figures}"
    ours, theirs = (_point(store, str(shown.frame.iloc[i]["run_id"])) for i in (row, by))
    return f"{figures} Beaten: {why_dominated(ours, theirs, view.x, view.y)}"


def _point(store: Store, run_id: str) -> Point:
    run = store.runs.get(run_id, samples=False)
    measures = run.result.measures if run.result else {}
    return Point(frontier.label(run.spec.model, str(run.spec.strategy)), measures, run.spec.to_dict())


def _table(store: Store, view: View, shown: Selection) -> None:
    rows = frontier.within(shown, view)
    line = st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute")
    with line:
        what = f"{len(rows):,} selected" if view.box else f"All {len(rows):,} runs, the frontier first"
        more = f"; the first {TABLE_ROWS} are listed" if len(rows) > TABLE_ROWS else ""
        hint = "" if view.box else " Drag a box on the chart to select; click a point to pin it."
        st.caption(f"{what}{more}.{hint}", width="stretch")
        if view.box:
            st.button("Clear", on_click=_change, kwargs={"box": None}, icon=":material/close:")
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
    for name, column in (("Model", "model"), ("Strategy", "strategy_text"), ("Precision", "weights")):
        found[name] = rows[column].astype(object)
    found["Batch"] = rows["batch_size"]
    looks: dict[str, Any] = {"Batch": st.column_config.NumberColumn(format="%d")}
    for measure, values in ((shown.y, rows["y"]), (shown.x, rows["x"])):
        title = f"{measure.label} ({'%' if measure.name in SHARES else measure.unit})".removesuffix(" ()")
        found[title] = values * (100 if measure.name in SHARES else 1)
        form = "%.1f" if measure.name in SHARES else "%.3g"
        looks[title] = st.column_config.NumberColumn(format=form, help=measure.formula)
    found["n"] = rows["n_problems"]
    looks["n"] = st.column_config.NumberColumn(format="%d", help="Problems answered.")
    if shown.mixed_tasks:
        found["Task"] = rows["where"].astype(object)
    if shown.mixed_hardware:
        found["Hardware"] = [hardware.get(h, "unknown") for h in rows["hardware_id"]]
    found["Measured"] = pd.to_datetime(rows["created"], unit="s")
    looks["Measured"] = st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")
    found["Run"] = rows["run_id"].astype(object)
    return found, looks


def _picker(ids: list[str]) -> Callable[[], None]:
    def pick() -> None:
        chosen = st.session_state["frontier_table"]["selection"]["rows"]
        _change(run=ids[chosen[0]] if chosen else None)

    return pick
