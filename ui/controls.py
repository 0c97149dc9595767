"""The frontier page's controls in the sidebar, and the view they describe, kept in the URL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from spec.measures import MEASURES, Measure
from store import NotFound, Run, Store
from ui import components, data
from ui.address import Address, here
from ui.frontier import Choice, task_name, usual_view
from ui.view import AXES, EVERYTHING, View, log_by_default

ADDRESS = Address("fr_")


def read_view(store: Store) -> View:
    """The view of the URL; widgets are set anew when the URL has changed by itself (a link, the back button)."""
    params = here()
    if ADDRESS.moved(params):
        view, complaints = View.from_params(params)
        run = _pinned(store, view.run)
        if not {"x", "y"} & params.keys():
            usual = usual_view(store, run)
            view = replace(view, x=usual.x, y=usual.y)
        if run is not None and run.result is not None:
            task = task_name(run.spec.task.name, run.spec.task.split)
            machine = run.result.environment.get("hardware_id")
            view = replace(view, task=view.task or task, hardware=view.hardware or machine)
        st.session_state["frontier_complaints"] = complaints
        for key in [k for k in st.session_state if str(k).startswith("fr_")]:
            del st.session_state[key]
        st.session_state["frontier_view"] = view
        ADDRESS.note(params)
    return st.session_state["frontier_view"]


def _pinned(store: Store, run_id: str | None) -> Run | None:
    """The run that a link points at; None where there is none, which is said below the chart."""
    try:
        return store.runs.get(run_id, samples=False) if run_id else None
    except NotFound:
        return None


def settled(store: Store, view: View) -> View:
    """The view with the task and hardware that it shows where it names none, so that a link to it keeps to them."""
    _, offered = data.points(store, view)
    return replace(view, task=view.task or offered.task, hardware=view.hardware or offered.machine)


def write_view(view: View) -> None:
    """Put the view into the URL, so that the address is a permalink."""
    st.session_state["frontier_view"] = view
    ADDRESS.write(view.to_params())


def show(store: Store) -> View:
    """Axes and filters; returns the view they describe, which is then in the URL too."""
    view = read_view(store)
    with st.sidebar:
        across, up = st.container(), st.container()
        x, y = _axis(across, "Across", "x", view.x), _axis(up, "Up", "y", view.y)
        found, offered = data.points(store, replace(view, x=x, y=y))
        if (x, y) != (view.x, view.y):
            view = _measured(view, offered)
        log_x = _scale(across, "x", x, view.log_x if x == view.x else None, found["x"])
        log_y = _scale(up, "y", y, view.log_y if y == view.y else None, found["y"])
        view = replace(view, x=x, y=y, log_x=log_x, log_y=log_y)
        view = _filters(view, offered, store.runs.hardware())
    for complaint in st.session_state.pop("frontier_complaints", ()):
        st.warning(components.plain(complaint), icon=":material/link_off:")
    write_view(view)
    return view


def _measured(view: View, offered: Choice) -> View:
    """For new axes: a task or a machine that has no run on them gives way to the usual one."""
    if view.task not in (EVERYTHING, *offered.tasks):
        view = replace(view, task=None)
        st.session_state.pop("fr_task", None)
    if view.hardware not in (EVERYTHING, *offered.hardware):
        view = replace(view, hardware=None)
        st.session_state.pop("fr_hw", None)
    return view


def _axis(place: DeltaGenerator, label: str, axis: str, name: str) -> str:
    names = [m.name for m in AXES]
    return place.selectbox(
        label,
        names,
        index=names.index(name),
        format_func=lambda n: _axis_label(MEASURES[n]),
        key=f"fr_{axis}",
        help=MEASURES[name].formula,
    )


def _scale(place: DeltaGenerator, axis: str, measure: str, log: bool | None, values: pd.Series) -> bool:
    """Log or linear; where nothing was chosen linear as soon as a value has no place on a log scale."""
    usual = log_by_default(MEASURES[measure]) and not (values <= 0).any()
    return place.toggle("Log scale", usual if log is None else log, key=f"fr_log_{axis}_{measure}")


def _axis_label(measure: Measure) -> str:
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def _filters(view: View, offered: Choice, hardware: dict[str, str]) -> View:
    task = one_of("Task", "fr_task", offered.tasks, view.task, offered.task, {})
    machine = one_of("Hardware", "fr_hw", offered.hardware, view.hardware, offered.machine, unique(hardware))
    models = some_of("Models", "fr_models", offered.models, view.models)
    strategies = some_of("Strategies", "fr_strategies", offered.strategies, view.strategies)
    precisions = some_of("Precision", "fr_precisions", offered.precisions, view.precisions)
    return replace(
        view,
        task=task,
        hardware=machine,
        models=models,
        strategies=strategies,
        precisions=precisions,
    )


def one_of(
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
        key=key,
        help="Runs of one kind are compared with each other; mixing kinds is possible and marked.",
    )


def some_of(label: str, key: str, found: list[str], chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Any number of values; none of them is no restriction."""
    options = list(dict.fromkeys([*found, *chosen]))
    return tuple(st.multiselect(label, options, list(chosen), key=key, placeholder="all"))


def unique(hardware: dict[str, str]) -> dict[str, str]:
    """Names of machines, with a piece of the id where two share a name."""
    names = list(hardware.values())
    return {k: v if names.count(v) == 1 else f"{v} [{k[:4]}]" for k, v in hardware.items()}


def change_view(**changes: Any) -> None:
    """Change the view from a callback, which runs before the page does."""
    view: View = replace(st.session_state["frontier_view"], **changes)
    write_view(view)


def reset_view() -> None:
    """Back to the usual view."""
    ADDRESS.clear()
