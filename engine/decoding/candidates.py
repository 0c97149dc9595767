"""Steps that several strategies share: draw n whole solutions, score them, write them down."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from engine.decoding.requests import Extend, Extension, Path, Question, Request, Result, Score
from engine.decoding.votes import aggregate
from engine.sampling import Sampling
from spec.choices import Aggregate
from spec.results import Candidate
from spec.strategy import Drafted, Sample, Strategy

Steps = tuple[float, ...]


def sampling_of(strategy: Sample | Drafted) -> Sampling | None:
    """The sampling parameters of a strategy; None, which is greedy, at temperature 0."""
    if strategy.temperature == 0.0:
        return None
    penalty = strategy.repetition_penalty if isinstance(strategy, Sample) else 1.0
    return Sampling(strategy.temperature, strategy.top_k, strategy.top_p, strategy.min_p, penalty)


def solve(
    question: Question,
    n: int,
    sampling: Sampling | None,
    *,
    first: int = 0,
    model: str | None = None,
    logprobs: bool = False,
) -> Generator[Request, Result, list[Extension]]:
    """Ask for ``n`` whole solutions, each on its own stream of randomness, counted from ``first``."""
    paths = tuple(Path(stream=first + i) for i in range(n))
    solutions: Any = yield Extend(
        paths, question.max_new_tokens, sampling, question.stop, model=model, logprobs=logprobs
    )
    return list(solutions)


def judge(strategy: Strategy, texts: Sequence[str], own: Sequence[Steps]) -> Generator[Request, Result, list[Steps]]:
    """The step scores of solution texts: by the strategy's reward model, or ``own``, which costs nothing.

    ``own``: the model's own confidence in the steps of each text, see ``confidence``.
    """
    if strategy.by_logprob or not texts:
        return list(own)
    steps: Any = yield Score(tuple(texts))
    return list(steps)


def confidence(extension: Extension) -> Steps:
    """The geometric mean of the probabilities of what was drawn, as one step's score; no score of no tokens."""
    if not extension.logprobs:
        return ()
    return (math.exp(math.fsum(extension.logprobs) / len(extension.logprobs)),)


def candidates(
    question: Question,
    solutions: Sequence[Extension],
    steps: Sequence[Steps] | None = None,
    how: Aggregate = Aggregate.LAST,
    model: str | None = None,
    node: int | None = None,
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
            model=model,
            node=node,
        )
        for s, step in zip(solutions, scores, strict=True)
    )
