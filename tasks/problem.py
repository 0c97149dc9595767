"""One question with its reference answer: the unit every task yields and every measurement is keyed by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A question to put to a model.

    Attributes:
        id: stable within (task, split): the same problem has the same id in every run, so runs can be paired.
        question: the bare question, without instructions or prompt template.
        answer: the reference answer in the checker's form, or ``None`` where the task has none.
        level: difficulty, 1 is easiest, or ``None`` where the task has no levels.
        solution: a reference chain of thought, or ``None``; used for few-shot prompts and for training.
    """

    id: str
    question: str
    answer: str | None
    level: int | None = None
    solution: str | None = None
