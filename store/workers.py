"""Who is there to measure: each worker writes a sign of life every few seconds."""

from __future__ import annotations

from dataclasses import dataclass

from store.clock import Clock, Process, this_process
from store.connection import Connection, Row
from store.values import text

ALIVE_S = 15.0
KEPT_S = 7 * 86_400.0


@dataclass(frozen=True)
class Worker:
    """A worker as last heard of. Times are seconds since 1970; ``run_id`` is what it measures.

    ``reason``: a sentence on why it starts no run now; None when it would.
    """

    name: str
    device: str | None
    pid: int
    started: float
    seen: float
    run_id: str | None
    reason: str | None
    alive: bool


class Workers:
    """``store.workers``."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection, self._clock = connection, clock

    def register(self, name: str, device: str | None = None) -> None:
        """Announce the calling process as worker ``name``; forgets those not heard of for a week."""
        process, now = this_process(), self._clock.wall()
        row = {
            "name": text(name),
            "device": text(device),
            "pid": process.pid,
            "start": process.start,
            "namespace": process.namespace,
            "boot_id": self._clock.boot_id(),
            "started": now,
            "seen": now,
            "seen_clock": self._clock.now(),
        }
        with self._connection.write():
            self._connection.execute("DELETE FROM workers WHERE name = ? OR seen < ?", (row["name"], now - KEPT_S))
            self._connection.insert("workers", row)

    def heartbeat(self, name: str, run_id: str | None = None, reason: str | None = None) -> None:
        """A sign of life, with the run it measures, or why it starts none."""
        now = (self._clock.wall(), self._clock.now(), self._clock.boot_id())
        self._connection.execute(
            "UPDATE workers SET seen = ?, seen_clock = ?, boot_id = ?, run_id = ?, reason = ? WHERE name = ?",
            (*now, text(run_id), text(reason), text(name)),
        )

    def unregister(self, name: str) -> None:
        """Say goodbye."""
        self._connection.execute("DELETE FROM workers WHERE name = ?", (text(name),))

    def list(self) -> list[Worker]:
        """All workers heard of in the last week, the newest sign of life first."""
        return [self._worker(row) for row in self._connection.rows("SELECT * FROM workers ORDER BY seen DESC")]

    def any_alive(self) -> bool:
        """Whether anybody would take a queued run up."""
        return any(worker.alive for worker in self.list())

    def _worker(self, row: Row) -> Worker:
        recent = row["boot_id"] == self._clock.boot_id() and self._clock.now() - row["seen_clock"] <= ALIVE_S
        dead = Process(row["pid"], row["start"], row["namespace"]).is_dead()
        kept = ("name", "device", "pid", "started", "seen", "run_id", "reason")
        return Worker(alive=recent and not dead, **{name: row[name] for name in kept})
