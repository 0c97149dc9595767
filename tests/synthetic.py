"""Made-up runs for tests and benchmarks of the pages. Only ever written to a temporary folder, never shipped.

``fill`` goes through the store's own doors, a few runs at a time; ``fill_many`` copies rows in bulk for 100,000.
"""

from __future__ import annotations

import math
import random
from typing import Any

from spec.results import Answer, Candidate, RunResult
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.statistics import percentile, wilson
from spec.strategy import BestOfN, Greedy, Majority, Sample, Strategy, Weighted
from store import Store

MODELS = {"lab-xs": 0.36, "lab-s": 0.56, "lab-m": 0.72, "lab-l": 0.83}
COST = {"lab-xs": 1.0, "lab-s": 2.4, "lab-m": 6.5, "lab-l": 19.0}
HARDWARE = ("feedc0ffee00", "Synthetic CPU, 2 cores")
OTHER = ("feedc0ffee01", "Synthetic GPU")


def strategies() -> list[Strategy]:
    """A spread of strategies."""
    many: list[Strategy] = [Greedy(), Sample()]
    many += [Majority(n=n) for n in (2, 4, 8, 16, 32)]
    many += [Weighted(n=n) for n in (4, 8, 16)]
    return [*many, BestOfN(n=8)]


def result(spec: RunSpec, rng: random.Random, hardware: tuple[str, str] = HARDWARE, n: int = 100) -> RunResult:
    """A result that looks like one of ``spec``: better with more samples and larger models, and dearer."""
    base = MODELS.get(spec.model, 0.5)
    samples = spec.strategy.samples
    gain = 0.11 * math.log2(samples) / 4 * (1.25 if spec.strategy.name in ("weighted", "best-of-n") else 1.0)
    low_temperature = -0.03 if spec.strategy.name == "sample" else 0.0
    share = min(0.97, max(0.02, base + gain * (1 - base) * 1.6 + low_temperature + rng.gauss(0, 0.02)))
    correct = round(share * n)
    low, high = wilson(correct, n)
    speed = 0.9 if spec.precision.weights == "bf16" else 1.0
    seconds = COST.get(spec.model, 3.0) * 0.05 * speed * (samples**0.8) * math.exp(rng.gauss(0, 0.12))
    latency = sorted(seconds * math.exp(rng.gauss(0, 0.3)) for _ in range(n))
    tokens = 90.0 * samples * n
    flops = 2e6 * COST.get(spec.model, 3.0) * tokens
    levels = {k: {"n": n // 8 + (k <= n % 8), "correct": 0} for k in range(1, 9)}
    for _ in range(correct):
        open_levels = [k for k, v in levels.items() if v["correct"] < v["n"]]
        levels[min(open_levels, key=lambda k: k + rng.random() * 6)]["correct"] += 1
    measures: dict[str, float | int | None] = {
        "accuracy": correct / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "n_problems": n,
        "n_correct": correct,
        "n_failed": 0,
        "pass_at_n": min(1.0, correct / n + 0.08),
        "latency_p50_s": percentile(latency, 50),
        "latency_p90_s": percentile(latency, 90),
        "latency_p95_s": percentile(latency, 95),
        "latency_p99_s": percentile(latency, 99),
        "latency_mean_s": sum(latency) / n,
        "ttft_p50_s": seconds / 20,
        "throughput_tok_s": tokens / (seconds * n / 8),
        "throughput_run_tok_s": 0.9 * tokens / (seconds * n / 8),
        "problems_per_s": 8 / seconds,
        "wall_s": seconds * n / 8,
        "load_s": 0.4,
        "tokens_prompt": 60 * n,
        "tokens_generated": int(tokens),
        "flops_generated": flops,
        "flops_total": flops * 1.2,
        "flops_per_problem": flops * 1.2 / n,
        "tokens_per_problem": tokens / n,
        "peak_memory_bytes": int(3e7 * COST.get(spec.model, 3.0)),
        "weights_bytes": int(2e6 * COST.get(spec.model, 3.0)),
    }
    return RunResult(
        measures=measures,
        reasons={"energy_j": "no energy counter on this machine", "perplexity_token": "only for the task perplexity"},
        by_level=levels,
        energy_method="none",
        energy_reason="no energy counter on this machine",
        environment={
            "hardware_id": hardware[0],
            "hardware_name": hardware[1],
            "cpu": hardware[1],
            "cores": 2,
            "device": "cpu",
            "dtype": "bf16",
            "attention": "sdpa",
            "model_fingerprint": f"synthetic-{spec.model}",
            "commit": "0000000",
            "task_hash": "synthetic",
        },
        samples={"latency_s": latency},
        notes=["Synthetic figures for a test of the pages."],
    )


def fill(store: Store, *, answers: int = 0, seed: int = 0) -> list[str]:
    """The whole family under every strategy, plus a few runs on other hardware and another task; the run ids."""
    rng, ids = random.Random(seed), []
    for model in MODELS:
        for strategy in strategies():
            for weights in ("bf16", "fp32"):
                spec = RunSpec(model, Precision(weights=weights), Runtime(), strategy, TaskSpec(limit=100))
                ids.append(store.runs.save(spec, result(spec, rng)))
    for model in ("lab-s", "lab-m"):
        spec = RunSpec(model, strategy=Majority(n=8), task=TaskSpec(limit=100))
        ids.append(store.runs.save(spec, result(spec, rng, OTHER)))
        spec = RunSpec(model, strategy=Greedy(), task=TaskSpec("gsm8k", limit=50))
        ids.append(store.runs.save(spec, result(spec, rng, n=50)))
    if answers:
        store.answers.add(ids[8], [answer(i, rng, 8) for i in range(answers)])
    return ids


def answer(i: int, rng: random.Random, n: int) -> Answer:
    """One answered problem with ``n`` candidates."""
    right = str(40 + i)
    texts = [rng.choice([right, right, str(41 + i), "7"]) for _ in range(n)]
    candidates = tuple(
        Candidate(f"Tom has {t} apples.\nSo the total is {t}.\n#### {t}", t, t == right, 40, "stop") for t in texts
    )
    best = max(set(texts), key=texts.count)
    return Answer(
        problem_id=f"test-{i}",
        repeat=0,
        question=f"Tom has {i} apples and Ana gives him 40 more. <script>alert(1)</script> How many has he?",
        reference=right,
        level=1 + i % 8,
        answer=best,
        correct=best == right,
        chosen=texts.index(best),
        candidates=candidates,
        tokens_prompt=40,
        tokens_generated=40 * n,
        tokens_verifier=0,
        latency_s=0.3 + rng.random(),
        ttft_s=0.05,
    )


def fill_many(store: Store, count: int, seed: int = 0) -> None:
    """``count`` runs in bulk: copies of ``fill``'s rows with other figures. For benchmarks only."""
    rng = random.Random(seed)
    fill(store, seed=seed)
    connection = store.connection
    rows = store.runs.table({"hardware_id": HARDWARE[0], "task": "lab-words"})
    columns = [c for c in rows[0] if c != "run_id"]
    names = ", ".join(["run_id", *columns])
    marks = ",".join("?" * (len(columns) + 1))

    def made(i: int) -> list[Any]:
        row = dict(rng.choice(rows))
        spread = math.exp(rng.gauss(0, 0.5))
        row["accuracy"] = min(0.99, max(0.01, row["accuracy"] - abs(rng.gauss(0, 0.12))))
        row["accuracy_low"], row["accuracy_high"] = wilson(row["accuracy"] * 100, 100)
        for name in ("latency_p50_s", "flops_per_problem", "wall_s"):
            row[name] = row[name] * spread
        return [f"{i:012x}", *(row[c] for c in columns)]

    done = store.runs.count()
    with store.write():
        connection.execute_many(f"INSERT INTO runs ({names}) VALUES ({marks})", (made(i) for i in range(count - done)))
        connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'results'")
