"""A job and a lease as values, and the one way a job changes its state."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from spec.choices import JobState
from spec.run_spec import RunSpec
from store.clock import Clock
from store.connection import Connection, Row
from store.values import marks, text

MAX_DETAIL = 64 * 1024
WAITING = (JobState.QUEUED, JobState.RETRY_WAIT)
HELD = (JobState.RUNNING, JobState.CANCELLING)
READ_JOB = "SELECT jobs.*, spec FROM jobs JOIN runs USING (run_id) JOIN specs USING (spec_key)"


@dataclass(frozen=True)
class Job:
    """One chain of attempts at one run. Times are seconds since 1970.

    ``attempt`` counts claims, ``crashes`` those of them that a crash ended. ``reason`` is the sentence for the user,
    ``detail`` what the record needs besides, e.g. the tail of stderr. ``foreground``: a command line waits for it.
    """

    job_id: str
    run_id: str
    state: JobState
    source: str
    foreground: bool
    created: float
    started: float | None
    finished: float | None
    attempt: int
    crashes: int
    worker: str | None
    reason: str | None
    detail: str | None
    spec_json: str

    @property
    def spec(self) -> RunSpec:
        """What is to be measured; raises SpecError when this program cannot read it."""
        return RunSpec.from_dict(json.loads(self.spec_json))


@dataclass(frozen=True)
class Lease:
    """The right to measure ``job`` and to save what comes of it, until another worker claims it."""

    job: Job
    worker: str
    fence: int

    @property
    def job_id(self) -> str:
        """The job's name."""
        return self.job.job_id

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.job.run_id


def read_job(row: Row) -> Job:
    """The job in a row of READ_JOB."""
    plain = ("job_id", "run_id", "source", "created", "started", "finished", "attempt", "crashes", "worker", "reason")
    return Job(
        state=JobState(row["state"]),
        foreground=bool(row["foreground"]),
        detail=row["detail"],
        spec_json=row["spec"],
        **{name: row[name] for name in plain},
    )


def move(
    connection: Connection,
    clock: Clock,
    job_id: str,
    before: Collection[JobState],
    after: JobState,
    event: str,
    *,
    where: Row | None = None,
    columns: Row | None = None,
    note: str | None = None,
) -> Row | None:
    """Change the state of a job, if it is in one of ``before`` and its columns are as in ``where``.

    Writes the job's ``columns``, the event (with ``note``) and the state of the run as well; for use inside a
    transaction. Returns the job's new row, or None when it was otherwise and nothing changed.
    """
    now = clock.wall()
    changes: Row = {"state": str(after), "not_before": None} | (columns or {})
    if after not in HELD:
        changes["lease_until"] = None
    if after.is_final:
        changes["finished"] = now
    sets = ", ".join(f"{name} = ?" for name in changes)
    conditions = "".join(f" AND {name} IS ?" for name in where or {})
    found = connection.rows(
        f"UPDATE jobs SET {sets} WHERE job_id = ? AND state IN ({marks(before)}){conditions} RETURNING *",
        [*changes.values(), job_id, *map(str, before), *(where or {}).values()],
    )
    if not found:
        return None
    job = found[0]
    record(connection, clock, job, event, note)
    _mirror(connection, job, after, now)
    return job


def record(connection: Connection, clock: Clock, job: Row, event: str, note: str | None = None) -> None:
    """Append a line to the job's history."""
    names = {"job_id": job["job_id"], "at": clock.wall(), "event": event, "state": job["state"]}
    connection.insert("job_events", names | {"attempt": job["attempt"], "worker": job["worker"], "detail": text(note)})


def _mirror(connection: Connection, job: Row, state: JobState, now: float) -> None:
    """The run's row carries the state too, so that a page needs no other."""
    sets: Row = {"state": str(state), "updated": now}
    if state not in HELD:
        sets |= {"phase": None, "phase_detail": None, "tok_s": None}
    if state is JobState.RUNNING:
        sets |= {"message": None, "finished": None}
    elif state is not JobState.CANCELLING:
        sets["message"] = job["reason"] if state is not JobState.SUCCEEDED else None
    if state.is_final:
        sets["finished"] = now
    names = ", ".join(f"{name} = ?" for name in sets)
    started = ", started = coalesce(started, ?)" if state is JobState.RUNNING else ""
    values = [*sets.values(), *([now] if started else []), job["run_id"]]
    connection.execute(f"UPDATE runs SET {names}{started} WHERE run_id = ?", values)
