"""The task in the form of a run: which questions, how many, how they are put and how answers are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from spec.choices import PromptStyle
from spec.errors import SpecError
from spec.parameters import parameters
from spec.run_spec import Runtime, TaskSpec
from tasks.registry import TASKS
from ui import offers
from ui.fields import KEEP, field, select
from ui.names import absolute_path

DEFAULT, DEFAULT_LIMIT = "lab-words", 100
OWN_RULE = "task's own"
TASK = {p.name: p for p in parameters(TaskSpec)}
BATCH_SIZE = next(p for p in parameters(Runtime) if p.name == "batch_size")
Values = dict[str, Any]


def show() -> Values:
    """The task, how much of it, and how many sequences at once: what is asked first."""
    columns = st.columns([2, 1, 1])
    with columns[0]:
        name = select("Task", offers.tasks(), "run_task", DEFAULT, "The questions that are put to the model.")
    with columns[1]:
        limit = _limit(name)
    with columns[2]:
        batch_size = field(BATCH_SIZE, "run_batch_size", label="Batch size")
    info = TASKS[name]
    st.caption(info.summary)
    path = ""
    if info.takes_path:
        empty = "" if info.needs_path else " Empty takes the data set from the hub."
        path = st.text_input(
            "File",
            key="run_path",
            persist_state=KEEP,
            placeholder="/data/questions.jsonl",
            help=f"Path of the file on this machine.{empty}",
        ).strip()
    return {"name": name, "path": path, "limit": limit, "batch_size": batch_size}


def _limit(task: str) -> int | None:
    """How many problems; a text is scored whole unless its lines are limited, so the two share no number."""
    found: int | None
    if asks(task):
        found = field(TASK["limit"], "run_limit", label="Problems", default=DEFAULT_LIMIT, placeholder="all")
    else:
        lines = replace(TASK["limit"], help="How many lines of the text, from its beginning; empty scores all of it.")
        found = field(lines, "run_lines", label="Lines", placeholder="all")
    return found


def asks(task: str) -> bool:
    """Whether a task asks questions; the other kind scores a text, and generates nothing."""
    return TASKS[task].default_max_new_tokens is not None


def show_more(name: str) -> Values:
    """How questions are put and answers compared; nothing for a text."""
    info = TASKS[name]
    if not asks(name):
        return {}
    values: Values = {}
    a, b, c = st.columns(3)
    with a:
        styles = [s.value for s in PromptStyle if s is not PromptStyle.FEW_SHOT or info.shots]
        values["prompt_style"] = select(
            "Prompt",
            styles,
            "run_prompt_style",
            PromptStyle.ZERO_SHOT.value,
            "zero-shot: the task's own prompt; direct: straight to the answer, no steps; few-shot: worked examples "
            "first; chat: the model's chat template.",
        )
    with b:
        values["split"] = select("Split", list(info.splits), "run_split", "test", TASK["split"].help)
    with c:
        values["max_new_tokens"] = field(
            TASK["max_new_tokens"],
            "run_max_new_tokens",
            label="Longest answer",
            placeholder=f"the task's {info.default_max_new_tokens} tokens",
        )
    a, b = st.columns(2)
    with a:
        rules = [OWN_RULE, *(TASK["checker"].choices or [])]
        rule = select("Answers are compared", rules, "run_checker", OWN_RULE, TASK["checker"].help)
        values["checker"] = None if rule == OWN_RULE else rule
    with b:
        if values["prompt_style"] == PromptStyle.FEW_SHOT:
            values["shots"] = field(TASK["shots"], "run_shots", label="Worked examples")
        if info.takes_path:
            values["skip_bad"] = st.toggle(
                "Skip bad lines",
                key="run_skip_bad",
                persist_state=KEEP,
                help="Leave out lines that cannot be read, and name them in the result, instead of stopping.",
            )
    template = st.text_area(
        "Own prompt",
        key="run_prompt_template",
        persist_state=KEEP,
        height=68,
        placeholder="Question: {question}\nAnswer:",
        help=TASK["prompt_template"].help,
    )
    return values | {"prompt_template": template or None}


def spec(task: Values) -> TaskSpec:
    """The specification of what was chosen. Raises SpecError for a task without its file."""
    path = task.pop("path")
    kind = task.pop("name")
    if TASKS[kind].needs_path and not path:
        raise SpecError(f"The task {kind} reads a file: write its path above, e.g. /data/questions.jsonl.", "task.name")
    return TaskSpec(name=f"{kind}:{absolute_path(path)}" if path else kind, **task)
