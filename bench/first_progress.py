"""How long from queueing a run to the first progress a page could show: ``python -m bench.first_progress``.

Three cases, each with a worker of its own on an empty database: *cold*, the run is queued in the moment the worker is
started; *warm*, the worker holds the same model; *other*, it holds another model and has been idle since. "First
progress" is the first row of the store that says how many problems of how many are done; "first answer" has one done.
Appended with hardware and commit to ``bench/results/first_progress.jsonl``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.record import against, arguments
from engine.measure.hardware import fingerprint
from spec.choices import JobState
from spec.run_spec import RunSpec, TaskSpec
from store import Store, open_store

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "first_progress.jsonl"
GOALS_S = {"cold": 8.0, "warm": 2.0, "other": 2.0}
IDLE_S = 12.0
QUICK_IDLE_S = 1.0
TIMEOUT_S = 180.0


@contextmanager
def worker(path: Path) -> Iterator[None]:
    """A worker on the database at ``path``, stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "cli.py", "worker", "--db", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def follow(store: Store, spec: RunSpec) -> dict[str, float]:
    """Queue a run and wait for it; seconds until its first progress and its first answer were in the store."""
    begin, seen = time.perf_counter(), {}
    run_id = store.jobs.enqueue(spec).run_id
    while time.perf_counter() - begin < TIMEOUT_S:
        row, now = store.runs.poll(run_id), time.perf_counter() - begin
        if row["phase"]:
            seen.setdefault("first_sign_s", now)
        if row["total"] is not None:
            seen.setdefault("first_progress_s", now)
        if row["done"]:
            seen.setdefault("first_answer_s", now)
        if JobState(row["state"]).is_final:
            if row["state"] != JobState.SUCCEEDED:
                raise RuntimeError(f"the run {row['state']}: {row['message']}")
            return seen
        time.sleep(0.01)
    raise TimeoutError(f"the run took more than {TIMEOUT_S:.0f} s")


def cold(path: Path, spec: RunSpec, other: RunSpec) -> dict[str, float]:
    """Worker and run start at the same moment."""
    with open_store(path) as store, worker(path):
        return follow(store, spec)


def warm(path: Path, spec: RunSpec, other: RunSpec) -> dict[str, float]:
    """The worker has just measured the same configuration."""
    with open_store(path) as store, worker(path):
        follow(store, spec)
        time.sleep(IDLE_S)
        return follow(store, spec)


def other(path: Path, spec: RunSpec, other: RunSpec) -> dict[str, float]:
    """The worker has measured another model and been idle for a while."""
    with open_store(path) as store, worker(path):
        follow(store, other)
        time.sleep(IDLE_S)
        return follow(store, spec)


CASES: tuple[Callable[[Path, RunSpec, RunSpec], dict[str, float]], ...] = (cold, warm, other)


def main() -> None:
    """Measure, print, append."""
    global IDLE_S
    parser = arguments(__doc__)
    parser.add_argument("--model", default="lab-xs")
    parser.add_argument("--other", default="lab-s", help="the model that the worker of the third case holds")
    parser.add_argument("--tries", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.tries, IDLE_S = 1, QUICK_IDLE_S
    spec, second = (RunSpec(m, task=TaskSpec(limit=64)) for m in (chosen.model, chosen.other))
    figures: dict[str, dict[str, float]] = {}
    load = os.getloadavg()[0]
    for case in CASES:
        tries = []
        for _ in range(chosen.tries):
            with tempfile.TemporaryDirectory() as folder:
                tries.append(case(Path(folder) / "isoquant.db", spec, second))
        figures[case.__name__] = {k: round(statistics.median(t[k] for t in tries), 3) for k in tries[0]}
        goal = GOALS_S[case.__name__]
        print(f"{case.__name__:6} {figures[case.__name__]}  goal {goal:g} s", flush=True)
    machine = fingerprint()
    record = {
        "hardware": machine["hardware_name"],
        "commit": machine["commit"],
        "load_before": round(load, 2),
        "model": chosen.model,
        "other_model": chosen.other,
        "tries": chosen.tries,
        "goals_s": GOALS_S,
        **figures,
    }
    if not chosen.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")
    if chosen.json:
        print(against({name: found["first_progress_s"] for name, found in figures.items()}, GOALS_S))


if __name__ == "__main__":
    main()
