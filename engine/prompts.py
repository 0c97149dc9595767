"""From a problem to the token ids that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.models import LoadedModel
from engine.tokenizers import ModelTokenizer
from spec.choices import PromptStyle
from spec.errors import InputError, SpecError
from spec.run_spec import TaskSpec
from tasks.problem import Problem


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
        self._tokenizer = loaded.tokenizer
        self._context = loaded.context
        inner = getattr(self._tokenizer, "inner", None)
        if self._style is PromptStyle.CHAT and not getattr(inner, "chat_template", None):
            raise SpecError(
                f"{loaded.name} has no chat template; choose the prompt style zero-shot or few-shot.",
                field="task.prompt_style",
            )

    def make(self, problem: Problem) -> Prompt:
        """The prompt of a problem; InputError where it leaves the model no room for an answer."""
        bare = self._task.prompt(problem, shots=0)
        if self._style is PromptStyle.CHAT:
            assert isinstance(self._tokenizer, ModelTokenizer)
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
