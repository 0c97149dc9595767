"""The queue: which runs wait, who measures one, and how that ended.

    queued ──claim──> running ──finish──> succeeded
      │  ^               ├──fail────────> failed | retry_wait (due again after a while) | quarantined
      │  └─release/reap──┤
      │                  └──request_cancel──> cancelling ──> cancelled (or succeeded, when it was done already)
      └──request_cancel──> cancelled

Each arrow is one UPDATE that names the state before it, in one transaction with its line in ``job_events`` and the
state of the run. A worker holds a job by a lease that it renews; each claim counts the fence up, and every write of a
holder names its fence, so one that was taken for dead and wakes up again changes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from spec.choices import JobState
from spec.errors import StoreError, shorten
from spec.run_spec import RunSpec
from store.clock import Clock
from store.connection import Connection, Row
from store.errors import NotFound
from store.job_rows import READ_JOB, WAITING, Job, Lease, move, read_job, record
from store.leases import CANCELLED, Leases
from store.run_rows import Run
from store.runs import Runs, check_same_spec
from store.values import marks, text

__all__ = ["Job", "Jobs", "Lease", "why_not_resumed"]


def why_not_resumed(run: Run) -> str | None:
    """Why nothing of a run is left to do, in one sentence with a way out; None for one that ended early."""
    if run.deleted_at is not None:
        return f"Run {run.run_id} is deleted; restore it before resuming it."
    if run.state is JobState.SUCCEEDED:
        return (
            f"Run {run.run_id} is finished: only one that ended early can be resumed. To measure again, start it anew."
        )
    if not run.state.is_final:
        return f"Run {run.run_id} is {run.state}: only one that ended early can be resumed. Wait, or cancel it first."
    return None


class Jobs(Leases):
    """``store.jobs``: the queue as pages and the command line see it; ``Leases`` is the workers' half."""

    def __init__(self, connection: Connection, clock: Clock, runs: Runs) -> None:
        super().__init__(connection, clock)
        self._runs = runs

    def enqueue(
        self, spec: RunSpec, *, idempotency_key: str | None = None, run_id: str | None = None, source: str = "web"
    ) -> Job:
        """Queue a new run, or with ``run_id`` the rest of one that ended early, and return its job.

        A second call with the same ``idempotency_key`` (a double click) returns the job of the first. Raises
        StoreError when the run is live, succeeded or deleted, SpecError when it has another specification.
        """
        with self._connection.write():
            if idempotency_key is not None:
                first = self._connection.row(f"{READ_JOB} WHERE idempotency_key = ?", (text(idempotency_key),))
                if first is not None:
                    return read_job(first)
            return self._enqueue(spec, run_id, source, idempotency_key, foreground=False)

    def start(self, spec: RunSpec, worker: str, *, run_id: str | None = None, source: str = "cli") -> Lease:
        """Queue and claim in one step, for a command line that measures in the foreground; errors as ``enqueue``.

        No other worker takes the job up when this one dies: it has failed then, and can be resumed by its run id.
        """
        with self._connection.write():
            return self._take(self._enqueue(spec, run_id, source, None, foreground=True).job_id, worker)

    def _enqueue(self, spec: RunSpec, run_id: str | None, source: str, key: str | None, *, foreground: bool) -> Job:
        if run_id is None:
            run_id = self._runs.create(spec, source=source)
        else:
            self._reopen(run_id, spec)
        job: Row = {
            "job_id": secrets.token_hex(6),
            "run_id": run_id,
            "state": str(JobState.QUEUED),
            "source": text(source),
            "foreground": int(foreground),
            "idempotency_key": text(key),
            "created": self._clock.wall(),
        }
        self._connection.insert("jobs", job)
        record(self._connection, self._clock, job | {"attempt": 0, "worker": None}, "queued")
        return self._job(job["job_id"])

    def _reopen(self, run_id: str, spec: RunSpec) -> None:
        run = self._runs.get(run_id, samples=False)
        check_same_spec(run, spec)
        if why := why_not_resumed(run):
            raise StoreError(why)
        self._connection.execute(
            "UPDATE runs SET state = ?, message = NULL, finished = NULL WHERE run_id = ?",
            (str(JobState.QUEUED), run_id),
        )

    def request_cancel(self, job_id: str) -> Job:
        """Stop a job: at once while it waits, else its worker sees it at its next heartbeat; returns the job.

        One that has ended stays as it is. Raises NotFound.
        """
        self.reap()  # where the worker is gone nobody else would answer
        with self._connection.write():
            waiting = move(
                self._connection,
                self._clock,
                self.get(job_id).job_id,
                WAITING,
                JobState.CANCELLED,
                "cancelled",
                columns={"reason": CANCELLED},
            )
            if waiting is None:
                move(
                    self._connection,
                    self._clock,
                    job_id,
                    (JobState.RUNNING,),
                    JobState.CANCELLING,
                    "cancel requested",
                )
            return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        row = self._connection.row(f"{READ_JOB} WHERE job_id = ?", (text(job_id),))
        if row is None:
            raise NotFound(f"There is no job {shorten(job_id)} here.")
        return read_job(row)

    def of_run(self, run_id: str) -> Job | None:
        """The newest job of a run; None for a run that was saved without one."""
        row = self._connection.row(f"{READ_JOB} WHERE run_id = ? ORDER BY jobs.id DESC LIMIT 1", (text(run_id),))
        return None if row is None else read_job(row)

    def queue_position(self, job_id: str) -> int | None:
        """1 for the job that is claimed next; None for one that does not wait."""
        job = self.get(job_id)
        if job.state not in WAITING:
            return None
        return int(
            self._connection.value(
                "SELECT count(*) FROM jobs WHERE state IN ('queued','retry_wait') "
                "AND id <= (SELECT id FROM jobs WHERE job_id = ?)",
                (job.job_id,),
            )
        )

    def events(self, job_id: str) -> list[Row]:
        """The job's history, oldest first. Keys: at, event, state, attempt, worker, detail."""
        return self._connection.rows(
            "SELECT at, event, state, attempt, worker, detail FROM job_events WHERE job_id = ? ORDER BY id",
            (text(job_id),),
        )

    def list(self, states: Collection[JobState] | None = None, limit: int | None = 100) -> list[Job]:
        """Jobs in the given states (all by default), newest first."""
        wanted = [str(JobState(s)) for s in (JobState if states is None else states)]
        rows = self._connection.rows(
            f"{READ_JOB} WHERE jobs.state IN ({marks(wanted)}) ORDER BY jobs.id DESC LIMIT ?",
            [*wanted, -1 if limit is None else limit],
        )
        return [read_job(row) for row in rows]
