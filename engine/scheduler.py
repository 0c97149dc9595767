"""Keeps the strategies of many problems alive and merges their requests into full batches.

A problem is admitted when the back end could start more sequences than it was given, so its latency holds no waiting
for problems before it. Sequences of an earlier problem go first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from engine.backends.rows import Backend, OnStep, Row
from engine.decoding.requests import Score
from engine.job import Job
from engine.rewards import Scored


class Judge(Protocol):
    """Scores (prompt, solution) pairs."""

    def score(self, items: list[tuple[str, str]], on_step: OnStep) -> list[Scored]:
        """In order. ``on_step`` is called with 0 between batches and may raise Cancelled."""
        ...

    def forget(self) -> None:
        """Forget what was read: what follows starts cold."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


class Scheduler:
    """Runs jobs on a back end and, where strategies ask for scores, a judge.

    ``on_step(tokens)`` is called after every decoding step and between batches of the reward model; an exception it
    raises (Cancelled) ends the run.
    """

    def __init__(self, backend: Backend, judge: Judge | None, on_step: OnStep) -> None:
        self._backend = backend
        self._judge = judge
        self._on_step = on_step
        self._owner: dict[Row, Job] = {}
        self._scoring: list[Job] = []
        self._ended: list[Job] = []

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Every job, as it ends."""
        waiting = enumerate(jobs)
        while True:
            while self._backend.wanting and (found := next(waiting, None)) is not None:
                order, job = found
                job.order = order
                job.admit()
                self._place(job)
            if self._backend.busy:
                self._step()
            self._run_scores()
            yield from self._ended
            idle = not (self._backend.busy or self._ended)
            self._ended = []
            if idle:
                return

    def _place(self, job: Job) -> None:
        """Put what the job waits for where it belongs."""
        if job.request is None:
            self._ended.append(job)
        elif isinstance(job.request, Score):
            self._scoring.append(job)
        else:
            rows = job.rows()
            self._owner.update(dict.fromkeys(rows, job))
            self._backend.submit(rows)

    def _step(self) -> None:
        for row, grown in self._backend.step(self._on_step):
            job = self._owner.pop(row)
            if job.take(row, grown):
                self._place(job)

    def _run_scores(self) -> None:
        """Score what waits for it, of all problems together; a strategy may ask again at once."""
        while self._scoring:
            assert self._judge is not None
            jobs, self._scoring = self._scoring, []
            items = [(job.prompts[None].bare, text) for job in jobs for text in _texts(job)]
            scored = iter(self._judge.score(items, self._on_step))
            for job in jobs:
                job.judge([next(scored) for _ in _texts(job)])
                self._place(job)


def _texts(job: Job) -> tuple[str, ...]:
    assert isinstance(job.request, Score)
    return job.request.texts
