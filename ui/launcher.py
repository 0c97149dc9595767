"""Beside the form: what the run will take, the command that does the same, and the button that starts it."""

from __future__ import annotations

import secrets
import time

import streamlit as st

from analysis.format import percent
from engine.measure.hardware import fingerprint_of
from engine.predict import Fit
from spec.errors import IsoquantError
from spec.run_spec import RunSpec
from store import Store
from tasks.registry import load_task
from ui import components, estimate
from ui.command import command

DOUBLE_CLICK_S = 2.0
NONCE = "run_nonce"


def show(store: Store, spec: RunSpec | None) -> None:
    """Draw it; a click queues the run and puts its id into the URL."""
    expected = estimate.estimate(store, spec) if spec else None
    same = store.runs.find_same(spec.key(), fingerprint_of(spec)["hardware_id"]) if spec else []
    if same and same[0]["run_id"] != st.query_params.get("run"):  # that one is on the page already
        _measured_before(same[0])
    label = "Run again" if same else "Run"
    nonce = st.session_state.setdefault(NONCE, secrets.token_hex(8))
    blocked = expected is None or expected.fit is Fit.NO
    clicked = st.button(  # after each run another button, so that a click that comes late finds none
        label, type="primary", icon=":material/play_arrow:", width="stretch", disabled=blocked, key=f"run_start_{nonce}"
    )
    if spec is None or expected is None:
        st.caption("The form says what to correct.")
        return
    st.markdown(estimate.sentence(expected))
    if advice := estimate.warning(expected):
        (st.error if blocked else st.warning)(advice, icon=":material/memory:")
    with st.expander("The same on the command line", icon=":material/terminal:"):
        st.code(command(spec), language="bash", wrap_lines=True)
    if clicked:
        try:
            run_id = start(store, spec)
        except IsoquantError as error:
            components.problem(error)
            return
        st.query_params["run"] = run_id
        st.rerun()


def start(store: Store, spec: RunSpec) -> str:
    """Check what can be checked at once, queue the run, return its id; a double click queues it once."""
    if spec.task.path:
        load_task(spec.task)  # a missing or malformed file is said here, not a minute later by the worker
    key, at, run_id = st.session_state.get("run_last", ("", 0.0, ""))
    if key == spec.key() and time.monotonic() - at < DOUBLE_CLICK_S:
        return str(run_id)
    job = store.jobs.enqueue(spec, idempotency_key=f"form-{st.session_state[NONCE]}-{spec.key()}")
    st.session_state[NONCE] = secrets.token_hex(8)
    st.session_state["run_last"] = (spec.key(), time.monotonic(), job.run_id)
    return job.run_id


def _measured_before(row: dict[str, object]) -> None:
    share = row["accuracy"]
    what = f": accuracy {percent(float(str(share)))}" if share is not None else ""
    words, link = st.columns([3, 1], vertical_alignment="center")
    words.info(f"Measured here {components.ago(float(str(row['created'])))} ago{what}.", icon=":material/history:")
    with link:
        st.page_link(
            components.RUNS_PAGE,
            label="Show it",
            icon=":material/table_rows:",
            query_params={"run": str(row["run_id"])},
        )
