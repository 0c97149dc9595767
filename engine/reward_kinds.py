"""How each kind of reward model is asked and read.

All kinds read a solution with a causal trunk; they differ in how the text is laid out and in what is made of the
trunk's last hidden states at which tokens:

- *hazard*: our own step reward model (``engine.hazard``), read at every token of a solution; a step's score is the
  probability to have survived until the newline that ends it.
- *tag*: a word behind each step, at which the model says one of two others, good or bad (Math-Shepherd, Wang et al.
  2023, arXiv 2312.08935).
- *separator*: a token behind each step, at which a head of two classes says whether the step was right
  (Qwen2.5-Math-PRM, Zhang et al. 2025, arXiv 2501.07301).
- *whole*: a classification head with one output on the last token, one score for the whole solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from engine.hazard import HazardHead, readings
from engine.tokenizers import ModelTokenizer

STEP_END = "\n"


@dataclass(frozen=True, slots=True)
class Laid:
    """A prompt with its solution as a reward model reads it.

    Attributes:
        ids: all tokens; ``start``: where the solution begins.
        places: of each step's score, ascending; what stands behind the last one need not be read.
        cut: the text is longer than the model's context, and its end is missing.
    """

    ids: list[int]
    start: int
    places: list[int]
    cut: bool

    @property
    def end(self) -> int:
        """How many tokens must be read."""
        return self.places[-1] + 1 if self.places else 0


class Kind(Protocol):
    """One kind of reward model.

    ``every_token``: it reads all tokens of a solution, and each score builds on the one before; else it reads the
    places alone, each for itself.
    """

    every_token: bool
    parameters: int

    def lay_out(self, prompt: str, text: str) -> Laid:
        """Token ids and places of a prompt and a solution, steps ended by ``STEP_END``."""
        ...

    def values(self, before: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What is read of some tokens [n], float32 [n]: log-probability to survive it, or the score itself.

        ``at`` [n, hidden] are the states at the tokens, ``before`` one token earlier (only where ``every_token``).
        """
        ...


def _cut(ids: list[int], context: int | None) -> tuple[list[int], bool]:
    short = ids[:context]
    return short, len(short) < len(ids)


