"""What a task offers the engine, and the one class behind every task that asks questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from spec.errors import SpecError
from tasks.checkers import Rule
from tasks.problem import Problem

QUESTION = "{question}"


@runtime_checkable
class Task(Protocol):
    """A task that asks questions."""

    @property
    def name(self) -> str:
        """As in the spec, path included."""
        ...

    @property
    def kind(self) -> Literal["problems", "text"]:
        """``problems``."""
        ...

    @property
    def default_max_new_tokens(self) -> int:
        """Longest answer where the spec does not say."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a generation, besides the model's own end."""
        ...

    @property
    def step(self) -> str:
        """What ends a step of a solution."""
        ...

    @property
    def skipped(self) -> list[str]:
        """What was left out of a data file with bad lines, one entry each."""
        ...

    def problems(self) -> list[Problem]:
        """The problems to ask, limit applied, ids unique."""
        ...

    def content_hash(self) -> str:
        """SHA-256 of the data as a whole, what a limit leaves out included; stored with each run."""
        ...

    def prompt(self, problem: Problem, *, shots: int | None = None) -> str:
        """The text put to the model; ``shots`` overrides how many worked examples come first."""
        ...

    def extract(self, text: str) -> str | None:
        """The final answer in a generated text, or None."""
        ...

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers count as the same; ``b`` is the reference where there is one."""
        ...


@runtime_checkable
class TextTask(Protocol):
    """A task that scores a text: perplexity."""

    @property
    def name(self) -> str:
        """As in the spec, path included."""
        ...

    @property
    def kind(self) -> Literal["problems", "text"]:
        """``text``."""
        ...

    def text(self) -> str:
        """The text to score."""
        ...

    def content_hash(self) -> str:
        """SHA-256 of the text as a whole, what a limit leaves out included."""
        ...


@dataclass(frozen=True)
class ProblemTask:
    """Questions, a prompt and a rule for answers: implements ``Task``.

    Attributes:
        rows: all problems of the split; the first ``limit`` of them are asked.
        template: prompt with ``{question}`` where the question goes.
        rule: how an answer is found and compared.
        examples: worked examples for few-shot prompts; ``shots`` of them are put first.
        lead: the beginning of an answer, put behind the prompt and read as part of what is generated.
        example_template: the prompt of each example, and of the question that follows them.
    """

    name: str
    rows: tuple[Problem, ...]
    template: str
    rule: Rule
    default_max_new_tokens: int
    examples: tuple[Problem, ...] = ()
    example_template: str = ""
    shots: int = 0
    limit: int | None = None
    stop: tuple[str, ...] = ()
    lead: str = ""
    step: str = "\n"
    skipped: list[str] = field(default_factory=list)
    kind: Literal["problems", "text"] = "problems"

    def problems(self) -> list[Problem]:
        """See Task."""
        return list(self.rows[: self.limit])

    def content_hash(self) -> str:
        """See Task."""
        return hash_problems(self.rows)

    def prompt(self, problem: Problem, *, shots: int | None = None) -> str:
        """See Task. Raises SpecError if there are fewer worked examples than asked for."""
        text = self._asked(problem, self.shots if shots is None else shots)
        gap = "\n" if self.lead and not text[-1:].isspace() else ""
        return text + gap + self.lead

    def _asked(self, problem: Problem, count: int) -> str:
        if count == 0:
            return self.template.replace(QUESTION, problem.question)
        if count > len(self.examples):
            raise SpecError(
                f"{self.name} has {len(self.examples)} worked examples, fewer than {count}; lower task.shots.",
                field="task.shots",
            )
        template = self.example_template or self.template
        gap = "" if template[-1:].isspace() else " "
        shown = [template.replace(QUESTION, e.question) + gap + str(e.solution) for e in self.examples[:count]]
        return "\n\n".join([*shown, template.replace(QUESTION, problem.question)])

    def extract(self, text: str) -> str | None:
        """See Task."""
        return self.rule.extract(self.lead + text)

    def equivalent(self, a: str, b: str) -> bool:
        """See Task."""
        return self.rule.equivalent(a, b)


def hash_problems(rows: Sequence[Problem]) -> str:
    """SHA-256 over ids, questions, answers and levels, in order."""
    data = [[p.id, p.question, p.answer, p.level] for p in rows]
    return hashlib.sha256(json.dumps(data, separators=(",", ":")).encode()).hexdigest()
