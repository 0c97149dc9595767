"""Runs while they happen: the panel of one run, and a strip that says what the worker is at.

Each is one fragment that polls the database and stops when there is nothing left to wait for.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

import streamlit as st

from analysis.format import percent, si
from spec.choices import FINAL_STATES, JobState
from spec.errors import IsoquantError, StoreError
from spec.statistics import wilson
from store import NotFound, Store
from ui import components, data
from ui.frontier import label as short_name

POLL_S = 1.0
STALLED_S = 20.0
RECENT_S = 3.0
P = ParamSpec("P")
LIVE = tuple(s for s in JobState if s not in FINAL_STATES)
PHASES = {
    "load": "Loading the model",
    "compress": "Compressing",
    "warmup": "Warming up",
    "measure": "Measuring",
    "summarise": "Adding up",
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run has been going since somebody looked: problems done and seconds measured, at first and now."""

    done0: int
    elapsed0: float
    done: int
    elapsed: float

    @property
    def seconds_per_problem(self) -> float | None:
        """From what was watched, or from the attempt as a whole while too little was watched; None without any."""
        done, elapsed = self.done - self.done0, self.elapsed - self.elapsed0
        if done > 0 and elapsed > 2:
            return elapsed / done
        return self.elapsed / self.done if self.done and self.elapsed else None


def time_left(pace: Pace, total: int) -> str:
    """``3 min left (of about 5)``; empty while it cannot be told."""
    each = pace.seconds_per_problem
    if each is None or not total:
        return ""
    left, whole = each * (total - pace.done), each * total
    if whole < 90:
        return f"{left:.0f} s left (of about {whole:.0f})"
    size, unit = (3600, "h") if whole >= 5400 else (60, "min")
    small = left / size < 1 and size == 60
    return (
        f"{left:.0f} s left (of about {whole / size:.0f} min)"
        if small
        else (f"{left / size:.0f} {unit} left (of about {whole / size:.0f})")
    )


def guarded(body: Callable[P, None]) -> Callable[P, None]:
    """A fragment's body that says what is wrong in a sentence: drawn again by itself, it has no entry script around."""

    @functools.wraps(body)
    def drawn(*args: P.args, **more: P.kwargs) -> None:
        try:
            body(*args, **more)
        except IsoquantError as error:
            components.problem(error)

    return drawn


def panel(run_id: str) -> None:
    """One run in whatever state, kept up to date until it ends."""
    with data.store() as store:
        try:
            state = JobState(store.runs.poll(run_id)["state"])
        except NotFound as error:
            st.warning(components.plain(error), icon=":material/search_off:")
            return
        if state in FINAL_STATES:
            outcome(store, run_id)
            return
    st.fragment(_follow, run_every=POLL_S)(run_id)


@guarded
def _follow(run_id: str) -> None:
    with data.store() as store:
        row = store.runs.poll(run_id)
        state = JobState(row["state"])
        if state in FINAL_STATES:
            st.rerun()  # once, of the whole page: it then draws the outcome and no longer polls
        job = store.jobs.of_run(run_id)
        run = store.runs.get(run_id, samples=False)
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center", wrap=False):
                components.state_badge(state)
                name = short_name(run.spec.model, str(run.spec.strategy), str(run.spec.compression or "auto"))
                st.markdown(f"**{components.plain(name)}**", help=components.plain(run.spec), width="stretch")
                stopping = state is JobState.CANCELLING
                if st.button("Cancel", key=f"cancel_{run_id}", disabled=stopping) and job:
                    _cancel(store, job.job_id)
            _waiting_or_working(store, row, state, job)


def _cancel(store: Store, job_id: str) -> None:
    try:
        store.jobs.request_cancel(job_id)
    except StoreError as error:  # stays longer than the panel, which is drawn anew every second
        st.toast(components.plain(error), icon=":material/error:", duration="long")
    else:
        st.rerun()


