"""Steps that several strategies share: draw n whole solutions, score them, write them down."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from engine.decoding.requests import Extend, Extension, Path, Question, Request, Result, Score
from engine.decoding.votes import aggregate
from engine.sampling import Sampling
from spec.choices import Aggregate
from spec.results import Candidate


def solve(question: Question, n: int, sampling: Sampling | None) -> Generator[Request, Result, list[Extension]]:
    """Ask for ``n`` whole solutions, each on its own stream of randomness."""
    paths = tuple(Path(stream=i) for i in range(n))
    solutions: Any = yield Extend(paths, question.max_new_tokens, sampling, question.stop)
    return list(solutions)


def score(solutions: Sequence[Extension]) -> Generator[Request, Result, list[tuple[float, ...]]]:
    """Ask for the step scores of solutions."""
    steps: Any = yield Score(tuple(s.text for s in solutions))
    return list(steps)


def candidates(
    question: Question,
    solutions: Sequence[Extension],
    steps: Sequence[tuple[float, ...]] | None = None,
    how: Aggregate = Aggregate.LAST,
) -> tuple[Candidate, ...]:
    """The record of each solution: its answer, tokens and scores. Whether it is correct is filled in by the engine."""
    scores = steps if steps is not None else [()] * len(solutions)
    return tuple(
        Candidate(
            text=s.text,
            answer=question.extract(s.text),
            correct=None,
            tokens=len(s.ids),
            finish=s.finish,
            score=aggregate(step, how),
            step_scores=tuple(step),
        )
        for s, step in zip(solutions, scores, strict=True)
    )
