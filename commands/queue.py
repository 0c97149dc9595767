"""``submit``, ``tour`` and ``worker``: runs go into the queue, and a worker takes them out."""

from __future__ import annotations

import json as jsonlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from commands.database import open_database
from commands.options import Db, Json, check, takes_spec
from commands.output import EXIT_FAILED, note, print_json, say
from spec.choices import JobState
from spec.run_spec import RunSpec
from spec.tour import tour_specs
from store import Store

WAIT_POLL_S = 0.5
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the run has ended; exit code 1 if it did not succeed.")]
WaitForAll = Annotated[
    bool, typer.Option("--wait", help="Stay until all runs have ended; exit code 1 if one did not succeed.")
]
UntilIdle = Annotated[bool, typer.Option("--until-idle", help="Stop when nothing is queued any more.")]
Device = Annotated[str, typer.Option("--device", help="auto: the GPU where there is one; cpu: hide it.")]


@takes_spec
def submit(spec: RunSpec, wait: Wait = False, db: Db = None, json: Json = False) -> int:
    """Queue one run for the worker; prints its id."""
    return _queue([spec], wait, db, json)


def tour(wait: WaitForAll = False, db: Db = None, json: Json = False) -> int:
    """Queue a first sweep that shows what a frontier is: three models, each greedy and by majority vote."""
    specs = tour_specs()
    for spec in specs:
        check(spec)
    return _queue(specs, wait, db, json, source="tour")  # as the button does, which then offers no second one


def _queue(specs: Sequence[RunSpec], wait: bool, db: str | None, json: bool, source: str = "cli") -> int:
    with open_database(db) as store:
        with store.write():
            run_ids = [store.jobs.enqueue(spec, source=source).run_id for spec in specs]
        if not json:
            for run_id, spec in zip(run_ids, specs, strict=True):
                say(f"Queued as run {run_id}: {spec}")
                say(f"  {run_url(run_id)}")
        _say_if_nobody_works(store)
        well = not wait or _wait(store, run_ids)
        if json:
            rows = [_queued(store, run_id, spec) for run_id, spec in zip(run_ids, specs, strict=True)]
            print_json(rows[0] if len(specs) == 1 else {"runs": rows})
    return 0 if well else EXIT_FAILED


def _queued(store: Store, run_id: str, spec: RunSpec) -> dict[str, Any]:
    row = store.runs.poll(run_id)
    return {
        "run_id": run_id,
        "state": row["state"],
        "message": row["message"],
        "url": run_url(run_id),
        "spec": spec.to_dict(),
    }


def worker(device: Device = "auto", until_idle: UntilIdle = False, db: Db = None, json: Json = False) -> None:
    """Take runs from the queue and measure them, until stopped. SIGTERM or Ctrl-C puts the run in hand back."""
    from jobs.worker import Worker

    handler = logging.StreamHandler(sys.stdout if json else sys.stderr)
    handler.setFormatter(JsonLines() if json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("isoquant")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with open_database(db) as store:
            path = store.path
        served = Worker(path, device=device)
        served.install_signals()
        served.work(until_idle=until_idle)
    finally:
        logger.removeHandler(handler)


class JsonLines(logging.Formatter):
    """One JSON object for each log line."""

    def format(self, record: logging.LogRecord) -> str:
        """``{"at", "level", "message"}``; ``at`` in seconds since 1970."""
        return jsonlib.dumps(
            {"at": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        )


def run_url(run_id: str) -> str:
    """Where the web app shows a run, when it runs on this machine."""
    return f"http://127.0.0.1:{os.environ.get('PORT', '8501')}/r/{run_id}"


def _say_if_nobody_works(store: Store) -> None:
    if not store.workers.any_alive():
        note("note: no worker is running; start one with `make run` or `python cli.py worker`.")


def _wait(store: Store, run_ids: Sequence[str]) -> bool:
    """Stay until all runs have ended, saying each state once; whether all have succeeded."""
    said: dict[str, str] = {}
    while True:
        rows = [store.runs.poll(run_id) for run_id in run_ids]
        for row in rows:
            if said.get(row["run_id"]) != row["state"]:
                said[row["run_id"]] = row["state"]
                note(f"Run {row['run_id']} {row['state']}." + (f" {row['message']}" if row["message"] else ""))
        if all(JobState(row["state"]).is_final for row in rows):
            return all(row["state"] == JobState.SUCCEEDED for row in rows)
        time.sleep(WAIT_POLL_S)
