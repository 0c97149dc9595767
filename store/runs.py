"""Runs: one row for each, from the moment it is queued."""

from __future__ import annotations

import json
import secrets
from typing import Any

from spec.choices import FINAL_STATES, JobState
from spec.errors import SpecError, StoreError
from spec.results import RunResult
from spec.run_spec import RunSpec
from store.clock import Clock
from store.connection import Connection, Row
from store.errors import no_run
from store.run_queries import RunQueries
from store.run_rows import (
    Run,
    read_progress,
    read_result,
    results_changed,
    save_result,
    save_spec,
    spec_columns,
)
from store.values import text, unpack_series

_POLLED = (
    "run_id, state, created, started, finished, message, phase, phase_detail, done, total, correct, checked, tokens, "
    "elapsed_s, tok_s, updated, deleted_at"
)
_LIVE = ", ".join(f"'{state}'" for state in JobState if not state.is_final)


class Runs(RunQueries):
    """``store.runs``: make, read, search, delete and restore runs."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        super().__init__(connection)
        self._clock = clock

    def create(self, spec: RunSpec, *, source: str = "web", state: JobState = JobState.QUEUED) -> str:
        """A new run without results; returns its ``run_id`` (12 hex digits)."""
        run_id, now = secrets.token_hex(6), self._clock.wall()
        row = {"run_id": run_id, "state": str(state), "source": text(source), "created": now} | spec_columns(spec)
        with self._connection.write():
            save_spec(self._connection, spec, now)
            self._connection.insert("runs", row)
        return run_id

    def save(self, spec: RunSpec, result: RunResult, source: str = "cli") -> str:
        """A finished run that no job measured, e.g. one from a script; returns its ``run_id``."""
        with self._connection.write():
            run_id = self.create(spec, source=source, state=JobState.SUCCEEDED)
            now = self._clock.wall()
            self._connection.execute("UPDATE runs SET finished = ? WHERE run_id = ?", (now, run_id))
            save_result(self._connection, run_id, result, now)
        return run_id

    def get(self, run_id: str, *, samples: bool = True) -> Run:
        """The whole run, deleted ones included; ``samples=False`` leaves the raw series out. Raises NotFound."""
        row = self._connection.row(
            "SELECT specs.*, run_details.*, runs.* FROM runs JOIN specs USING (spec_key) "
            "LEFT JOIN run_details USING (run_id) WHERE run_id = ?",
            (text(run_id),),
        )
        if row is None:
            raise no_run(run_id)
        return self._run(row, samples)

    def _run(self, row: Row, samples: bool) -> Run:
        state = JobState(row["state"])
        measured = row["reasons"] is not None
        series = self.samples(row["run_id"]) if measured and samples else {}
        kept = ("run_id", "source", "created", "started", "finished", "deleted_at", "message", "phase", "phase_detail")
        return Run(
            state=state,
            spec=RunSpec.from_dict(json.loads(row["spec"])),
            progress=read_progress(row),
            result=read_result(row, series) if measured else None,
            **{name: row[name] for name in kept},
        )

    def poll(self, run_id: str) -> Row:
        """State and progress of a run, for a page that asks every second: one row read. Raises NotFound.

        Keys: run_id, state, created, started, finished, message, phase, phase_detail, done, total, correct, checked,
        tokens, elapsed_s, tok_s, updated, deleted_at.
        """
        row = self._connection.row(f"SELECT {_POLLED} FROM runs WHERE run_id = ?", (text(run_id),))
        if row is None:
            raise no_run(run_id)
        return row

    def samples(self, run_id: str) -> dict[str, list[float]]:
        """The raw series behind the percentiles, name -> values."""
        found = self._connection.execute("SELECT name, data FROM samples WHERE run_id = ?", (text(run_id),))
        return {name: unpack_series(data) for name, data in found}

    def find_same(self, spec_key: str, hardware_id: str | None = None) -> list[Row]:
        """Succeeded runs of the same configuration, newest first; on that hardware only, where it is given."""
        filters: dict[str, Any] = {"spec_key": spec_key, "state": JobState.SUCCEEDED}
        if hardware_id is not None:
            filters["hardware_id"] = hardware_id
        return self.table(filters, order=("-created",))

    def delete(self, run_id: str) -> None:
        """Take a run out of every list and chart; ``restore`` brings it back. Raises StoreError while it is live."""
        with self._connection.write():
            row = self.poll(run_id)
            if row["state"] not in FINAL_STATES:
                raise StoreError(f"Run {run_id} is {row['state']}; cancel it before deleting it.")
            if row["deleted_at"] is None:
                self._set_deleted(run_id, self._clock.wall())

    def restore(self, run_id: str) -> None:
        """Undo ``delete``. A run that is not deleted stays as it is."""
        with self._connection.write():
            if self.poll(run_id)["deleted_at"] is not None:
                self._set_deleted(run_id, None)

    def _set_deleted(self, run_id: str, at: float | None) -> None:
        self._connection.execute("UPDATE runs SET deleted_at = ? WHERE run_id = ?", (at, text(run_id)))
        results_changed(self._connection)

    def purge(self, older_than_s: float = 0.0) -> int:
        """Remove for good, with all their answers, the runs deleted at least so long ago; returns how many."""
        with self._connection.write():
            before = self._clock.wall() - older_than_s
            gone = self._connection.execute(
                f"DELETE FROM runs WHERE deleted_at <= ? AND state NOT IN ({_LIVE}) RETURNING run_id", (before,)
            )
            if gone:
                self._connection.execute(
                    "DELETE FROM questions WHERE NOT EXISTS "
                    "(SELECT 1 FROM answers WHERE answers.question_id = questions.question_id)"
                )
                results_changed(self._connection)
        return len(gone)


def check_same_spec(run: Run, spec: RunSpec) -> None:
    """Raise SpecError when a run is to be resumed with another specification."""
    if run.spec_key != spec.key():
        raise SpecError(f"Run {run.run_id} measures {run.spec}; a run cannot be resumed with another specification.")
