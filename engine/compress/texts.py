"""Texts that a compression looks at or trains on, and others, held out, that its errors are measured on."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from engine.recipes import task_of
from engine.tokenizers import SyntheticTokenizer, Tokenizer
from spec.compression.base import Calibrate
from spec.errors import InputError
from tasks import lab_words
from tasks.files import read_text
from tasks.problem import Problem
from tasks.registry import load_task

HELD_OUT = 64  # texts that errors are measured on
LEAST = 16  # tokens that a text must have to be of use
FAR = 2_000_000  # in the built-in task's endless train split, beyond what the built-in models were trained on
NINTH = 10  # every so many texts of a file are held out
TRAINING_POOL = 1 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens of a text, of which the first ``prompt`` are given: training does not learn to write them."""

    ids: tuple[int, ...]
    prompt: int = 0


class Texts:
    """``measured``: what activations are measured on; ``held_out``: never among them; ``training``: without end.

    Raises InputError for a file that cannot be read or holds too little.
    """

    def __init__(self, data: Calibrate, tokenizer: Tokenizer, context: int | None, vocab: int) -> None:
        self.seed = data.seed
        longest = min(data.tokens, context or data.tokens)
        if isinstance(tokenizer, SyntheticTokenizer):
            self._source: _Source = _Noise(vocab, longest, data.seed)
        elif data.data == "auto":
            self._source = _Words(tokenizer, longest, data.seed)
        else:
            self._source = _File(data, tokenizer, longest)
        self._samples = data.samples

    @cached_property
    def measured(self) -> list[Text]:
        """Texts that activations are measured on."""
        return self._source.some(self._samples)

    @cached_property
    def held_out(self) -> list[Text]:
        """Texts that errors are measured on, never among the others."""
        return self._source.held_out()

    def training(self, start: int, count: int) -> list[Text]:
        """Texts number ``start`` to ``start + count`` of an endless sequence that depends on the seed alone."""
        return self._source.training(start, count)


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of like length together, [rows, width], padded on the right.

    In a causal model what stands on the right of a token is not seen by it, so no attention mask is needed. ``there``:
    which positions are text; ``learned``: at which of them the next token is one that a model is to write.
    """

    ids: torch.Tensor
    there: torch.Tensor
    learned: torch.Tensor

    @property
    def following(self) -> torch.Tensor:
        """The next token at each learned position, [learned]."""
        return self.ids.roll(-1, 1)[self.learned]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.there.to(device), self.learned.to(device))


def batches(texts: Sequence[Text], rows: int, pad: int) -> Iterator[Batch]:
    """All texts, the longest first, so many at a time."""
    order = sorted(texts, key=lambda t: -len(t.ids))
    for at in range(0, len(order), rows):
        yield batch_of(order[at : at + rows], pad)


def batch_of(texts: Sequence[Text], pad: int) -> Batch:
    """These texts as one batch, in their order."""
    width = max(len(t.ids) for t in texts)
    place = torch.arange(width)
    length, prompt = (
        torch.tensor(column)[:, None] for column in zip(*((len(t.ids), t.prompt) for t in texts), strict=True)
    )
    ids = torch.tensor([[*t.ids, *[pad] * (width - len(t.ids))] for t in texts])
    return Batch(ids, place < length, (place + 1 >= prompt) & (place + 1 < length))


class _Source(ABC):
    def some(self, count: int) -> list[Text]:
        return self.training(0, count)

    @abstractmethod
    def training(self, start: int, count: int) -> list[Text]: ...

    @abstractmethod
    def held_out(self) -> list[Text]: ...


class _Noise(_Source):
    """For random weights: what they read does not matter."""

    def __init__(self, vocab: int, longest: int, seed: int) -> None:
        self._vocab, self._longest, self._seed = vocab, longest, seed

    def training(self, start: int, count: int) -> list[Text]:
        rng = random.Random(f"{self._seed} {start}")
        return [Text(tuple(rng.randrange(self._vocab) for _ in range(self._longest))) for _ in range(count)]

    def held_out(self) -> list[Text]:
        return self.training(-1, HELD_OUT // 8)


class _Words(_Source):
    """The built-in word problems, solved: train split for everything but the errors, which get the validation split."""

    def __init__(self, tokenizer: Tokenizer, longest: int, seed: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self._first = FAR + seed % 1000 * TRAINING_POOL

    def training(self, start: int, count: int) -> list[Text]:
        levels = lab_words.LEVELS
        numbers = range(self._first + start, self._first + start + count)
        return [self._text(lab_words.generate(i // len(levels), levels[i % len(levels)], "train")) for i in numbers]

    def held_out(self) -> list[Text]:
        return [self._text(p) for p in lab_words.problems("validation", HELD_OUT)]

    def _text(self, problem: Problem) -> Text:
        prompt = lab_words.prompt(problem)
        return _solved(self._tokenizer, prompt, problem.solution or "", self._longest)


class _File(_Source):
    """A user's texts or solved questions, every tenth of them held out."""

    def __init__(self, data: Calibrate, tokenizer: Tokenizer, longest: int) -> None:
        found = _read(data, tokenizer, longest)
        texts = list(dict.fromkeys(t for t in found if len(t.ids) >= LEAST))  # once each: none is held out and learned
        self._held_out = texts[::NINTH][:HELD_OUT]
        self._rest = [t for i, t in enumerate(texts) if i % NINTH]
        if len(texts) < 2 or not self._rest:
            raise InputError(
                f"{data.data} holds too little text: at least 2 pieces of {LEAST} tokens are needed, one to measure "
                f"on and one held out, and it has {len(texts)}. Choose a longer text."
            )
        random.Random(data.seed).shuffle(self._rest)

    def some(self, count: int) -> list[Text]:
        return self._rest[:count]

    def training(self, start: int, count: int) -> list[Text]:
        return [self._rest[i % len(self._rest)] for i in range(start, start + count)]

    def held_out(self) -> list[Text]:
        return self._held_out


def _read(data: Calibrate, tokenizer: Tokenizer, longest: int) -> list[Text]:
    kind, _, path = data.data.partition(":")
    if kind == "text":
        ids = tokenizer.encode(read_text(path))
        return [Text(tuple(ids[at : at + longest])) for at in range(0, len(ids), longest)]
    task = load_task(task_of(data))
    return [_solved(tokenizer, task.prompt(p), f"\n{p.solution or p.answer or ''}", longest) for p in task.problems()]


def _solved(tokenizer: Tokenizer, prompt: str, solution: str, longest: int) -> Text:
    """A text of which the solution is learned; all of it, where no part of the solution has room."""
    ids = tokenizer.encode(prompt + solution)
    end = sorted(tokenizer.stop_ids)[:1]
    given = len(tokenizer.encode(prompt))
    return Text(tuple([*ids, *end][:longest]), given if given < min(len(ids) + len(end), longest) else 0)