def _waiting_or_working(store: Store, row: dict[str, Any], state: JobState, job: Any) -> None:
    if state in (JobState.QUEUED, JobState.RETRY_WAIT):
        place = store.jobs.queue_position(job.job_id) if job else None
        ahead = "next in line" if place == 1 else f"number {place} in line"
        done = f"; {row['done']} of {row['total']} problems are kept" if row["done"] else ""
        st.progress(row["done"] / row["total"] if row["total"] else 0.0, text=f"Waiting: {ahead}{done}")
        if row["message"]:
            st.caption(components.plain(row["message"]))
        components.worker_banner(store)
        return
    working(row)
    if stalled(store, row, job):
        seen = components.ago(row["updated"] or row["created"])
        st.warning(
            f"No sign of life from the worker for {seen}. What was measured is kept: the run goes on where it "
            f"stopped as soon as a worker is back. {components.START_WORKER}",
            icon=":material/heart_broken:",
        )


def working(row: dict[str, Any]) -> None:
    """Bar, partial accuracy with its interval, speed, time left."""
    phase = PHASES.get(row["phase"] or "", "Starting")
    detail = f": {components.plain(row['phase_detail'])}" if row["phase_detail"] else ""
    if not row["total"]:
        st.progress(0.0, text=phase + detail)
        return
    left = time_left(pace(row), row["total"])
    words = [f"{row['done']} of {row['total']}", left or phase + detail]
    st.progress(min(1.0, row["done"] / row["total"]), text="  ·  ".join(words))
    if row["checked"]:
        low, high = wilson(row["correct"], row["checked"])
        share = row["correct"] / row["checked"]
        st.html(interval_bar(share, low, high))
        st.caption(f"Accuracy so far {percent(share, low, high)}, n = {row['checked']}")
    st.caption(f"{si(row['tok_s'], 'tokens/s')}  ·  {phase}" if row["tok_s"] is not None else phase)


def pace(row: dict[str, Any]) -> Pace:
    """The pace since this session first saw the present attempt of a run."""
    key = f"pace_{row['run_id']}"
    done0, elapsed0 = st.session_state.get(key, (row["done"], row["elapsed_s"]))
    if row["elapsed_s"] < elapsed0:  # a new attempt counts its seconds from nought
        done0, elapsed0 = row["done"], row["elapsed_s"]
    st.session_state[key] = (done0, elapsed0)
    return Pace(done0, elapsed0, row["done"], row["elapsed_s"])


def stalled(store: Store, row: dict[str, Any], job: Any) -> bool:
    """Whether the worker that holds the run has gone quiet."""
    holder = next((w for w in store.workers.list() if job and w.name == job.worker), None)
    quiet = time.time() - (row["updated"] or row["created"]) > STALLED_S
    return quiet and (holder is None or not holder.alive)


def interval_bar(share: float, low: float, high: float) -> str:
    """A share on a scale from 0 to 100 % with its interval; numbers only, so nothing of a user's text is in it."""
    grey = "rgba(128,140,155"
    tick = f"<div style='position:absolute;left:{{}}%;top:0;width:1px;height:14px;background:{grey},.45)'></div>"
    ticks = "".join(tick.format(x) for x in (25, 50, 75))
    reach = f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%;top:4px;height:6px;border-radius:3px"
    at = f"left:calc({100 * share:.1f}% - 2px);top:0;width:4px;height:14px;border-radius:2px"
    return (
        f"<div role='img' aria-label='accuracy so far: {share:.0%}, interval {low:.0%} to {high:.0%}' "
        f"style='position:relative;height:14px;border-radius:3px;background:{grey},.16)'>{ticks}"
        f"<div style='position:absolute;{reach};background:#3D94D1'></div>"
        f"<div style='position:absolute;{at};background:#E69F00'></div></div>"
    )


