"""How fast the store is, on a database of 100,000 runs: ``python -m bench.store [--runs N] [--keep FILE]``.

Everything goes through the store's public face. Each figure is the median of several tries; the run is appended with
hardware and commit to ``bench/results/store.jsonl``. On a machine that does other work, trust ratios, not times.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import against, arguments
from engine.measure.hardware import fingerprint
from spec.measures import MEASURES
from spec.results import Answer, Candidate, Progress, RunResult
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority
from store import Store, open_store
from store.connection import sqlite_version

RESULTS = Path(__file__).parent / "results" / "store.jsonl"
CHUNK = 1000
# What a page may wait for the store, in milliseconds, on 100,000 runs.
GOALS = {"frontier_two_columns_ms": 250.0, "newest_page_ms": 20.0, "poll_ms": 5.0}


def synthetic_spec(rng: random.Random) -> RunSpec:
    """One of some thousand configurations."""
    n = rng.choice((1, 2, 4, 8, 16, 32, 64))
    return RunSpec(
        rng.choice(("lab-xs", "lab-s", "lab-m", "lab-l", "shape:llama-3.2-1b")),
        precision=Precision(rng.choice(("auto", "fp32", "bf16"))),
        runtime=Runtime(batch_size=rng.choice((1, 8, 32, 64))),
        strategy=Greedy() if n == 1 else Majority(n=n),
        task=TaskSpec(limit=rng.choice((100, 1000))),
        seed=rng.randrange(10),
    )


def synthetic_result(rng: random.Random) -> RunResult:
    """A result with every measure; accuracy rises with the logarithm of latency, so that there is a frontier."""
    latency = 10 ** rng.uniform(-2, 2)
    accuracy = min(1.0, max(0.0, 0.5 + 0.1 * rng.gauss(0, 1) + 0.1 * (latency**0.25 - 1)))
    values = {m.name: rng.randrange(1, 10**9) if m.integer else rng.random() * 100 for m in MEASURES.values()}
    return RunResult(
        values | {"accuracy": accuracy, "latency_p50_s": latency},
        reasons={"energy_j": "there is no energy sensor"},
        by_level={level: {"n": 12, "correct": rng.randrange(13)} for level in range(1, 9)},
        environment={"hardware_id": f"machine-{rng.randrange(3)}", "device": "cpu", "commit": "0" * 12},
        samples={"latency_s": [rng.random() for _ in range(10)]},
    )


def fill(store: Store, runs: int, seed: int = 0) -> float:
    """Save ``runs`` synthetic runs, a thousand in one transaction; returns runs per second."""
    rng = random.Random(seed)
    specs = [synthetic_spec(rng) for _ in range(CHUNK)]  # fewer than runs, for making them is not the store's work
    results = [synthetic_result(rng) for _ in range(min(runs, 7 * CHUNK))]
    begin = time.perf_counter()
    for start in range(0, runs, CHUNK):
        with store.write():
            for number in range(start, min(start + CHUNK, runs)):
                store.runs.save(specs[number % len(specs)], results[number % len(results)], source="bench")
    return runs / (time.perf_counter() - begin)


def synthetic_answer(rng: random.Random, number: int, n: int) -> Answer:
    """One of a thousand problems, with ``n`` candidates of about three steps."""
    texts = ["\n".join(f"Tom has {rng.randrange(100)}*{rng.randrange(100)}={i} apples." for i in range(3))] * n
    candidates = tuple(Candidate(text + f" #### {rng.randrange(9)}", "1", True, 40, "stop") for text in texts)
    question = f"Tom keeps apples in {number % 1000} crates of {number % 7} each, and Ann has twice as many. How many?"
    return Answer(
        f"test-{number}", 0, question, "1", 3, "1", True, 0, candidates, 60, 40 * n, 0, rng.random(), rng.random()
    )


def median_ms(name: str, call: Callable[[], Any], tries: int = 7) -> dict[str, float]:
    """Median time of ``call`` in milliseconds, by the clock on the wall and of this process's own work."""
    wall, own = [], []
    for _ in range(tries):
        begin = time.perf_counter(), time.process_time()
        call()
        wall.append((time.perf_counter() - begin[0]) * 1e3)
        own.append((time.process_time() - begin[1]) * 1e3)
    return {f"{name}_ms": round(statistics.median(wall), 3), f"{name}_cpu_ms": round(statistics.median(own), 3)}


