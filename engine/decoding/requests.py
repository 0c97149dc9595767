"""What a strategy may ask of the engine, and what it gets back.

A strategy sees one problem. It is a generator: it yields requests and receives results, it never touches a tensor,
owns a model or counts a cost. The engine keeps the generators of many problems alive at once and merges their
requests into full batches. Paths are plain tuples of token ids: the engine finds by itself what of a path it has
computed before, so forking, going back and dropping a branch need no request of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from engine.sampling import Sampling
from spec.results import Candidate, Node
from tasks.problem import Problem


@dataclass(frozen=True, slots=True)
class Path:
    """A partial solution to continue: ``ids`` are the tokens generated so far, empty at the root.

    ``stream`` numbers its source of randomness: two paths that must differ need different streams. ``limit``: at most
    so many new tokens for this path, where that is less than what its request allows.
    """

    stream: int
    ids: tuple[int, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """How tokens are guessed before the model verifies them.

    ``model``: the draft model's name; None looks the last ``ngram`` tokens up in what was read and written so far and
    proposes what followed them there. ``tokens``: at most so many per pass of the target.
    """

    model: str | None
    tokens: int
    ngram: int = 3


@dataclass(frozen=True, slots=True)
class Exit:
    """When a token may leave the model before its last layer.

    ``margin`` False: the highest probability must reach ``threshold``; True: its lead over the second one must.
    ``first``: no exit before so many layers.
    """

    threshold: float
    margin: bool = False
    first: int = 1


@dataclass(frozen=True, slots=True)
class Extend:
    """Continue each path until a stop string, the model's end token or ``max_new_tokens``; greedy without sampling.

    The result is one ``Extension`` per path, in order. ``model`` names another model than the run's, one of the
    strategy's ``models``; its paths hold that model's own token ids. ``logprobs`` asks for the log-probability of
    each token that was chosen.
    """

    paths: tuple[Path, ...]
    max_new_tokens: int
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()
    model: str | None = None
    logprobs: bool = False
    draft: Draft | None = None
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    """What one path grew by.

    Attributes:
        text: ends before the stop string that ended it.
        ids: all new tokens, the ending included.
        finish: ``stop`` (end token or stop string) or ``length``.
        stop: the stop string that ended it; None where the end token or the length did.
        whole: the text with its stop string and what else its last token holds; what ``ids`` stand for behind the path.
        logprobs: of each token, in nats, from the model's own distribution; empty where not asked for.
        seconds: from the start of its generation to its last token.
        exits: how many layers each token took, where an early exit was asked for.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    stop: str | None = None
    whole: str = ""
    logprobs: tuple[float, ...] = ()
    seconds: float = 0.0
    exits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Peek:
    """Ask which ``k`` tokens are the most likely next ones of each path, without generating any.

    The result is, for each path in order, ``((token, log-probability), ...)``, the most likely first.
    """

    paths: tuple[Path, ...]
    k: int
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Let the reward model judge these solution texts. The result is one tuple of step scores per text, in order."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """Ask what the model at its full depth would have written greedily at each position of a path.

    ``ids`` as in ``Path``. The result is one token id per position: the argmax behind the prompt and ``ids[:i]`` for
    each i, a tuple as long as ``ids``.
    """

    ids: tuple[int, ...]
    model: str | None = None


Choices: TypeAlias = tuple[tuple[int, float], ...]
Request: TypeAlias = Extend | Score | Peek | Replay
Result: TypeAlias = list[Extension] | list[tuple[float, ...]] | list[Choices] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a strategy ends: all candidates, and the index of the one whose answer is given (None: no answer).

    ``tree``: every step of a search, in the order they were made; empty for a strategy that does not branch.
    """

    candidates: tuple[Candidate, ...]
    chosen: int | None
    tree: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """All that a strategy knows of its problem and the task's rules.

    Attributes:
        stop: texts that end a solution, besides the model's own end.
        step: what ends a step of a solution.
        encode: a text as token ids of the run's model, without a begin token.
        is_end: whether a token is one of the model's end tokens.
        decode: the text of token ids of the run's model.
        shared: one object for all problems of a run, for strategies that learn as they go.
        key: 64-bit key of this problem's own random numbers, apart from those of its streams.
        layers: of the run's model; None where that is not known.
        room: tokens that its context has left behind the prompt; None where it has no limit.
    """

    problem: Problem
    max_new_tokens: int
    stop: tuple[str, ...]
    extract: Callable[[str], str | None]
    equivalent: Callable[[str, str], bool]
    step: str = "\n"
    encode: Callable[[str], tuple[int, ...]] = lambda text: ()
    decode: Callable[[tuple[int, ...]], str] = lambda ids: ""
    is_end: Callable[[int], bool] = lambda token: False
    shared: Any = None
    key: int = 0
    layers: int | None = None
    room: int | None = None


Search: TypeAlias = Generator[Request, Result, Outcome]
