"""The worker's side of the queue: claim a job, hold it, end it; and take it from workers that are gone."""

from __future__ import annotations

from collections.abc import Collection

from spec.choices import JobState
from spec.errors import SpecError
from spec.results import Phase, Progress, RunResult
from store.clock import Clock, Process, this_process
from store.connection import Connection, Row
from store.errors import LeaseLost
from store.job_rows import HELD, MAX_DETAIL, READ_JOB, WAITING, Job, Lease, move, read_job
from store.run_rows import save_progress, save_result
from store.values import marks, text

# Attempts as spans of event numbers, which ascend with time for all jobs together.
_BESIDE = f"""
WITH mine AS (SELECT job_id FROM jobs WHERE run_id = :run),
     others AS (SELECT job_id FROM jobs WHERE state IN ('{HELD[0]}','{HELD[1]}')
                UNION SELECT job_id FROM job_events
                WHERE id > (SELECT min(id) FROM job_events WHERE job_id IN mine)),
     spans AS (SELECT job_id, id AS began, coalesce((SELECT min(id) FROM job_events AS later
                                                     WHERE later.job_id = claims.job_id AND later.id > claims.id
                                                     AND event != 'cancel requested'), 9e18) AS ended
               FROM job_events AS claims WHERE event = 'claimed' AND (job_id IN mine OR job_id IN others))
SELECT DISTINCT jobs.run_id FROM spans AS own JOIN spans AS other ON other.began < own.ended AND own.began < other.ended
JOIN jobs ON jobs.job_id = other.job_id WHERE own.job_id IN mine AND other.job_id NOT IN mine ORDER BY jobs.id
"""
LEASE_S = 30.0
MAX_CRASHES = 3
BACKOFF_S = 5.0
CANCELLED = "Cancelled; what was measured until then is kept."
_WAITS = "SELECT job_id FROM jobs JOIN runs USING (run_id) WHERE jobs.state IN ('queued','retry_wait')"
_DUE = " AND (not_before IS NULL OR not_before <= ? OR boot_id IS NOT ?) ORDER BY jobs.id LIMIT 1"


