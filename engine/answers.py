"""From a finished job to the Answer that is kept: who is right, and what it cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.decoding.requests import Outcome
from engine.scheduler import Job
from spec.errors import shorten
from spec.results import Answer, Candidate


def answer_of(job: Job, task: Any) -> Answer:
    """The record of a job that has ended, checked against the reference answer."""
    error, candidates, chosen = job.error, (), None
    if job.outcome is not None:
        try:
            candidates, chosen = _checked(job.outcome, job.problem.answer, task), job.outcome.chosen
        except Exception as failure:  # one answer that the checker chokes on must not end the run
            error = f"Checking the answer failed ({type(failure).__name__}: {shorten(str(failure), 200)})."
    final = candidates[chosen].answer if chosen is not None else None
    first_tokens = [t.token_s[0] for t in job.timings if t.token_s]
    return Answer(
        problem_id=job.problem.id,
        repeat=job.repeat,
        question=job.problem.question,
        reference=job.problem.answer,
        level=job.problem.level,
        answer=final,
        correct=_is_correct(candidates, chosen, job) if error is None else None,
        chosen=chosen,
        candidates=candidates,
        tokens_prompt=job.tokens_prompt,
        tokens_generated=job.tokens_generated,
        tokens_verifier=job.tokens_verifier,
        latency_s=job.finished_s - job.admitted_s if error is None else None,
        ttft_s=min(first_tokens) - job.admitted_s if first_tokens else None,
        error=error,
    )


def _checked(outcome: Outcome, reference: str | None, task: Any) -> tuple[Candidate, ...]:
    if reference is None:
        return outcome.candidates
    verdicts: dict[str | None, bool] = {None: False}
    for candidate in outcome.candidates:
        if candidate.answer not in verdicts:
            verdicts[candidate.answer] = bool(task.equivalent(candidate.answer, reference))
    return tuple(replace(c, correct=verdicts[c.answer]) for c in outcome.candidates)


def _is_correct(candidates: tuple[Candidate, ...], chosen: int | None, job: Job) -> bool | None:
    """A problem without an answer is answered wrongly; without a reference there is nothing to say."""
    if job.problem.answer is None:
        return None
    return bool(candidates[chosen].correct) if chosen is not None else False
