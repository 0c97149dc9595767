"""Steps of a compression in words that people say, and recipes to begin with.

>>> from spec.recipe import parse_recipe
>>> recipe_words(parse_recipe("prune:structure=neurons,level=0.5,recover=200+int4:group=64,rounding=gptq"))
'half of the neurons out by magnitude, 200 steps of training + int4, groups of 64, GPTQ'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spec.compression.choices import (
    Criterion,
    Grouping,
    Head,
    Imitation,
    Ranges,
    Rounding,
    Scaling,
    Scope,
    Start,
    Structure,
)
from spec.recipe import Aware, Distill, Int4, Int8Static, LowRank, Mixed, Prune, Quantize, Recipe, Recover, Step

# What stands beside the recipe's field; the smallest and quickest first.
READY_MADE = {
    "int8": "int8",
    "int4": "int4",
    "int4 with GPTQ": "int4:rounding=gptq",
    "int4 with AWQ": "int4:rounding=awq",
    "nf4": "nf4",
    "int8, activations too": "int8-dynamic",
    "Mixed, 5 bits on average": "mixed:size=5",
    "Half of the weights out, Wanda": "prune:method=wanda,level=0.5",
    "Half of the neurons out, then training": "prune:structure=neurons,level=0.5,recover=200",
    "Low rank, half of it kept": "lowrank:ratio=0.5",
    "Taught by lab-m": "distill:teacher=lab-m,steps=500",
}
METHODS = {
    Criterion.MAGNITUDE: "by magnitude",
    Criterion.WANDA: "Wanda",
    Criterion.ACTIVATION: "by activations",
    Criterion.TAYLOR: "by gradients",
}
SHARES = {0.25: "a quarter", 0.33: "a third", 0.34: "a third", 0.5: "half", 0.67: "two thirds", 0.75: "three quarters"}
ROUNDINGS = {Rounding.GPTQ: "GPTQ", Rounding.AWQ: "AWQ"}


def recipe_words(recipe: Recipe) -> str:
    """All steps that change the model."""
    return " + ".join(step_words(step) for step in recipe.work)


def step_words(step: Step, facts: Mapping[str, Any] | None = None) -> str:
    """One step; ``facts`` of the artifact it made say how large the groups became that were left to the step."""
    if isinstance(step, Prune):
        return _prune(step)
    if isinstance(step, LowRank):
        scaled = "" if step.scaling is Scaling.ACTIVATION else ", by the numbers alone"
        return f"low rank, {_share(step.ratio)} of it kept{scaled}"
    if isinstance(step, Distill):
        start = ", from new weights" if step.start is Start.RANDOM else ""
        what = "" if step.loss is Imitation.LOGITS else f", {step.loss}"
        return f"taught by {step.teacher}, {step.steps:,} steps{what}{start}"
    if isinstance(step, Recover):
        return f"trained, {step.steps:,} steps{', from new weights' if step.start is Start.RANDOM else ''}"
    if isinstance(step, Aware):
        return f"trained for {step.format}, {step.steps:,} steps"
    return _quantize(step, facts or {}) if isinstance(step, Quantize) else str(step)


def _prune(step: Prune) -> str:
    words = f"{_share(step.level)} of the {step.structure} out"
    if step.structure is Structure.TWO_OF_FOUR:
        words = "two of each four weights out"
    words += f"{' ' if METHODS[step.method].startswith('by') else ', '}{METHODS[step.method]}"
    words += {Scope.GLOBAL: ", wherever least is lost", Scope.OUTPUT: ", as many of each output"}.get(step.scope, "")
    if step.scope is Scope.LAYER and step.method is Criterion.WANDA:
        words += ", as many of each matrix"
    if step.rounds > 1:
        words += f", {step.rounds} rounds"
    return words + (f", {step.recover:,} steps of training" if step.recover else "")


def _quantize(step: Quantize, facts: Mapping[str, Any]) -> str:
    parts = [{"int8-dynamic": "int8, activations too", "int8-static": "int8, activations by fixed ranges"}.get(
        step.name, step.name
    )]  # fmt: skip
    if isinstance(step, Mixed):
        parts = [f"mixed, {step.size:g} bits on average"]
    group = getattr(step, "group", None)
    if group == Grouping.ROW:
        parts.append("one scale a row")
    elif group == Grouping.AUTO:
        found = facts.get("group")
        if isinstance(found, int) and found > 0:
            parts.append(f"groups of {found}")
    elif group is not None:
        parts.append(f"groups of {group}")
    rounding = getattr(step, "rounding", Rounding.NEAREST)
    parts += [ROUNDINGS[rounding]] if rounding in ROUNDINGS else []
    if isinstance(step, Int4) and step.ranges is Ranges.SYMMETRIC:
        parts.append("symmetric")
    if isinstance(step, Int8Static) and step.percentile != Int8Static().percentile:
        parts.append(f"{step.percentile:g} % in range")
    if getattr(step, "head", Head.SAME) is Head.KEEP:
        parts.append("output layer kept")
    return ", ".join(parts)


def _share(level: float) -> str:
    return SHARES.get(round(level, 2), f"{level:.0%}".replace("%", " %"))
