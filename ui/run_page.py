"""One run's page: what was run, what came out, problem by problem."""

from __future__ import annotations

import time

import streamlit as st

from analysis.explain import differences
from analysis.format import count
from spec.choices import JobState
from spec.errors import IsoquantError
from spec.measures import MEASURES, Group
from spec.results import RunResult
from store import NotFound, Run, Store
from ui import charts, components, form, live, problems, times
from ui.command import command
from ui.plot import plot

HEADLINE = ("accuracy", "latency_p50_s", "throughput_tok_s", "flops_per_problem")
HEADLINE_TEXT = ("perplexity_token", "perplexity_byte", "wall_s", "flops_total")
HIDDEN = ("accuracy_low", "accuracy_high")  # shown as the interval of the accuracy
CHART_HEIGHT = 260
UNDO, UNDO_S = "undo_delete", 120.0


def show(store: Store, run_id: str) -> None:
    """The page of a run in whatever state."""
    try:
        run = store.runs.get(run_id)
    except NotFound as error:
        st.warning(components.plain(error), icon=":material/search_off:")
        return
    _head(run)
    _actions(store, run)
    if not run.state.is_final:
        live.panel(run_id)
    elif run.result is None:
        _ended_early(store, run)
    if run.result is not None:
        _result(run, run.result)
    problems.show(store, run)
    _configuration(run)


def _head(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        strategy = components.plain(run.spec.strategy)
        made = f" + {components.plain(run.spec.compression)}" if run.spec.compression else ""
        st.title(f"{components.plain(run.spec.model)}{made} · {strategy}", anchor=False, width="stretch")
        st.page_link(components.RUNS_PAGE, label="All runs", icon=":material/table_rows:")
    where = run.result.environment.get("hardware_name", "") if run.result else ""
    parts = [f"run {run.run_id}", run.spec.task.name, times.text(run.created), where, f"from the {run.source}"]
    words = st.container(horizontal=True, vertical_alignment="center")
    with words:
        components.state_badge(run.state)
        if run.deleted_at is not None:
            st.badge("deleted", color="red")
        st.caption(components.plain("  ·  ".join(str(p) for p in parts if p)))


def _actions(store: Store, run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if run.deleted_at is not None:
            if st.button("Restore", icon=":material/restore_from_trash:", type="primary"):
                store.runs.restore(run.run_id)
                st.rerun()
            return
        if run.state.is_final and run.state is not JobState.SUCCEEDED:
            kept = store.answers.count(run.run_id)
            label = f"Go on after problem {kept}" if kept else "Try again"
            if st.button(label, icon=":material/resume:", type="primary"):
                store.jobs.enqueue(run.spec, run_id=run.run_id)
                st.rerun()
        if run.result is not None and run.result.measures.get("accuracy") is not None:
            st.page_link(
                components.FRONTIER_PAGE,
                label="On the frontier",
                icon=":material/show_chart:",
                query_params={"run": run.run_id},
            )
        if st.button("Run again ...", icon=":material/replay:", help="Opens the form with this configuration."):
            form.fill(run.spec)
            st.switch_page(components.RUN_PAGE)
        if run.state.is_final and st.button("Delete", icon=":material/delete:", key="delete"):
            store.runs.delete(run.run_id)
            st.session_state[UNDO] = (run.run_id, time.monotonic())
            st.switch_page(components.RUNS_PAGE)


def undo_banner(store: Store) -> None:
    """For a while after a deletion: the way back."""
    run_id, at = st.session_state.get(UNDO, ("", 0.0))
    if not run_id:
        return
    if time.monotonic() - at > UNDO_S or not _is_deleted(store, run_id):
        del st.session_state[UNDO]
        return
    words, button = st.columns([5, 1], vertical_alignment="center")
    words.success(f"Run {run_id} is deleted.", icon=":material/delete:")
    if button.button("Undo", icon=":material/undo:", width="stretch", key="undo"):
        store.runs.restore(run_id)
        st.rerun()


def _is_deleted(store: Store, run_id: str) -> bool:
    try:
        return store.runs.poll(run_id)["deleted_at"] is not None
    except NotFound:  # removed for good
        return False


def _ended_early(store: Store, run: Run) -> None:
    job = store.jobs.of_run(run.run_id)
    if run.message:
        show_message = st.info if run.state is JobState.CANCELLED else st.error
        show_message(components.plain(run.message), icon=":material/info:")
    if run.progress and run.progress.done:
        st.caption(
            f"{run.progress.done} of {run.progress.total} problems were answered before that, and are kept below."
        )
    if job and job.detail:
        with st.expander("Details", icon=":material/terminal:"):
            st.code(job.detail, language=None, wrap_lines=True)


def _result(run: Run, result: RunResult) -> None:
    is_text = result.measures.get("perplexity_token") is not None
    components.headline(result.measures, HEADLINE_TEXT if is_text else HEADLINE, result.reasons)
    for note in result.notes:
        st.caption(f":material/info: {components.plain(note)}")
    drawn = [d for d in (_levels(result), _exits(result), _latency(result)) if d is not None]
    for column, (title, figure, alt) in zip(st.columns(max(2, len(drawn))), drawn, strict=False):
        with column:
            st.markdown(f"**{title}**")
            plot(figure, key=f"chart_{title}", alt=alt, height=CHART_HEIGHT, modebar=False)
    with st.expander("All measures", icon=":material/straighten:"):
        groups = [g for g in Group if any(m.group is g for m in MEASURES.values())]
        for column, some in zip(st.columns(2), (groups[:2], groups[2:]), strict=True):
            with column:
                for group in some:
                    names = [m.name for m in MEASURES.values() if m.group is group and m.name not in HIDDEN]
                    st.html(components.measure_rows(group.value.capitalize(), names, result))


def _levels(result: RunResult) -> tuple[str, str, str] | None:
    levels = {k: v for k, v in result.by_level.items() if v["n"]}
    if len(levels) < 2:
        return None
    first, last = min(levels), max(levels)
    shares = [levels[k]["correct"] / levels[k]["n"] for k in (first, last)]
    alt = f"Accuracy by level: {shares[0]:.0%} at level {first}, {shares[1]:.0%} at level {last}."
    return "Accuracy by level", charts.by_level(levels), alt


def _exits(result: RunResult) -> tuple[str, str, str] | None:
    layers = result.samples.get("exit_layers", [])
    if not layers:
        return None
    alt = f"Where tokens left the model: at layer {sum(layers) / len(layers):.1f} on average, {max(layers):g} at most."
    return "Layers per token", charts.by_layer(layers), alt


def _latency(result: RunResult) -> tuple[str, str, str] | None:
    series = result.samples.get("latency_s", [])
    if len(series) < 2:
        return None
    alt = f"Distribution of the latency of {count(len(series))} problems."
    return "Latency per problem", charts.distribution(series, "Latency"), alt


def _configuration(run: Run) -> None:
    with st.expander("Configuration", icon=":material/settings:"):
        st.code(command(run.spec), language="bash", wrap_lines=True)
        asked, ran = st.columns(2)
        with asked:
            fields = [(d.field, d.ours, "") for d in differences(run.spec.to_dict(), {})]
            st.html(components.rows_html("Asked for", fields))
        if run.result is not None:
            with ran:
                flat = [(d.field, d.ours, "") for d in differences(run.result.environment, {})]
                st.html(components.rows_html("What ran, and where", flat))


def try_show(store: Store, run_id: str) -> None:
    """``show``, with a sentence in place of what cannot be read."""
    try:
        show(store, run_id)
    except IsoquantError as error:
        components.problem(error)