def outcome(store: Store, run_id: str) -> None:
    """How a run ended: its figures, or why there are none, and where to look next."""
    run = store.runs.get(run_id, samples=False)
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", wrap=False):
            components.state_badge(run.state)
            name = short_name(run.spec.model, str(run.spec.strategy), str(run.spec.compression or "auto"))
            st.markdown(f"**{components.plain(name)}**", help=components.plain(run.spec))
        if run.result is not None:
            names = ("accuracy", "latency_p50_s", "throughput_tok_s")
            if run.result.measures.get("perplexity_token") is not None:
                names = ("perplexity_token", "perplexity_byte", "wall_s")
            st.html(components.measure_rows("", names, run.result))
        elif run.message:
            st.error(components.plain(run.message), icon=":material/error:")
        links = st.container(horizontal=True)
        if run.result is not None and run.result.measures.get("accuracy") is not None:
            links.page_link(
                components.FRONTIER_PAGE, label="See it on the frontier", icon=":material/show_chart:",
                query_params={"run": run_id},
            )  # fmt: skip
        links.page_link(
            components.RUNS_PAGE, label="Look inside", icon=":material/table_rows:", query_params={"run": run_id}
        )


def strip() -> None:
    """One line on what is being measured, while anything is; the page is drawn again when a result lands."""
    with data.store() as store:
        if not store.jobs.list(LIVE, limit=1):
            return
        version = store.data_version()
    st.fragment(_strip, run_every=2.0)(version)


@guarded
def _strip(version: int) -> None:
    with data.store() as store:
        jobs = store.jobs.list(LIVE, limit=1000)
        if not jobs or store.data_version() != version:
            st.rerun()
        busy = [j for j in jobs if j.state not in (JobState.QUEUED, JobState.RETRY_WAIT)]
        waiting = len(jobs) - len(busy)
        tail = f"{waiting} waiting" if waiting else ""
        if not busy:
            st.progress(0.0, text=f":gray[{tail}]")
            components.worker_banner(store)
            return
        job = busy[-1]
        row = store.runs.poll(job.run_id)
        left = time_left(pace(row), row["total"] or 0) or PHASES.get(row["phase"] or "", "starting").lower()
        words = [components.plain(job.spec), f"{row['done']} of {row['total']}" if row["total"] else "", left, tail]
        st.progress(
            min(1.0, row["done"] / row["total"]) if row["total"] else 0.0, text="  ·  ".join(w for w in words if w)
        )
        if stalled(store, row, job):
            components.worker_banner(store)


def recent(except_for: str | None = None, limit: int = 6) -> None:
    """The newest runs, each with its state and a link; kept up to date while one of them is live."""
    rows = _newest(except_for, limit)
    if any(JobState(r["state"]) in LIVE for r in rows):
        st.fragment(_recent, run_every=RECENT_S)(except_for, limit)
    else:
        _list(rows)


@guarded
def _recent(except_for: str | None, limit: int) -> None:
    rows = _newest(except_for, limit)
    _list(rows)
    if not any(JobState(r["state"]) in LIVE for r in rows):
        st.rerun()  # once, of the whole page, which then no longer polls for this


def _newest(except_for: str | None, limit: int) -> list[dict[str, Any]]:
    columns = ("run_id", "state", "model", "precision", "strategy_text", "accuracy", "created")
    with data.store() as store:
        rows = store.runs.table(columns=columns, limit=limit + 1)
    return [r for r in rows if r["run_id"] != except_for][:limit]


def _list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    st.markdown("**Latest runs**")
    for row in rows:
        state = JobState(row["state"])
        accuracy = f", {percent(row['accuracy'])}" if row["accuracy"] is not None else ""
        with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
            components.state_badge(state)
            st.page_link(
                components.RUNS_PAGE if state in FINAL_STATES else components.RUN_PAGE,
                label=components.plain(short_name(row["model"], row["strategy_text"], row["precision"]) + accuracy),
                query_params={"run": row["run_id"]},
                width="stretch",
            )
            st.caption(f"{components.ago(row['created'])} ago", width="content")