@dataclass(frozen=True)
class Hazard:
    """See the module's docstring. ``output``: the trunk's output head."""

    tokenizer: ModelTokenizer
    context: int | None
    head: HazardHead
    output: Any
    every_token = True

    @property
    def parameters(self) -> int:
        """Numbers beside the trunk."""
        return self.head.parameters

    def lay_out(self, prompt: str, text: str) -> Laid:
        """See Kind. One newline is put after the last line, so every solution has at least one step."""
        # A model without a start token has nothing to expect the first token from.
        start = max(1, len(self.tokenizer.encode(prompt)))
        ids, cut = _cut(self.tokenizer.encode(prompt + text.removesuffix(STEP_END) + STEP_END), self.context)
        newline = self.tokenizer.last_id(STEP_END)
        return Laid(ids, start, [i for i in range(start, len(ids)) if ids[i] == newline], cut)

    def values(self, before: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """See Kind."""
        kind = self.output.weight.dtype  # our forward pass gives its states in fp32 whatever the weights are
        return self.head.log_survival(readings(before.to(kind), at.to(kind), tokens, self.output))


@dataclass(frozen=True)
class Tag:
    """See the module's docstring. ``word`` stands behind each step; ``good`` and ``bad`` are what the model may say."""

    tokenizer: ModelTokenizer
    context: int | None
    output: Any
    word: str
    good: str
    bad: str
    every_token = False
    parameters = 0

    def lay_out(self, prompt: str, text: str) -> Laid:
        """See Kind. The prompt and the steps stand on lines of their own, each step with the word behind it."""
        tag = self.tokenizer.last_id(self.word)
        answer = "".join(f"{step} {self.word}\n" for step in steps(text))
        ids, cut = _cut(self.tokenizer.encode(prompt + answer), self.context)
        start = min(len(self.tokenizer.encode(prompt)), len(ids))
        return Laid(ids, start, [i for i in range(start, len(ids)) if ids[i] == tag], cut)

    def values(self, before: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """See Kind."""
        two = [self.tokenizer.last_id(self.good), self.tokenizer.last_id(self.bad)]
        said: torch.Tensor = self.output(at.to(self.output.weight.dtype))
        return said[:, two].float().softmax(-1)[:, 0]


@dataclass(frozen=True)
class Separator:
    """See the module's docstring. ``head``: states [n, hidden] -> [n, 2], class 1 is right."""

    tokenizer: ModelTokenizer
    context: int | None
    head: Any
    token: str
    every_token = False

    @property
    def parameters(self) -> int:
        """Numbers beside the trunk."""
        return sum(p.numel() for p in self.head.parameters())

    def lay_out(self, prompt: str, text: str) -> Laid:
        """See Kind. With a chat template the prompt is the user's message and the steps the assistant's."""
        mark = self.tokenizer.last_id(self.token)
        answer = "".join(step + self.token for step in steps(text))
        inner = self.tokenizer.inner
        if getattr(inner, "chat_template", None):
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            whole = self.tokenizer.encode_plain(str(inner.apply_chat_template(turns, tokenize=False)))
        else:
            whole = self.tokenizer.encode(prompt + answer)
        ids, cut = _cut(whole, self.context)
        places = [i for i, token in enumerate(ids) if token == mark]
        return Laid(ids, places[0] if places else len(ids), places, cut)

    def values(self, before: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """See Kind."""
        kind = next(self.head.parameters()).dtype
        scores: torch.Tensor = self.head(at.to(kind)).float().softmax(-1)[:, 1]
        return scores


@dataclass(frozen=True)
class Whole:
    """See the module's docstring. ``head``: states [n, hidden] -> [n, 1]."""

    tokenizer: ModelTokenizer
    context: int | None
    head: Any
    every_token = False
    parameters = 0

    def lay_out(self, prompt: str, text: str) -> Laid:
        """See Kind."""
        ids, cut = _cut(self.tokenizer.encode(prompt + text), self.context)
        start = min(len(self.tokenizer.encode(prompt)), max(0, len(ids) - 1))
        return Laid(ids, start, [len(ids) - 1] if ids else [], cut)

    def values(self, before: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """See Kind."""
        kind = next(self.head.parameters()).dtype
        scores: torch.Tensor = self.head(at.to(kind))[:, 0].float().sigmoid()
        return scores


def steps(text: str) -> list[str]:
    """The steps of a solution: its lines, empty ones left out; at least one.

    >>> steps("1 + 1 = 2\\n\\n#### 2"), steps("")
    (['1 + 1 = 2', '#### 2'], [''])
    """
    return [line for line in text.split(STEP_END) if line.strip()] or [text.strip()]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must still be read of a text: states at ``positions``, of which the scores at ``places`` follow.

    ``base``: what the text up to the first of them came to, for a kind that reads every token.
    """

    positions: range | list[int]
    places: list[int]
    base: float = 0.0


def wanted(kind: Kind, laid: Laid, known: Sequence[float]) -> Wanted:
    """What is not known, given what was read at the first ``len(known)`` places of the same text."""
    places = laid.places[len(known) :]
    if not kind.every_token:
        return Wanted(places, places)
    first = laid.places[len(known) - 1] + 1 if known else laid.start
    return Wanted(range(first - 1, laid.end) if places else [], places, known[-1] if known else 0.0)


def read(
    kind: Kind, texts: Sequence[Laid], some: Sequence[Wanted], states: Sequence[torch.Tensor]
) -> list[list[float]]:
    """What is read at the wanted places of each text, from the states [positions, hidden] at its wanted positions.

    For a kind that reads every token these are sums of log-probabilities from the solution's start on.
    """
    if kind.every_token:
        # All texts' tokens in one call: the head costs nothing for prompts and padding.
        before = torch.cat([s[:-1] for s in states])
        at = torch.cat([s[1:] for s in states])
        tokens = [laid.ids[p] for laid, w in zip(texts, some, strict=True) for p in w.positions[1:]]
        values = kind.values(before, at, torch.tensor(tokens, dtype=torch.long, device=at.device))
        parts = torch.split(values, [max(0, len(w.positions) - 1) for w in some])
        found = []
        for part, w in zip(parts, some, strict=True):
            sums = (part.double().cumsum(0) + w.base).tolist()
            found.append([sums[place - w.positions[1]] for place in w.places])
        return found
    at = torch.cat(list(states))
    tokens = [laid.ids[p] for laid, w in zip(texts, some, strict=True) for p in w.positions]
    values = kind.values(at, at, torch.tensor(tokens, dtype=torch.long, device=at.device))
    return [part.tolist() for part in torch.split(values, [len(w.positions) for w in some])]


def scores(kind: Kind, values: Sequence[float]) -> tuple[float, ...]:
    """Step scores from 0 to 1 of what was read at the places."""
    if not kind.every_token:
        return tuple(values)
    return tuple(torch.tensor(values, dtype=torch.float64).exp().tolist())
