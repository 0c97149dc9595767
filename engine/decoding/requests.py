"""What a strategy may ask of the engine, and what it gets back.

A strategy sees one problem. It is a generator: it yields requests and receives results, it never touches a tensor,
owns a model or counts a cost. The engine keeps the generators of many problems alive at once and merges their
requests into full batches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from engine.sampling import Sampling
from spec.results import Candidate
from tasks.problem import Problem


@dataclass(frozen=True, slots=True)
class Path:
    """A partial solution to continue: ``ids`` are the tokens generated so far, empty at the root.

    ``stream`` numbers its source of randomness: two paths that must differ need different streams.
    """

    stream: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Extend:
    """Continue each path until a stop string, the model's end token or ``max_new_tokens``; greedy without sampling.

    The result is one ``Extension`` per path, in order.
    """

    paths: tuple[Path, ...]
    max_new_tokens: int
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Extension:
    """What one path grew by. ``text`` ends before the stop string; ``ids`` are all new tokens, the ending included.

    ``finish``: ``stop`` (end token or stop string) or ``length``.
    """

    text: str
    ids: tuple[int, ...]
    finish: str


@dataclass(frozen=True, slots=True)
class Score:
    """Let the reward model judge these solution texts. The result is one tuple of step scores per text, in order."""

    texts: tuple[str, ...]


Request: TypeAlias = Extend | Score
Result: TypeAlias = list[Extension] | list[tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a strategy ends: all candidates, and the index of the one whose answer is given (None: no answer)."""

    candidates: tuple[Candidate, ...]
    chosen: int | None


@dataclass(frozen=True, slots=True)
class Question:
    """All that a strategy knows of its problem and the task's rules."""

    problem: Problem
    max_new_tokens: int
    stop: tuple[str, ...]
    extract: Callable[[str], str | None]
    equivalent: Callable[[str, str], bool]


Search: TypeAlias = Generator[Request, Result, Outcome]
