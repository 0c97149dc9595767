"""Small parts that several pages show."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterable, Sequence

import streamlit as st

from analysis.format import MISSING, measure_text, percent
from spec.choices import JobState
from spec.errors import IsoquantError, StoreError
from spec.measures import MEASURES, Measure
from spec.results import RunResult
from store import Store

RUN_PAGE, FRONTIER_PAGE, RUNS_PAGE = "../../pages/run.py", "../../pages/frontier.py", "../../pages/runs.py"
SCALING_PAGE, TREE_PAGE = "../../pages/scaling.py", "../../pages/tree.py"
KERNELS_PAGE, MODELS_PAGE = "../../pages/kernels.py", "../../pages/models.py"
START_WORKER = "Start one beside the app: `python cli.py worker` (`make run` starts both)."
STATES = {
    JobState.QUEUED: ("waiting", "gray"),
    JobState.RUNNING: ("running", "blue"),
    JobState.RETRY_WAIT: ("waiting to try again", "orange"),
    JobState.CANCELLING: ("stopping", "orange"),
    JobState.SUCCEEDED: ("done", "green"),
    JobState.FAILED: ("failed", "red"),
    JobState.CANCELLED: ("cancelled", "gray"),
    JobState.QUARANTINED: ("given up after repeated crashes", "red"),
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#~$:|&@!]|^[-+]|(?<=^\d)\.)")
_ADDRESS = re.compile(r"(https?(?=:)|www(?=\.)|@)", re.IGNORECASE)
_JOINER = "\u2060"  # has no width; addresses become links even where their characters are escaped


def plain(text: object) -> str:
    """User text that stays what it is inside markdown."""
    words = _ADDRESS.sub(rf"\1{_JOINER}", " ".join(str(text).split()))
    return _MARKDOWN.sub(r"\\\1", words)


def database_error(error: StoreError) -> None:
    """The only thing that can be shown where the database cannot be opened."""
    st.title("The database cannot be opened")
    st.error(plain(error), icon=":material/database_off:")
    st.markdown(
        "Nothing was changed. Another place for the measurements can be chosen with the environment variable "
        "`ISOQUANT_HOME`; `python cli.py doctor` says more about this machine."
    )
    st.button("Try again", icon=":material/refresh:")


def problem(error: IsoquantError) -> None:
    """One sentence on what is wrong and what to do."""
    st.error(plain(error), icon=":material/error:")


def state_badge(state: JobState) -> None:
    """The state of a run as a word with a colour."""
    word, colour = STATES[state]
    st.badge(word, color=colour)  # type: ignore[arg-type]


def worker_banner(store: Store) -> bool:
    """Say so when nobody would take up a queued run; whether somebody would."""
    known = store.workers.list()
    alive = [worker for worker in known if worker.alive]
    held_up = [worker.reason for worker in alive if worker.reason]
    if len(held_up) < len(alive):
        return True
    if held_up:
        st.warning(f"Queued runs wait. {plain(held_up[0])}", icon=":material/hourglass_disabled:")
        return False
    seen = f" The last one was seen {ago(known[0].seen)} ago." if known else ""
    st.warning(f"No worker is running, so queued runs wait.{seen} {START_WORKER}", icon=":material/cloud_off:")
    return False


def ago(then: float) -> str:
    """How long ago a moment was, in the largest unit: ``3 min``."""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def headline(measures: dict[str, float | int | None], names: Sequence[str], reasons: dict[str, str]) -> None:
    """A few figures side by side, each with its formula on hover; n/a with its reason."""
    for column, name in zip(st.columns(len(names)), names, strict=True):
        measure = MEASURES[name]
        value = measures.get(name)
        with column:
            st.metric(measure.label, figure_text(measure, measures), help=explain(measure, value, reasons))


def figure_text(measure: Measure, measures: dict[str, float | int | None]) -> str:
    """A measure's value as text; accuracy with its interval."""
    value = measures.get(measure.name)
    if measure.name == "accuracy" and value is not None:
        return percent(value, measures.get("accuracy_low"), measures.get("accuracy_high"))
    return measure_text(measure, value)


def explain(measure: Measure, value: float | int | None, reasons: dict[str, str]) -> str:
    """The formula, and why there is no value where there is none."""
    if value is not None:
        return measure.formula
    return f"{MISSING}: {reasons.get(measure.name, 'not measured by this run')}. {measure.formula}"


def measure_rows(title: str, names: Sequence[str], result: RunResult) -> str:
    """Measures as HTML rows: the formula on hover, n/a with its reason."""
    rows: list[tuple[str, str, str]] = []
    for name in names:
        measure, value = MEASURES[name], result.measures.get(name)
        text = figure_text(measure, result.measures)
        if measure.rests_on_energy and value is not None and result.energy_valid is False:
            text += f" (not valid: {result.energy_reason})"
        rows.append((measure.label, text, explain(measure, value, result.reasons)))
    return rows_html(title, rows)


def rows_html(title: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """A two-column table with a hover text for each row; every text is escaped."""
    body = "".join(
        f"<tr title='{html.escape(hover)}'><td style='padding:2px 12px 2px 0;opacity:.78'>{html.escape(name)}</td>"
        f"<td style='padding:2px 0;font-variant-numeric:tabular-nums'>{html.escape(text)}</td></tr>"
        for name, text, hover in rows
    )
    caption = f"<caption style='text-align:left;font-weight:600;padding-bottom:4px'>{html.escape(title)}</caption>"
    style = "width:100%;border-collapse:collapse;margin-bottom:12px"
    return f"<table style='{style}'>{caption if title else ''}{body}</table>"
