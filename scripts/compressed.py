"""Measures the lab family compressed in many ways, with three strategies; writes those tables of ``docs/findings.md``.

    python -m scripts.compressed                    # an hour on two CPU cores; what is there already is kept
    python -m scripts.compressed --tables           # only the tables, from what is there

The compressed models are prepared by the worker as it meets them. The page Frontier over the same database, with the
size of the weights across and the accuracy up, is the picture on the README.
"""

from __future__ import annotations

import numpy as np

from analysis.format import tenth_of_percent
from analysis.frontier import frontier
from scripts.tables import DATABASE, table, with_interval, write
from spec.measures import Better
from spec.recipe import parse_recipe
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from store import Store

COMPRESSED = DATABASE.with_name("compressed.db")
MODELS = ("lab-xs", "lab-s", "lab-m")
TRAINING = "steps=400,rate=0.0005"
PRUNED = "prune:structure=neurons,method=activation,level=0.25"
RECIPES = {
    "bf16": "",
    "int8": "int8",
    "mixed, 6 bits, GPTQ": "mixed:size=6,rounding=gptq",
    "nf4": "nf4",
    "int4, GPTQ": "int4:rounding=gptq",
    "int4, trained": f"qat:{TRAINING}+int4",
    "3/4 of the neurons": PRUNED,
    "3/4 of the neurons, trained": f"{PRUNED}+recover:{TRAINING}",
    "3/4 of the neurons, trained, int8": f"{PRUNED}+recover:{TRAINING}+int8",
    "half of the rank": "lowrank:ratio=0.5",
    "half of the rank, trained": f"lowrank:ratio=0.5+recover:{TRAINING}",
}
STRATEGIES = ("greedy", "majority:n=8", "weighted:n=8")
LIMIT, BATCH_SIZE = 400, 64
Values = dict[str, float]


def spec(model: str, recipe: str, strategy: str) -> RunSpec:
    """One run, in the number format that the models are saved in."""
    return RunSpec(
        model,
        compression=parse_recipe(RECIPES[recipe]),
        runtime=Runtime(batch_size=BATCH_SIZE),
        strategy=parse_strategy(strategy),
        task=TaskSpec(limit=LIMIT),
    )


def specs() -> list[RunSpec]:
    """All runs, a compressed model's together, so that a worker loads it once."""
    return [spec(m, r, s) for m in MODELS for r in RECIPES for s in STRATEGIES]


def values(store: Store, wanted: RunSpec) -> Values:
    """The measures of a run; a SystemExit that says what to do where it is not measured."""
    runs = store.runs.find_same(wanted.key())
    if not runs:
        raise SystemExit(f"{wanted} is not measured yet; run python -m scripts.compressed")
    result = store.runs.get(str(runs[0]["run_id"]), samples=False).result
    assert result is not None
    return {name: float(value) for name, value in result.measures.items() if isinstance(value, int | float)}


def compressed(store: Store) -> str:
    """Every compressed model: its size, its distance from the whole one, its accuracy with each strategy."""
    lines = []
    for model in MODELS:
        whole = values(store, spec(model, "bf16", "greedy"))["weights_bytes"]
        for recipe in RECIPES:
            found = [values(store, spec(model, recipe, s)) for s in STRATEGIES]
            size = found[0]["weights_bytes"]
            away = f"{found[0]['logit_kl']:.2g}" if "logit_kl" in found[0] else ""
            first = with_interval(*(found[0][name] for name in ("accuracy", "accuracy_low", "accuracy_high")))
            cells = [f"{size / 1e6:.2f}", f"{100 * size / whole:.0f}", away, first]
            lines.append([f"`{model}`", recipe, *cells, *(tenth_of_percent(f["accuracy"]) for f in found[1:])])
    head = ["model", "weights", "MB", "% of bf16", "divergence", "greedy %", "majority of 8", "weighted, 8"]
    return table(head, lines, 2)


def by_size(store: Store) -> str:
    """The runs that no other one beats in accuracy at the size of its weights."""
    every = [(m, r, s, values(store, spec(m, r, s))) for m in MODELS for r in RECIPES for s in STRATEGIES]
    x, y = (np.array([found[name] for *_, found in every]) for name in ("weights_bytes", "accuracy"))
    lines = []
    for i in frontier(x, y, Better.LOWER, Better.HIGHER):
        model, recipe, strategy, found = every[i]
        shown = with_interval(*(found[name] for name in ("accuracy", "accuracy_low", "accuracy_high")))
        lines.append([f"`{model}`", recipe, f"`{strategy}`", f"{found['weights_bytes'] / 1e6:.2f}", shown])
    return table(["model", "weights", "strategy", "MB", "accuracy %"], lines, 3)


TABLES = {"compressed": compressed, "by_size": by_size}


if __name__ == "__main__":
    write(__doc__, COMPRESSED, specs(), TABLES, read=lambda store: store)
