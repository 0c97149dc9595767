"""Keeps the strategies of many problems alive and merges their requests into full batches.

Sequences leave the queue in the order in which their problems were admitted. A problem is admitted when the queue
cannot fill the next batch, so its latency holds no waiting for problems before it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from engine.backends.rows import Backend, Grown, Row
from engine.decoding.requests import Extend, Extension, Outcome, Path, Request, Result, Score, Search
from engine.measure.time import SequenceTiming, now
from engine.prompts import Prompt
from engine.rewards import RewardModel
from engine.sampling import stream_key
from spec.errors import InputError
from tasks.problem import Problem


@dataclass
class Job:
    """One problem on its way: what its strategy waits for, and what it has cost so far.

    ``begin`` makes the prompt and the strategy's generator when the problem is admitted; ``outcome`` or ``error`` is
    set at the end. ``cut_short``: some sequence had less room than it was allowed, because the context was full;
    ``cut_scored``: the reward model read some solution only up to the end of its own context.
    """

    problem: Problem
    repeat: int
    seed: int
    context: int | None
    begin: Callable[[], tuple[Prompt, Search]]
    admitted_s: float = 0.0
    finished_s: float = 0.0
    prompt: Prompt | None = None
    search: Search | None = None
    request: Request | None = None
    results: dict[int, Extension] = field(default_factory=dict)
    outcome: Outcome | None = None
    error: str | None = None
    tokens_prompt: int = 0
    tokens_generated: int = 0
    tokens_verifier: int = 0
    cut_short: bool = False
    cut_scored: bool = False
    timings: list[SequenceTiming] = field(default_factory=list)

    def admit(self) -> None:
        """The clock starts; the strategy runs to its first request."""
        self.admitted_s = now()
        try:
            self.prompt, self.search = self.begin()
        except InputError as error:
            self._end(error=str(error))
            return
        self.advance(None)

    def advance(self, result: Result | None) -> None:
        """Hand the strategy what it asked for; afterwards it waits for its next ``request``, or has ended."""
        assert self.search is not None
        self.results = {}
        try:
            self.request = self.search.send(result)  # type: ignore[arg-type]
        except StopIteration as end:
            self._end(outcome=end.value)

    def rows(self) -> list[tuple[int, Row]]:
        """The sequences of the current Extend request with their place in it."""
        assert isinstance(self.request, Extend)
        return [(i, self._row(path, self.request)) for i, path in enumerate(self.request.paths)]

    def _row(self, path: Path, request: Extend) -> Row:
        assert self.prompt is not None
        context = self.prompt.ids + path.ids
        room = request.max_new_tokens if self.context is None else self.context - len(context)
        self.cut_short |= room < request.max_new_tokens
        key = stream_key(self.seed, self.repeat, self.problem.id, path.stream)
        limit = max(0, min(room, request.max_new_tokens))
        return Row(context, limit, request.sampling, key, len(path.ids), request.stop)

    def take(self, place: int, row: Row, grown: Grown, asked_s: float) -> bool:
        """Note one sequence's growth; True when the request is complete."""
        assert isinstance(self.request, Extend)
        self.results[place] = grown.extension
        self.tokens_prompt += len(row.context) if row.limit else 0
        self.tokens_generated += len(grown.extension.ids)
        timing = SequenceTiming(self.problem.id, self.repeat, asked_s, grown.started_s, grown.token_s)
        self.timings.append(timing)
        return len(self.results) == len(self.request.paths)

    def _end(self, outcome: Outcome | None = None, error: str | None = None) -> None:
        self.request, self.search = None, None
        self.outcome, self.error = outcome, error
        self.finished_s = now()


@dataclass(frozen=True, slots=True)
class _Waiting:
    job: Job
    place: int
    row: Row
    asked_s: float


class Scheduler:
    """Runs jobs in batches of at most ``batch_size`` sequences.

    ``on_step(tokens)`` is called after every decoding step and between batches of the reward model; an exception it
    raises (Cancelled) ends the run.
    """

    def __init__(
        self, backend: Backend, reward: RewardModel | None, batch_size: int, on_step: Callable[[int], None]
    ) -> None:
        self._backend = backend
        self._reward = reward
        self._batch_size = batch_size
        self._on_step = on_step
        self._queue: list[tuple[int, int, _Waiting]] = []
        self._order = itertools.count()
        self._scoring: list[tuple[int, Job]] = []
        self._ended: list[Job] = []

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Every job, as it ends."""
        waiting = enumerate(jobs)
        while True:
            while len(self._queue) < self._batch_size and (job := next(waiting, None)) is not None:
                job[1].admit()
                self._enqueue(*job)
            if self._queue:
                self._run_batch()
            self._run_scores()
            yield from self._ended
            more = self._queue or self._ended
            self._ended = []
            if not more:
                return

    def _enqueue(self, index: int, job: Job) -> None:
        """Put what the job waits for where it belongs."""
        if job.request is None:
            self._ended.append(job)
        elif isinstance(job.request, Score):
            self._scoring.append((index, job))
        else:
            for place, row in job.rows():
                item = _Waiting(job, place, row, now())
                heapq.heappush(self._queue, (index, next(self._order), item))

    def _run_batch(self) -> None:
        size = min(self._batch_size, len(self._queue))
        batch = [heapq.heappop(self._queue) for _ in range(size)]
        full = [(i, w) for i, _, w in batch if w.row.limit > 0]
        grown = self._backend.extend([w.row for _, w in full], self._on_step) if full else []
        results = {id(w): g for (_, w), g in zip(full, grown, strict=True)}
        for index, _, item in batch:
            found = results.get(id(item)) or Grown(Extension("", (), "length"), now(), ())
            if item.job.take(item.place, item.row, found, item.asked_s):
                job = item.job
                job.advance([job.results[place] for place in range(len(job.results))])
                self._enqueue(index, job)

    def _run_scores(self) -> None:
        """Score what waits for it, of all problems together; a strategy may ask again at once."""
        while self._scoring:
            assert self._reward is not None
            jobs, self._scoring = self._scoring, []
            items = [(job.prompt.bare, text) for _, job in jobs for text in job.request.texts]  # type: ignore[union-attr]
            scored = iter(self._reward.score(items, self._batch_size, lambda: self._on_step(0)))
            for index, job in jobs:
                mine = list(itertools.islice(scored, len(job.request.texts)))  # type: ignore[union-attr]
                job.tokens_verifier += sum(s.tokens for s in mine)
                job.cut_scored |= any(s.cut for s in mine)
                job.advance([s.steps for s in mine])
                self._enqueue(index, job)
