"""The page Scaling: its controls in the sidebar, the chart, and its points as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from analysis.format import percent
from analysis.lines import BUDGETS, Cost, Line
from analysis.published import SOURCE, TASK
from analysis.scaling import Point
from spec.choices import EnergyMethod
from store import NotFound, Store
from ui import components, data, tour
from ui.address import Address, here
from ui.controls import one_of, some_of, unique
from ui.explorer import column_unit
from ui.plot import plot
from ui.scaling_lines import Selected
from ui.scaling_view import ScalingView

HEIGHT = 470
ADDRESS, VIEW, COMPLAINTS = Address("sc_"), "scaling_view", "scaling_complaints"
LIMIT_HELP = "The share of problems for which at least one of k samples is right: what a perfect judge would reach."
PAPER_HELP = f"{SOURCE}: other models on {TASK}, not on this task. Hold the shapes of the lines against each other."
PAPER_NOT = "Only where compute is counted as the paper counts it: choose Compute per problem, generated."


def show(store: Store) -> None:
    """Controls, chart, the run that was clicked, and the table."""
    view = controls(store)
    shown, figure = data.scaling(store, view)
    st.caption(sentence(shown, view))
    for icon, warning in warnings(shown, store.runs.hardware()):
        st.warning(warning, icon=icon)
    if not shown.lines:
        empty(view)
        return
    plot(
        figure,
        key="scaling_plot",
        alt=f"Accuracy against {view.x.measure.label.lower()}: {len(shown.lines)} lines. The table lists their points.",
        height=HEIGHT,
        filename=f"scaling-{view.x}",
        on_click=lambda run_id: change_view(run=run_id),
    )
    if view.shows_paper:
        st.caption(components.plain(f"Hollow grey marks: {PAPER_HELP}"))
    if view.run:
        _clicked(store, view.run)
    _table(shown, view.x)


def controls(store: Store) -> ScalingView:
    """The view that the sidebar describes, which is then in the URL too."""
    view = read_view()
    _, offered = data.scaling_runs(store)
    with st.sidebar:
        names = [str(cost) for cost in Cost]
        x = st.selectbox(
            "Across",
            names,
            index=names.index(view.x),
            format_func=lambda name: Cost(name).measure.label,
            key="sc_x",
            help=f"{view.x.measure.formula.capitalize()}.",
        )
        view = replace(view, x=Cost(x))
        view = replace(
            view,
            task=one_of("Task", "sc_task", offered.tasks, view.task, offered.task, {}),
            hardware=one_of(
                "Hardware", "sc_hw", offered.hardware, view.hardware, offered.machine, unique(store.runs.hardware())
            ),
            models=some_of("Models", "sc_models", offered.models, view.models),
            strategies=some_of("Strategies", "sc_strategies", offered.strategies, view.strategies),
            precisions=some_of("Precision", "sc_precisions", offered.precisions, view.precisions),
            limit=st.toggle("Limit: pass@k", view.limit, key="sc_limit", help=LIMIT_HELP),
            paper=_paper_toggle(view),
        )
    for complaint in st.session_state.pop(COMPLAINTS, ()):
        st.warning(components.plain(complaint), icon=":material/link_off:")
    write_view(view)
    return view


def _paper_toggle(view: ScalingView) -> bool:
    can = view.x is Cost.FLOPS_GENERATED
    words = PAPER_HELP if can else PAPER_NOT
    return st.toggle("Points of a paper", view.paper, key="sc_paper", help=words, disabled=not can)


def read_view() -> ScalingView:
    """The view of the URL; widgets are set anew when the URL has changed by itself (a link, the back button)."""
    params = here()
    if ADDRESS.moved(params):
        view, complaints = ScalingView.from_params(params)
        for key in [k for k in st.session_state if str(k).startswith("sc_")]:
            del st.session_state[key]
        st.session_state[VIEW], st.session_state[COMPLAINTS] = view, complaints
        ADDRESS.note(params)
    view: ScalingView = st.session_state[VIEW]
    return view


def write_view(view: ScalingView) -> None:
    """Put the view into the URL, so that the address is a permalink."""
    st.session_state[VIEW] = view
    ADDRESS.write(view.to_params())


def change_view(**changes: Any) -> None:
    """Change the view from a callback, which runs before the page does."""
    write_view(replace(st.session_state[VIEW], **changes))


def reset_view() -> None:
    """Back to the usual view."""
    ADDRESS.clear()


def sentence(shown: Selected, view: ScalingView) -> str:
    """What the chart says, and what it leaves out."""
    parts = []
    if best := max(shown.lines, key=gain, default=None):
        first, last = best.points[0], best.points[-1]
        if gain(best) > 0:
            times = f"{last.x / first.x:.3g} times the cost" if first.x else "more cost"
            parts.append(
                f"{best.name} gains most: from {percent(first.accuracy)} to {percent(last.accuracy)} for {times}."
            )
    sizes = [p.problems for line in shown.lines for p in line.points]
    if sizes and min(sizes) < max(sizes):
        parts.append(f"Not all were asked the same: points stand on {min(sizes):,} to {max(sizes):,} problems.")
    if shown.left_out:
        parts.append(f"{len(shown.lines)} lines are drawn; {shown.left_out} more need a filter in the sidebar.")
    if shown.unread:
        what = "1 vote is" if shown.unread == 1 else f"{shown.unread} votes are"
        parts.append(f"{what} drawn without the curve of smaller n: too many answers to read. Fewer models show it.")
    if shown.lacking:
        what = "1 run does" if shown.lacking == 1 else f"{shown.lacking} configurations do"
        parts.append(f"{what} not know this cost and cannot be drawn.")
    return components.plain(" ".join(parts))


def gain(line: Line) -> float:
    """What accuracy a line wins from its cheapest point to its dearest."""
    return line.points[-1].accuracy - line.points[0].accuracy


def warnings(shown: Selected, hardware: dict[str, str]) -> list[tuple[str, str]]:
    """What makes the lines hard to compare: icon and sentence."""
    found = []
    kinds = [w for w, mixed in (("hardware", shown.mixed_hardware), ("tasks", shown.mixed_tasks)) if mixed]
    if kinds:
        words = f"Runs of different {' and '.join(kinds)} share this chart, so the lines compare what was not measured "
        found.append((":material/compare_arrows:", f"{words}alike."))
    if len(shown.methods) > 1:
        names = ", ".join(sorted(EnergyMethod(m).words for m in shown.methods))
        words = "The energies come from different sources, which do not measure the same parts of a machine"
        found.append((":material/bolt:", f"{words}: {names}."))
    return found


def empty(view: ScalingView) -> None:
    """No run passes the filters, or none knows the cost."""
    st.info(
        f"No run here has an accuracy and a {view.x.measure.label.lower()} and passes the filters.",
        icon=":material/filter_alt_off:",
    )
    if replace(view, task=None, hardware=None).to_params() != ScalingView().to_params():
        st.button("Show everything", on_click=reset_view, icon=":material/restart_alt:")


def invitation(store: Store) -> None:
    """Nothing was measured yet: what will be here, and how to get there."""
    st.markdown(
        "Here each model and strategy becomes a **line**: how its accuracy grows when it may spend more on a problem. "
        "One run of a vote with many samples is enough for a whole curve, for a part of its samples is a smaller vote."
    )
    st.markdown("Nothing has been measured here yet.")
    tour.offer(store)


def _clicked(store: Store, run_id: str) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        try:
            words = f"**{components.plain(store.runs.get(run_id, samples=False).spec)}**"
        except NotFound as error:
            words = components.plain(error)
        st.markdown(words, width="stretch")
        st.page_link(
            components.RUNS_PAGE, label="Look inside", icon=":material/table_rows:", query_params={"run": run_id}
        )
        st.button("Close", on_click=change_view, kwargs={"run": None}, icon=":material/close:")


def _table(shown: Selected, cost: Cost) -> None:
    table = frame(shown.lines)
    factor, unit = column_unit(cost.measure, table["x"])
    title = cost.measure.label if unit in cost.measure.label.lower() else f"{cost.measure.label} ({unit})"
    table.insert(3, title, table.pop("x") * factor)
    st.dataframe(
        table,
        column_config={
            "Accuracy (%)": st.column_config.NumberColumn(format="%.1f"),
            "From (%)": st.column_config.NumberColumn(format="%.1f", help="Lower end of the 95 % interval."),
            "To (%)": st.column_config.NumberColumn(format="%.1f", help="Upper end of the 95 % interval."),
            title: st.column_config.NumberColumn(format="%.3g", help=f"{cost.measure.formula.capitalize()}."),
            "Budget": st.column_config.TextColumn(help="Samples per problem, or what else it spends more of."),
            "Problems": st.column_config.NumberColumn(format="%d"),
        },
        height=min(420, 38 + 35 * len(table)),
        hide_index=True,
        key="scaling_table",
        alt="The points of the lines, the cheapest of each line first.",
    )


def _budget(line: Line, point: Point) -> str:
    """What tells a point from the others of its line."""
    names = BUDGETS.get(line.strategy)
    if names is None:
        return "" if point.n is None else f"n {point.n}"
    run = next(r for r in line.runs if r.run_id == point.run_id)
    return ", ".join(f"{name} {getattr(run.strategy, name):g}" for name in names)


def frame(lines: tuple[Line, ...]) -> pd.DataFrame:
    """The points as rows; ``x`` is the cost."""
    rows = [(line, point) for line in lines for point in line.points]
    return pd.DataFrame(
        {
            "Model": [line.model for line, _ in rows],
            "Strategy": [" ".join(filter(None, (line.strategy, line.variant))) for line, _ in rows],
            "Budget": [_budget(line, p) for line, p in rows],
            "Accuracy (%)": [100 * p.accuracy for _, p in rows],
            "From (%)": [100 * p.low for _, p in rows],
            "To (%)": [100 * p.high for _, p in rows],
            "x": [p.x for _, p in rows],
            "Problems": [p.problems for _, p in rows],
            "Comes from": ["parts of a run" if p.is_part else "a run of its own" for _, p in rows],
            "Run": [p.run_id for _, p in rows],
        }
    )
