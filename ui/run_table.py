"""All runs as a table: search, filter by state, click one to open it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from spec.choices import JobState
from store import Store
from ui import components, times

LIMIT = 500
COLUMNS = (
    "run_id",
    "state",
    "model",
    "strategy_text",
    "precision",
    "task",
    "accuracy",
    "latency_p50_s",
    "n_problems",
    "created",
    "message",
)
DELETED = "deleted"
FILTERS = {
    "done": [JobState.SUCCEEDED],
    "live": [JobState.QUEUED, JobState.RUNNING, JobState.RETRY_WAIT, JobState.CANCELLING],
    "failed": [JobState.FAILED, JobState.QUARANTINED],
    "cancelled": [JobState.CANCELLED],
}


def show(store: Store) -> str | None:
    """Draw the table; the id of a run that was clicked."""
    words, states = st.columns([2, 3], vertical_alignment="bottom")
    with words:
        search = st.text_input(
            "Search",
            key="runs_search",
            bind="query-params",
            placeholder="model, strategy, task, message ...",
            help="Words that must all occur in the run.",
        )
    with states:
        chosen = st.pills(
            "State", [*FILTERS, DELETED], key="runs_state", selection_mode="single", label_visibility="collapsed"
        )
    rows = find(store, search or "", chosen)
    if not rows:
        empty(store, bool(search or chosen))
        return None
    st.caption(f"{how_many(store, rows, search or '', chosen)} Click a row to open it.")
    rows = rows[:LIMIT]
    picked = st.dataframe(
        frame(rows),
        column_config={
            "Accuracy (%)": st.column_config.NumberColumn(format="%.1f"),
            "Median latency (s)": st.column_config.NumberColumn(format="%.3g"),
            "Made": st.column_config.DatetimeColumn(format=times.COLUMN_FORMAT, help="Your local time."),
        },
        height=min(560, 38 + 35 * len(rows)),
        hide_index=True,
        key="runs_table",
        on_select="rerun",
        selection_mode="single-row",
        alt="All runs, newest first.",
    )
    selected = picked.selection.rows
    return str(rows[selected[0]]["run_id"]) if selected and selected[0] < len(rows) else None


def find(store: Store, search: str, chosen: str | None) -> list[dict[str, Any]]:
    """The newest runs that match, one more than are listed where there are more."""
    filters = {"state": FILTERS[chosen]} if chosen in FILTERS else None
    return store.runs.table(filters, COLUMNS, limit=LIMIT + 1, search=search[:300], deleted=chosen == DELETED)


def how_many(store: Store, rows: list[dict[str, Any]], search: str, chosen: str | None) -> str:
    """How many runs match; of more than are listed only where the database counts them at once."""
    if len(rows) <= LIMIT:
        return "1 run." if len(rows) == 1 else f"{len(rows):,} runs."
    if search.strip() or chosen == DELETED:
        return f"The newest {LIMIT} runs that match."
    total = store.runs.count({"state": FILTERS[chosen]} if chosen in FILTERS else None)
    return f"The newest {LIMIT} of {total:,} runs."


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as they are drawn."""
    table = pd.DataFrame(
        {
            "State": [components.STATES[JobState(r["state"])][0] for r in rows],
            "Model": [r["model"] for r in rows],
            "Strategy": [r["strategy_text"] for r in rows],
            "Precision": [r["precision"] for r in rows],
            "Task": [r["task"] for r in rows],
            "Accuracy (%)": [None if r["accuracy"] is None else 100 * r["accuracy"] for r in rows],
            "Median latency (s)": [r["latency_p50_s"] for r in rows],
            "n": [r["n_problems"] for r in rows],
            "Made": [times.moment(r["created"]) for r in rows],
            "Run": [r["run_id"] for r in rows],
            "Message": [r["message"] or "" for r in rows],
        }
    ).astype({"Accuracy (%)": "float64", "Median latency (s)": "float64", "n": "Int64"})
    return table if any(table["Message"]) else table.drop(columns="Message")


def empty(store: Store, filtered: bool) -> None:
    """Nothing to list: because nothing matches, or because nothing was run."""
    if filtered or store.runs.count():
        st.info("No run matches. Fewer words, or another state, find more.", icon=":material/search_off:")
        return
    st.info(
        "Every run will be listed here, whatever became of it, with its configuration, all its measures and every "
        "answer it gave.",
        icon=":material/table_rows:",
    )
    st.page_link(components.RUN_PAGE, label="Start a run", icon=":material/play_arrow:")
