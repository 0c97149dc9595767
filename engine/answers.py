"""From a finished job to the Answer that is kept: what it answered, who is right, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.decoding.requests import Outcome
from engine.job import Job
from spec.errors import IsoquantError, shorten
from spec.results import Answer, Candidate


class Grader:
    """A task's rules for answers that no answer can break: one that a rule chokes on is none, and equals nothing.

    What the user can act on (InputError: the checker does not start) is raised. ``note`` tells what was choked on.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._failures = 0
        self._first = ""

    def extract(self, text: str) -> str | None:
        """See Task."""
        found: str | None = self._guarded(lambda: self._task.extract(text), None)
        return found

    def equivalent(self, a: str, b: str) -> bool:
        """See Task."""
        return bool(self._guarded(lambda: self._task.equivalent(a, b), False))

    def warm_up(self) -> None:
        """Compare once, so that a checker's own start is no part of the run. Raises InputError where it fails."""
        self.equivalent(r"\frac{1}{2}", "x")
        self._failures = 0

    @property
    def note(self) -> str | None:
        """A sentence for the reader of the result; None where nothing failed."""
        if not self._failures:
            return None
        return f"The checker failed {self._failures} times ({self._first}); those answers count as wrong."

    def _guarded(self, work: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return work()
        except (IsoquantError, MemoryError):
            raise
        except Exception as failure:
            if not self._failures:
                self._first = f"{type(failure).__name__}: {shorten(str(failure), 200)}"
            self._failures += 1
            return otherwise


def answer_of(job: Job, grader: Grader) -> Answer:
    """The record of a job that has ended, checked against the reference answer."""
    error, candidates, chosen, account = job.error, (), None, job.account
    if job.outcome is not None:
        candidates, chosen = _checked(job.outcome, job.problem.answer, grader), job.outcome.chosen
    final = candidates[chosen].answer if chosen is not None else None
    first_tokens = [t.token_s[0] for t in job.timings if t.token_s]
    return Answer(
        problem_id=job.problem.id,
        repeat=job.asked.repeat,
        question=job.problem.question,
        reference=job.problem.answer,
        level=job.problem.level,
        answer=final,
        correct=_is_correct(candidates, chosen, job) if error is None else None,
        chosen=chosen,
        candidates=candidates,
        tokens_prompt=account.tokens_prompt,
        tokens_generated=account.tokens_generated,
        tokens_verifier=account.tokens_verifier,
        latency_s=job.finished_s - job.admitted_s if error is None else None,
        ttft_s=min(first_tokens) - job.admitted_s if first_tokens else None,
        error=error,
        tokens_cached=account.tokens_cached,
        tokens_drafted=account.tokens_drafted,
        tokens_accepted=account.tokens_accepted,
        target_passes=account.target_passes,
        flops_generated=account.flops_generated,
        flops_total=account.flops_total,
        flops_no_reuse=account.flops_no_reuse,
        exits=tuple(sorted(account.exits.items())),
        tree=job.outcome.tree if job.outcome is not None else (),
    )


def _checked(outcome: Outcome, reference: str | None, grader: Grader) -> tuple[Candidate, ...]:
    if reference is None:
        return outcome.candidates
    verdicts: dict[str | None, bool] = {None: False}
    for candidate in outcome.candidates:
        if candidate.answer not in verdicts:
            verdicts[candidate.answer] = grader.equivalent(candidate.answer, reference)
    return tuple(replace(c, correct=verdicts[c.answer]) for c in outcome.candidates)


def _is_correct(candidates: tuple[Candidate, ...], chosen: int | None, job: Job) -> bool | None:
    """A problem without an answer is answered wrongly; without a reference there is nothing to say."""
    if job.problem.answer is None:
        return None
    return bool(candidates[chosen].correct) if chosen is not None else False
