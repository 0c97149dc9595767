"""Every problem of a run: its answer, the votes, and each candidate's text."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analysis.format import duration
from spec.choices import Vote
from spec.results import Answer
from spec.run_spec import TaskSpec
from spec.strategy import Strategy
from store import Run, Store
from ui import components
from ui.votes import rule_of, votes

PAGE = 25
MAX_CANDIDATES = 64
ONLY = {"correct": "correct", "wrong": "wrong", "failed": "failed"}
WEIGHTS = {Vote.WEIGHTED: "Votes by score", Vote.BEST: "Best score"}  # where it is no count that decides
WEIGHT_HELP = {Vote.WEIGHTED: "Sum of the scores of each answer", Vote.BEST: "Best score of each answer"}
MARKS = {True: "✓", False: "✗", None: "·"}


def show(store: Store, run: Run) -> None:
    """The list of problems, page by page, and the one that is picked."""
    strategy, task = run.spec.strategy, run.spec.task
    rule = rule_of(strategy)
    if not store.answers.count(run.run_id):
        return
    st.markdown("**Problems**")
    choice, pages = st.columns([1, 1], vertical_alignment="center")
    with choice:
        only = st.pills("Show", list(ONLY), key=f"only_{run.run_id}", label_visibility="collapsed")
    found = store.answers.count(run.run_id, only)
    if not found:
        st.caption(f"No problem of this run is {only}.")
        return
    with pages:
        last = -(-found // PAGE)
        page = st.pagination(last, key=f"page_{run.run_id}_{only}") if last > 1 else 1
    answers = store.answers.page(run.run_id, (page - 1) * PAGE, PAGE, only, trees=False)
    picked = st.dataframe(
        frame(answers, strategy, task),
        column_config={
            "Question": st.column_config.TextColumn(width="large"),
            WEIGHTS.get(rule, "Votes"): st.column_config.BarChartColumn(
                help=f"{WEIGHT_HELP.get(rule, 'How often each answer was given')}, the strongest first.", y_min=0
            ),
        },
        height=min(320, 38 + 35 * len(answers)),
        hide_index=True,
        key=f"problems_{run.run_id}_{only}_{page}",
        on_select="rerun",
        selection_mode="single-row",
        alt=f"Problems {1 + (page - 1) * PAGE} to {(page - 1) * PAGE + len(answers)} of {found}.",
    )
    rows = picked.selection.rows
    if rows and rows[0] < len(answers):
        one(run.run_id, answers[rows[0]], strategy, task)
    else:
        st.caption(f"{found:,} problems. Click a row to read its candidates.")


def frame(answers: list[Answer], strategy: Strategy, task: TaskSpec) -> pd.DataFrame:
    """The rows of the list."""
    found = [[v.weight for v in votes(a, strategy, task) if v.weight is not None] for a in answers]
    return pd.DataFrame(
        {
            "": [MARKS[a.correct] if a.error is None else "!" for a in answers],
            "Level": pd.array([a.level for a in answers], dtype="Int64"),
            "Question": [a.question for a in answers],
            "Reference": [a.reference for a in answers],
            "Answer": [a.answer if a.error is None else a.error for a in answers],
            WEIGHTS.get(rule_of(strategy), "Votes"): [weights[:12] for weights in found],
            "Tokens": [a.tokens_generated for a in answers],
            "Latency": [duration(a.latency_s) for a in answers],
            "Problem": [a.problem_id for a in answers],
        }
    )


def one(run_id: str, answer: Answer, strategy: Strategy, task: TaskSpec) -> None:
    """One problem in full."""
    with st.container(border=True):
        st.text(answer.question)
        given = answer.answer if answer.answer is not None else "no answer"
        words = {True: "correct", False: "wrong", None: "not checked"}[answer.correct]
        if answer.error:
            st.error(components.plain(answer.error), icon=":material/error:")
        st.markdown(
            f"Answer **{components.plain(given)}**, {words}; the reference is "
            f"**{components.plain(answer.reference or 'none')}**."
        )
        if answer.candidates:
            st.page_link(
                components.TREE_PAGE,
                label="As a tree",
                icon=":material/account_tree:",
                query_params={"run": run_id, "problem": answer.problem_id, "repeat": str(answer.repeat)},
            )
        if len(answer.candidates) > 1:
            _votes(answer, strategy, task)
        for number, candidate in enumerate(answer.candidates[:MAX_CANDIDATES]):
            chosen = ", chosen" if number == answer.chosen else ""
            writer = f", by {components.plain(candidate.model)}" if candidate.model else ""
            score = f", score {candidate.score:.3f}" if candidate.score is not None else ""
            what = components.plain(candidate.answer if candidate.answer is not None else "no answer")
            cut = ", cut off" if candidate.finish == "length" else ""
            title = f"{MARKS[candidate.correct]} {what}{chosen}{writer}{score}, {candidate.tokens} tokens{cut}"
            with st.expander(title, expanded=len(answer.candidates) == 1):
                st.code(candidate.text, language=None, wrap_lines=True)
                if candidate.step_scores:
                    st.caption("Score after each step: " + ", ".join(f"{s:.2f}" for s in candidate.step_scores))
        if len(answer.candidates) > MAX_CANDIDATES:
            st.caption(f"{len(answer.candidates) - MAX_CANDIDATES} more candidates are kept and not listed.")


def _votes(answer: Answer, strategy: Strategy, task: TaskSpec) -> None:
    found = votes(answer, strategy, task)
    silent = len(answer.candidates) - sum(v.given for v in found)
    table: dict[str, Any] = {
        "Answer": [v.answer for v in found] + (["none given"] if silent else []),
        "": [MARKS[v.correct] for v in found] + ([""] if silent else []),
        "Given": [v.given for v in found] + ([silent] if silent else []),
    }
    rule = rule_of(strategy)
    if rule in WEIGHTS:
        table[WEIGHTS[rule]] = [v.weight for v in found] + ([None] if silent else [])
    bar = st.column_config.ProgressColumn(min_value=0, max_value=len(answer.candidates), format="%d")
    st.dataframe(
        pd.DataFrame(table),
        column_config={
            "Given": bar,
            "Answer": st.column_config.TextColumn(width="medium"),
            WEIGHTS.get(rule, "Votes"): st.column_config.NumberColumn(format="%.3f"),
        },
        hide_index=True,
        height=min(215, 38 + 35 * len(table["Given"])),
        alt="How often each answer was given, and what it weighs.",
    )
