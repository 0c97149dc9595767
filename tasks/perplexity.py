"""``perplexity:PATH``: how well a model predicts a text file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from spec.errors import SpecError
from spec.run_spec import TaskSpec
from tasks.files import read_text

MAX_TEXT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Perplexity:
    """A text to score; implements ``TextTask``. ``content`` is the whole file, its first ``limit`` lines are scored."""

    name: str
    content: str
    limit: int | None = None
    kind: Literal["problems", "text"] = "text"

    def text(self) -> str:
        """See TextTask."""
        return self.content if self.limit is None else "".join(self._lines[: self.limit])

    @property
    def skipped(self) -> list[str]:
        """What the limit cuts off, for the reader of the result; one entry at most."""
        total = len(self._lines)
        if self.limit is None or self.limit >= total:
            return []
        return [f"all but the first {self.limit:,} of the text's {total:,} lines, as the limit of the task asks"]

    @property
    def _lines(self) -> list[str]:
        return self.content.splitlines(keepends=True)

    def content_hash(self) -> str:
        """See TextTask."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def check(task: TaskSpec) -> None:
    """Raise SpecError for what would be ignored, since nothing is asked: prompts, answers, lines of questions."""
    if task.prompt_template is not None or task.checker is not None:
        raise SpecError("Perplexity asks no questions; leave out the prompt template and the checker.", field="task")
    asked = TaskSpec(task.name)
    for name in ("prompt_style", "shots", "max_new_tokens", "skip_bad"):
        if getattr(task, name) != getattr(asked, name):
            raise SpecError(f"Perplexity asks no questions, so {name} has no meaning; leave it out.", f"task.{name}")


def load(task: TaskSpec) -> Perplexity:
    """The text of ``perplexity:PATH``. A limit counts lines. Raises InputError, SpecError."""
    check(task)
    assert task.path is not None
    return Perplexity(task.name, read_text(task.path, MAX_TEXT_BYTES), task.limit)
