"""From a problem to the token ids that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.models import LoadedModel
from spec.choices import PromptStyle
from spec.errors import InputError, SpecError
from spec.run_spec import TaskSpec
from tasks.problem import Problem

MAX_SQUEEZED = 0.01  # of all problems


@dataclass(frozen=True, slots=True)
class Prompt:
    """``ids`` are read by the model, ``text`` is what they stand for.

    ``bare`` is the task's prompt without examples or chat form, for reward models.
    """

    ids: tuple[int, ...]
    bare: str
    text: str = ""


class PromptMaker:
    """Makes the prompts of one run. Raises SpecError at once where the model cannot be asked in the chosen style."""

    def __init__(self, task: Any, spec: TaskSpec, loaded: LoadedModel) -> None:
        self._task = task
        self._style = spec.prompt_style
        self._shots = spec.shots if spec.prompt_style is PromptStyle.FEW_SHOT else 0
        self._name = loaded.name
        self._tokenizer = loaded.tokenizer
        self._context = loaded.context
        if self._style is PromptStyle.CHAT and not self._tokenizer.has_chat:
            raise SpecError(
                f"{loaded.name} has no chat template; choose the prompt style zero-shot or few-shot.",
                field="task.prompt_style",
            )

    def check_room(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """Refuse worked examples that squeeze out more than ``MAX_SQUEEZED`` of the problems; raises SpecError.

        A problem is squeezed out when the examples leave its answer less than half of the room that it has without
        them. Those are the long ones, the hard ones, and an accuracy without them would be too good. The examples take
        as many tokens before each question as before the first, so only the questions are counted one by one.
        """
        if not self._shots or self._context is None or not problems:
            return
        examples = self._tokens(problems[0], self._shots) - self._tokens(problems[0], 0)
        squeezed = 0
        for problem in problems:
            free = self._context - self._tokens(problem, 0)
            room = min(max_new_tokens, free)
            squeezed += room > 0 and 2 * (free - examples) < room
        if squeezed > MAX_SQUEEZED * len(problems):
            shots = "1 worked example" if self._shots == 1 else f"{self._shots} worked examples"
            raise SpecError(
                f"With {shots} {squeezed:,} of {len(problems):,} prompts leave {self._name}, which reads at most "
                f"{self._context:,} tokens, less than half of the room to answer that it has without; lower task.shots "
                "or choose a model with a longer context.",
                field="task.shots",
            )

    def _tokens(self, problem: Problem, shots: int) -> int:
        return len(self._tokenizer.encode(self._task.prompt(problem, shots=shots)))

    def make(self, problem: Problem) -> Prompt:
        """The prompt of a problem; InputError where it leaves the model no room for an answer."""
        bare = self._task.prompt(problem, shots=0)
        if self._style is PromptStyle.CHAT:
            ids = self._tokenizer.encode_chat(bare)
            text = self._tokenizer.chat_text(bare)
        else:
            text = self._task.prompt(problem, shots=self._shots) if self._shots else bare
            ids = self._tokenizer.encode(text)
        if not ids:
            raise InputError("The prompt is empty; check the question and the prompt template.")
        if self._context is not None and len(ids) >= self._context:
            raise InputError(
                f"The prompt has {len(ids):,} tokens and the model reads at most {self._context:,}; ask with fewer "
                "examples or choose a model with a longer context."
            )
        return Prompt(tuple(ids), bare, text)
