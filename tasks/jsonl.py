"""``jsonl:PATH``: the user's own questions, one JSON object per line.

``question`` and ``answer`` are needed (text or number); ``level`` (a whole number) and ``id`` may be given. Without
an id a problem is named by its question, so that the same question has the same id wherever it stands in the file.
"""

from __future__ import annotations

import hashlib
from typing import Any

from spec.choices import Checker
from spec.errors import shorten
from spec.run_spec import TaskSpec
from tasks.files import BadLine, read_json_lines
from tasks.problem import Problem

TEMPLATE = "Question: {question}\nAnswer:"
INSTRUCTION = "Question: {question}\nWork it out, then give the final answer on a line of its own after ####.\nAnswer:"
DEFAULT_CHECKER = Checker.MATH
MAX_NEW_TOKENS = 512
MAX_ID = 200


def parse(row: dict[str, Any]) -> Problem:
    """A line's object as a problem, its id empty where none is given; raises BadLine."""
    return Problem(
        id=_text(row, "id")[:MAX_ID] if row.get("id") is not None else "",
        question=_text(row, "question"),
        answer=_text(row, "answer"),
        level=_level(row.get("level")),
    )


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        near = next((k for k in row if k != key and k.strip().lower() == key), None)
        raise BadLine(f"has no {key!r}" + (f" (it has {shorten(near, 30)})" if near is not None else ""))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadLine(f"{key!r} must be text or a number")
    text = str(value)
    if not text.strip():
        raise BadLine(f"{key!r} is empty")
    if any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise BadLine(f"{key!r} holds half a character (a lone surrogate)")
    if "\0" in text:
        raise BadLine(f"{key!r} holds a NUL character")
    return text


def _level(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        raise BadLine("'level' must be a whole number from 0 to 1000")
    return value


def read(path: str, *, skip_bad: bool) -> tuple[list[Problem], list[str]]:
    """The problems of a file, ids unique, and what was skipped; raises InputError."""
    seen: dict[str, int] = {}

    def parse_unique(row: dict[str, Any]) -> Problem:
        problem = parse(row)
        if problem.id:
            if problem.id in seen:
                raise BadLine("its 'id' was used by an earlier line")
            seen[problem.id] = 1
            return problem
        name = "q-" + hashlib.sha256(problem.question.encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}-{seen[name]}"
        return Problem(name, problem.question, problem.answer, problem.level)

    rows, skipped = read_json_lines(path, parse_unique, skip_bad=skip_bad)
    return [problem for _, problem in rows], skipped


def load(task: TaskSpec) -> tuple[list[Problem], list[str]]:
    """The problems of ``jsonl:PATH``, before the limit."""
    assert task.path is not None
    return read(task.path, skip_bad=task.skip_bad)