class Leases:
    """The half of ``store.jobs`` that workers use."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection, self._clock = connection, clock

    def claim(self, worker: str, devices: Collection[str] | None = None) -> Lease | None:
        """The oldest job that is due, now held by ``worker`` for 30 s; None when there is none.

        ``devices``: only runs that ask for one of them; None takes all. A job whose specification this program cannot
        read is failed, and the next one tried.
        """
        condition, names = _on(devices)
        due, values = _WAITS + condition + _DUE, [*names, self._clock.now(), self._clock.boot_id()]
        while self._connection.value(due, values) is not None:  # looking takes no lock: idle workers disturb nobody
            with self._connection.write():
                job_id = self._connection.value(due, values)
                lease = self._take(job_id, worker) if job_id is not None else None
            if lease is not None and self._is_readable(lease):
                return lease
        return None

    def any_waiting(self, devices: Collection[str] | None = None) -> bool:
        """Whether ``claim`` has something to give, now or later."""
        condition, names = _on(devices)
        return self._connection.value(f"{_WAITS}{condition} LIMIT 1", names) is not None

    def _take(self, job_id: str, worker: str) -> Lease:
        """Hold one waiting job; for use inside a transaction."""
        process = this_process()
        before = self._connection.row("SELECT run_id, attempt, fence FROM jobs WHERE job_id = ?", (job_id,)) or {}
        columns = {
            "attempt": before["attempt"] + 1,
            "fence": before["fence"] + 1,
            "answers_before": self._answers(before["run_id"]),
            "started": self._clock.wall(),
            "reason": None,
            "detail": None,
            "worker": text(worker),
            "worker_pid": process.pid,
            "worker_start": process.start,
            "worker_namespace": process.namespace,
            "lease_until": self._clock.now() + LEASE_S,
            "boot_id": self._clock.boot_id(),
        }
        move(self._connection, self._clock, job_id, WAITING, JobState.RUNNING, "claimed", columns=columns)
        return Lease(self._job(job_id), worker, columns["fence"])

    def _is_readable(self, lease: Lease) -> bool:
        try:
            lease.job.spec  # noqa: B018  (parses)
        except SpecError as error:
            self.fail(lease, f"This version of Isoquant cannot read what the run asks for: {error}", retry=False)
            return False
        return True

    def _job(self, job_id: str) -> Job:
        return read_job(self._connection.rows(f"{READ_JOB} WHERE job_id = ?", (job_id,))[0])

    def heartbeat(self, lease: Lease, progress: Progress | None = None, phase: Phase | str | None = None) -> bool:
        """Renew the lease, write progress and phase; True when the user asked to cancel. Raises LeaseLost.

        The run's ``updated`` is the time of the newest heartbeat, also while there is no progress yet.
        """
        with self._connection.write():
            held = hold(self._connection, lease, self._clock)
            if progress is not None:
                save_progress(self._connection, lease.run_id, progress, self._clock.wall())
            signs: Row = {"updated": self._clock.wall()}
            if phase is not None:
                name, detail = (phase, None) if isinstance(phase, str) else (phase.name, phase.detail)
                signs |= {"phase": text(name), "phase_detail": text(detail)}
            names = ", ".join(f"{name} = ?" for name in signs)
            self._connection.execute(f"UPDATE runs SET {names} WHERE run_id = ?", [*signs.values(), lease.run_id])
        return bool(held["state"] == JobState.CANCELLING)

    def finish(self, lease: Lease, result: RunResult) -> None:
        """The run is measured: save its result, even if the user asked to cancel meanwhile. Raises LeaseLost."""
        with self._connection.write():
            self._end(hold(self._connection, lease, self._clock), JobState.SUCCEEDED, "finished")
            save_result(self._connection, lease.run_id, result, self._clock.wall())

    def finish_cancelled(self, lease: Lease, reason: str = CANCELLED) -> None:
        """The work has stopped because the user wanted so. Raises LeaseLost."""
        with self._connection.write():
            held = hold(self._connection, lease, self._clock)
            self._end(held, JobState.CANCELLED, "cancelled", reason=reason)

    def release(self, lease: Lease, reason: str | None = None) -> JobState:
        """Give the job back unharmed, e.g. when the worker is stopped: no crash is counted. Raises LeaseLost."""
        with self._connection.write():
            held = hold(self._connection, lease, self._clock)
            return self._give_up(held, "released", reason or "The worker was stopped.", crashed=False)

    def fail(self, lease: Lease, reason: str, detail: str = "", *, retry: bool) -> JobState:
        """The attempt failed; returns what became of the job. Raises LeaseLost.

        ``reason`` is the sentence for the user, ``detail`` is cut to its last 64 KiB. With ``retry`` (a crash) the job
        is tried again after 5, then 10 s, and quarantined after the third; without, it has failed. One that was being
        cancelled is not tried again.
        """
        with self._connection.write():
            held = hold(self._connection, lease, self._clock)
            if retry:
                return self._give_up(held, "crashed", reason, detail, crashed=True, delay=True)
            return self._end(held, JobState.FAILED, "failed", reason=reason, detail=detail)

    def beside(self, run_id: str) -> list[str]:
        """The runs that were being measured during an attempt at this one, whichever job it belonged to."""
        return [row[0] for row in self._connection.execute(_BESIDE, {"run": text(run_id)})]

    def reap(self) -> list[str]:
        """Take back the jobs of workers that are gone, and return their names (``job_id``).

        Gone is a worker whose process has ended, whose lease ran out, or that belongs to an earlier boot of the
        machine. The job waits again at once. A crash is counted, except after a reboot and where the attempt saved
        answers: a worker that is killed now and then still gets to the end, and a problem that kills every worker
        counts from its second time on.
        """
        held = f"SELECT * FROM jobs WHERE state IN ('{HELD[0]}','{HELD[1]}')"
        if not any(self._why_gone(row) for row in self._connection.rows(held)):
            return []
        reaped = []
        with self._connection.write():
            for row in self._connection.rows(held):
                if why := self._why_gone(row):
                    got_nowhere = self._answers(row["run_id"]) <= row["answers_before"]
                    same_boot = row["boot_id"] == self._clock.boot_id()
                    self._give_up(row, "reaped", why, crashed=same_boot and got_nowhere)
                    reaped.append(row["job_id"])
        return reaped

    def _answers(self, run_id: str) -> int:
        return int(self._connection.value("SELECT count(*) FROM answers WHERE run_id = ?", (run_id,)))

    def _why_gone(self, held: Row) -> str | None:
        if held["boot_id"] != self._clock.boot_id():
            return "The machine was started anew while the run was measured."
        if Process(held["worker_pid"], held["worker_start"], held["worker_namespace"]).is_dead():
            return "The worker ended without a word."
        if held["lease_until"] < self._clock.now():
            return f"The worker gave no sign of life for {LEASE_S:.0f} s."
        return None

    def _give_up(
        self, held: Row, event: str, reason: str, detail: str = "", *, crashed: bool, delay: bool = False
    ) -> JobState:
        """End an attempt that did not end its job: it waits again, unless it had its last chance."""
        crashes = held["crashes"] + crashed
        columns: Row = {"crashes": crashes}
        if held["state"] == JobState.CANCELLING:
            after, reason = JobState.CANCELLED, CANCELLED
        elif crashes >= MAX_CRASHES:
            after = JobState.QUARANTINED
            reason = f"{reason} It was tried {MAX_CRASHES} times and is not tried again by itself."
        elif held["foreground"]:
            after = JobState.FAILED  # nobody waits for its output any more
        elif delay:
            after = JobState.RETRY_WAIT
            columns |= {"not_before": self._clock.now() + BACKOFF_S * 2 ** (crashes - 1)}
        else:
            after = JobState.QUEUED
        return self._end(held, after, event, reason=reason, detail=detail, columns=columns)

    def _end(
        self,
        held: Row,
        after: JobState,
        event: str,
        *,
        reason: str | None = None,
        detail: str = "",
        columns: Row | None = None,
    ) -> JobState:
        words = {"reason": text(reason), "detail": text(detail[-MAX_DETAIL:]) or None}
        job_id, columns = held["job_id"], words | (columns or {})
        move(self._connection, self._clock, job_id, HELD, after, event, columns=columns, note=reason)
        return after


def _on(devices: Collection[str] | None) -> tuple[str, list[str]]:
    """The condition that a run asks for one of ``devices``, and its values."""
    return ("", []) if devices is None else (f" AND runs.device IN ({marks(devices)})", [*devices])


def hold(connection: Connection, lease: Lease, clock: Clock) -> Row:
    """Renew the lease and return the job's row, for use inside a transaction. Raises LeaseLost."""
    found = connection.rows(
        "UPDATE jobs SET lease_until = ?, boot_id = ? WHERE job_id = ? AND fence = ? AND worker = ? "
        "AND state IN ('running','cancelling') RETURNING *",
        (clock.now() + LEASE_S, clock.boot_id(), lease.job_id, lease.fence, text(lease.worker)),
    )
    if not found:
        raise LeaseLost(f"Run {lease.run_id} was taken over by another worker, or has ended; its work is dropped here.")
    return found[0]
