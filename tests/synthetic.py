"""Made-up runs for tests and benchmarks of the pages. Only ever written to a temporary folder, never shipped.

``fill`` goes through the store's own doors, a few runs at a time; ``fill_many`` copies rows in bulk for 100,000.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spec.choices import Fate
from spec.results import Answer, Candidate, Node, RunResult
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.statistics import percentile, wilson
from spec.strategy import BestOfN, Greedy, Majority, Rebase, Sample, Strategy, Weighted
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
        "flops_no_reuse": flops * 1.4,
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


def answered(
    strategy: Strategy, count: int, *, seed: int = 0, share: float = 0.55, shared: bool = True
) -> list[Answer]:
    """Answers to ``count`` problems as ``strategy`` would give them, with their account of the work.

    ``share``: how often a single sample is right; harder problems less often. ``shared``: samples share their prompt.
    """
    rng, n = random.Random(seed), strategy.samples
    has_scores = hasattr(strategy, "reward")
    is_best = isinstance(strategy, BestOfN)
    return [_answered(i, rng, n, share, has_scores, shared, is_best) for i in range(count)]


def _answered(i: int, rng: random.Random, n: int, share: float, scored: bool, shared: bool, is_best: bool) -> Answer:
    base = answer(i, rng, n)
    skill = min(0.98, max(0.02, rng.gauss(share, 0.25)))
    wrong = [str(100 + i), str(200 + i), "7"]
    candidates = []
    for _ in range(n):
        right = rng.random() < skill
        text = str(base.reference) if right else rng.choice(wrong)
        score = min(0.99, max(0.01, rng.gauss(0.7 if right else 0.4, 0.2))) if scored else None
        tokens = rng.randrange(25, 60)
        candidates.append(Candidate(f"So it is {text}.\n#### {text}", text, right, tokens, "stop", score))
    weights: dict[str, float] = {}
    for c in candidates:
        weights[str(c.answer)] = weights.get(str(c.answer), 0.0) + (1.0 if c.score is None else c.score)
    best = max(weights, key=lambda w: weights[w])
    if is_best:
        best = str(max(candidates, key=lambda c: c.score or 0.0).answer)
    written, prompt = sum(c.tokens for c in candidates), 40
    read = prompt if shared else prompt * n
    return replace(
        base,
        answer=best,
        correct=best == base.reference,
        chosen=[c.answer for c in candidates].index(best),
        candidates=tuple(candidates),
        tokens_prompt=read,
        tokens_cached=prompt * n - read,
        tokens_generated=written,
        tokens_verifier=(written + prompt * n) if scored else 0,
        flops_generated=4e6 * written,
        flops_total=4e6 * (written + read) * 1.1 + (3e6 * (written + prompt * n) if scored else 0),
        flops_no_reuse=4e6 * (written + prompt * n) * 1.1 + (3e6 * (written + prompt * n) if scored else 0),
    )


SCALING = (Majority(n=64), Weighted(n=64), BestOfN(n=64), Greedy(), Rebase(n=4), Rebase(n=16), Rebase(n=64))


def fill_scaling(
    store: Store, *, models: Sequence[str] = ("lab-xs", "lab-s", "lab-m"), problems: int = 60
) -> list[str]:
    """Runs of several strategies with all their answers, trees where they search; the run ids, the last model last."""
    ids, rng = [], random.Random(1)
    for model in models:
        for strategy in SCALING:
            spec = RunSpec(model, Precision(weights="bf16"), Runtime(), strategy, TaskSpec(limit=problems))
            ids.append(store.runs.save(spec, result(spec, rng, n=problems)))
            made = answered(strategy, problems, seed=len(model), share=MODELS[model])
            made = [replace(a, flops_generated=a.flops_generated * COST[model]) for a in made]
            made = [replace(a, flops_total=a.flops_total * COST[model]) for a in made]
            made = [replace(a, flops_no_reuse=a.flops_no_reuse * COST[model]) for a in made]
            if isinstance(strategy, Rebase):
                made = [searched(a, strategy.n, rng) for a in made]
            store.answers.add(ids[-1], made)
    return ids


def searched(answer: Answer, width: int, rng: random.Random, depth: int = 5) -> Answer:
    """The answer as a search of that width would have found it: its tree, and its candidates at the leaves."""
    nodes: list[Node] = []
    ends: list[int] = []
    parents: list[int | None] = [None] * width
    for level in range(1, depth + 1):
        made = []
        for parent in parents:
            score = min(0.99, max(0.01, rng.gauss(0.6, 0.25)))
            text = f"Step {level}: {rng.randrange(9)} + {rng.randrange(9)} apples are {rng.randrange(18)}.\n"
            nodes.append(Node(parent, level, text, rng.randrange(8, 40), 0.02 * level + rng.random() / 50, score))
            made.append(len(nodes) - 1)
        last = level == depth
        done = [i for i in made if last or rng.random() < 0.12 * level]
        ends += done
        alive = sorted((i for i in made if i not in done), key=lambda i: -(nodes[i].score or 0))
        parents, room = [], width - len(ends)
        for rank, i in enumerate(alive):
            share = max(0, min(room - len(parents), round((room / 2) / 2**rank)))
            parents += [i] * share
            fate = Fate.EXPANDED if share else Fate.PRUNED
            nodes[i] = replace(nodes[i], fate=str(fate), note=f"{share} of {room} continuations")
        for i in done:
            nodes[i] = replace(nodes[i], fate=str(Fate.FINISHED if rng.random() < 0.9 else Fate.CUT))
        if not parents:
            break
    given = answer.candidates
    candidates = tuple(replace(given[k % len(given)], node=end, score=nodes[end].score) for k, end in enumerate(ends))
    chosen = next((i for i, c in enumerate(candidates) if c.answer == answer.answer), None)
    return replace(answer, candidates=candidates, chosen=chosen, tree=tuple(nodes))


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
