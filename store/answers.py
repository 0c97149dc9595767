"""Answers: what a strategy made of each problem, saved as they come, each exactly once.

Questions are stored once for all runs that put them. Reading lies in ``answer_queries``, the form of a row in
``answer_rows``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.errors import InputError
from spec.results import Answer, Origin, Progress
from store.answer_queries import AnswerQueries, Only
from store.answer_rows import COLUMNS, digest, values
from store.clock import Clock
from store.connection import Connection
from store.errors import no_run
from store.job_rows import Lease
from store.leases import hold
from store.run_rows import save_origin, save_progress
from store.values import marks, text

__all__ = ["Answers", "Only"]

BATCH = 50
_INSERT = (
    f"INSERT INTO answers ({', '.join(COLUMNS)}, question_id) VALUES ({marks(COLUMNS)}, "
    "(SELECT question_id FROM questions WHERE digest = ?)) ON CONFLICT (run_id, repeat, problem_id) DO NOTHING"
)


ORIGIN = {
    "model_fingerprint": "model has",
    "reward_fingerprint": "reward model has",
    "task_hash": "questions of the task have",
}


class Answers(AnswerQueries):
    """``store.answers``."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        super().__init__(connection)
        self._clock = clock

    def begin(self, lease: Lease, origin: Origin) -> None:
        """Keep what the answers of an attempt will come from, before the first of them.

        Raises InputError where answers are kept already that came from something else, and LeaseLost.
        """
        with self._connection.write():
            hold(self._connection, lease, self._clock)
            if self.count(lease.run_id):
                self._check_alike(lease.run_id, origin)
            save_origin(self._connection, lease.run_id, origin, self._clock.wall())

    def _check_alike(self, run_id: str, origin: Origin) -> None:
        names = ", ".join(ORIGIN)
        before = self._connection.rows(f"SELECT {names} FROM runs WHERE run_id = ?", (text(run_id),))[0]
        for name, what in ORIGIN.items():
            # One that nobody wrote down, for an older program measured it, cannot be held against the run.
            if before[name] not in (None, getattr(origin, name)):
                raise InputError(f"The {what} changed since this run gave its first answers; run it again instead.")

    def add(self, owner: Lease | str, answers: Sequence[Answer], progress: Progress | None = None) -> int:
        """Save answers and return how many were new; one that is there already is left as it is.

        ``owner``: the lease under which they were measured (raises LeaseLost when it is no longer the holder's), or
        the run id of a run without a job (raises NotFound when there is none). At most 50 in one transaction; the
        lease is renewed and the progress written in the same one.
        """
        run_id = owner if isinstance(owner, str) else owner.run_id
        added = 0
        for batch in _batches(answers):
            with self._connection.write():
                if isinstance(owner, Lease):
                    hold(self._connection, owner, self._clock)
                elif not self._connection.execute("SELECT 1 FROM runs WHERE run_id = ?", (text(owner),)):
                    raise no_run(owner)
                added += self._insert(run_id, batch)
                if progress is not None:
                    save_progress(self._connection, run_id, progress, self._clock.wall())
        return added

    def _insert(self, run_id: str, answers: Sequence[Answer]) -> int:
        questions = {digest(a): (text(a.question), text(a.reference)) for a in answers}
        self._connection.execute_many(
            "INSERT INTO questions (digest, question, reference) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING",
            [(name, *words) for name, words in questions.items()],
        )
        return self._connection.execute_many(_INSERT, [(*values(run_id, answer), digest(answer)) for answer in answers])


def _batches(answers: Sequence[Answer]) -> Iterator[Sequence[Answer]]:
    """At most 50 each, and at least one, so that a call without answers still checks the lease."""
    for start in range(0, max(1, len(answers)), BATCH):
        yield answers[start : start + BATCH]