def measure_reads(path: Path) -> dict[str, float]:
    """Milliseconds of what pages ask, each on a connection just opened, as pages do."""
    with open_store(path) as store:
        run_id = store.runs.table(columns=["run_id"], limit=1)[0]["run_id"]
    axes = ("latency_p50_s", "accuracy")
    asked: dict[str, Callable[[Store], Any]] = {
        "open": lambda s: None,
        "data_version": lambda s: s.data_version(),
        "poll": lambda s: s.runs.poll(run_id),
        "get": lambda s: s.runs.get(run_id),
        "frontier_two_columns": lambda s: s.runs.frontier_rows(*axes, columns=()),
        "frontier": lambda s: s.runs.frontier_rows(*axes),
        "frontier_filtered": lambda s: s.runs.frontier_rows(*axes, {"model": "lab-s", "n": [8, 16]}),
        "count": lambda s: s.runs.count(),
        "newest_page": lambda s: s.runs.table(limit=50),
        "best_page": lambda s: s.runs.table(order=["-accuracy"], limit=50),
        "search": lambda s: s.runs.search("lab-s majority n=8", limit=50),
        "facets": lambda s: s.runs.facets(["model", "strategy", "n", "task"]),
    }
    figures: dict[str, float] = {}
    for name, ask in asked.items():
        figures |= median_ms(name, lambda ask=ask: _ask(path, ask))
    return figures


def _ask(path: Path, ask: Callable[[Store], Any]) -> None:
    with open_store(path) as store:
        ask(store)


def measure_queue(store: Store, jobs: int = 300) -> dict[str, float]:
    """Jobs per second, each step a durable transaction of its own."""
    rng = random.Random(1)
    specs, result = [synthetic_spec(rng) for _ in range(jobs)], synthetic_result(rng)

    def rate(step: Callable[[int], Any]) -> float:
        begin = time.perf_counter()
        for number in range(jobs):
            step(number)
        return round(jobs / (time.perf_counter() - begin), 1)

    leases: list[Any] = []
    progress = Progress(5, 100, 4, 5, 100, 1.0, 100.0)
    return {
        "enqueue_per_s": rate(lambda i: store.jobs.enqueue(specs[i], source="bench")),
        "claim_per_s": rate(lambda i: leases.append(store.jobs.claim("bench"))),
        "heartbeat_per_s": rate(lambda i: store.jobs.heartbeat(leases[i], progress, "measure")),
        "finish_per_s": rate(lambda i: store.jobs.finish(leases[i], result)),
    }


def measure_answers(store: Store, n: int, answers: int = 2000) -> dict[str, float]:
    """Answers per second with ``n`` candidates, fifty in a transaction, and the file's growth for each."""
    rng = random.Random(n)
    made = [synthetic_answer(rng, number, n) for number in range(answers)]
    run_id = store.runs.create(synthetic_spec(rng), source="bench")
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size, begin = os.path.getsize(store.path), time.perf_counter()
    store.answers.add(run_id, made)
    wrote = time.perf_counter()
    assert store.answers.of_run(run_id) == made
    read = time.perf_counter()
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return {
        f"answers_of_{n}_written_per_s": round(answers / (wrote - begin), 1),
        f"answers_of_{n}_read_per_s": round(answers / (read - wrote), 1),
        f"bytes_per_answer_of_{n}": round((os.path.getsize(store.path) - size) / answers, 1),
    }


def run(path: Path, runs: int) -> dict[str, Any]:
    """All figures, on a database made at ``path`` or found there with enough runs."""
    with open_store(path) as store:
        missing = max(0, runs - store.runs.count())
        figures: dict[str, Any] = {"runs": runs, "sqlite": sqlite_version(), "load_average": os.getloadavg()[0]}
        if missing:
            figures["save_in_bulk_per_s"] = round(fill(store, missing), 1)
        figures["file_mb"] = round(os.path.getsize(path) / 1e6, 1)
    figures |= measure_reads(path)
    with open_store(path) as store:
        figures |= measure_queue(store) | measure_answers(store, 1) | measure_answers(store, 16)
        figures |= median_ms("backup", lambda: store.backup(path.parent / f"copy-{time.monotonic_ns()}.db"), 1)
        figures |= median_ms("integrity", store.integrity, 1)
    return figures


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="make the database here and keep it; one that is there is used again")
    options = parser.parse_args()
    if options.quick:
        options.runs = 2_000
    with tempfile.TemporaryDirectory() as folder:
        figures = run(options.keep or Path(folder) / "bench.db", options.runs)
    machine = fingerprint()
    about = {
        "hardware": machine["hardware_name"],
        "commit": machine["commit"],
        "at": time.strftime("%FT%TZ", time.gmtime()),
    }
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(about | figures) + "\n")
    if options.json:
        numbers = {k: float(v) for k, v in figures.items() if isinstance(v, (int, float))}
        print(against(numbers, GOALS))


if __name__ == "__main__":
    main()
