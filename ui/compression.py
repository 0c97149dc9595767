"""How the model is compressed, in the form: precision and pruning in front, the rest with the options.

Every widget's key starts with ``run_c_``.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

import streamlit as st

from spec.choices import Dtype
from spec.compression.choices import Criterion, Scaling, Structure
from spec.compression.reduce import MAX_LEVEL, RULES
from spec.parameters import Parameter, parameters
from spec.recipe import STEPS, Calibrate, LowRank, Prune, Quantize, Recipe, Step, parse_recipe
from spec.run_spec import Precision
from ui import fields
from ui.fields import KEEP, field, select

Values = dict[str, Any]
NONE = "none"
DTYPES = [d.value for d in Dtype]
QUANTIZATIONS = [name for name, step in STEPS.items() if issubclass(step, Quantize)]
STRUCTURES = [NONE, *(s.value for s in Structure)]
WEIGHTS = next(p for p in parameters(Precision) if p.name == "weights")
LABELS = {
    "head": "Output layer",
    "ranges": "Ranges",
    "percentile": "Range holds (%)",
    "size": "Mean bits",
    "method": "What goes first",
    "recover": "Fine-tuning steps",
    "rate": "Learning rate",
    "batch": "Texts in a step",
    "ratio": "Low rank",
}


def show_main() -> Values:
    """Precision, what is pruned, and how much."""
    a, b, c = st.columns([2, 2, 1])
    with a:
        summaries = "\n".join(f"- **{n}**: {STEPS[n].summary}" for n in QUANTIZATIONS)
        precision = select(
            "Precision", [*DTYPES, *QUANTIZATIONS], "run_c_precision", DTYPES[0], f"{WEIGHTS.help}\n{summaries}"
        )
    with b:
        structure = select("Pruning", STRUCTURES, "run_c_structure", NONE, _parameter(Prune, "structure").help)
    level = 0.5
    with c:
        if structure not in (NONE, Structure.TWO_OF_FOUR):
            level = st.number_input(
                "Level", 0.05, MAX_LEVEL, "min" if fields.is_filled("run_c_level") else 0.5, 0.05, "%g",
                key="run_c_level", help=_parameter(Prune, "level").help, persist_state=KEEP,
            )  # fmt: skip
    return {"precision": precision, "structure": structure, "level": level}


def show_more(chosen: Values) -> tuple[str, Recipe]:
    """What belongs to the choices in front, low rank, and a recipe of one's own; the weights' format and the recipe.

    Raises SpecError.
    """
    name = chosen["precision"]
    weights, steps = name, []
    details: list[tuple[Parameter, str]] = []
    if chosen["structure"] != NONE:
        details += [(p, "run_c_prune_") for p in _prune_parameters(chosen["structure"])]
    details.append((_low_rank(), "run_c_lowrank_"))
    if name in QUANTIZATIONS:
        weights = ""
        details += [(p, f"run_c_{name}_") for p in parameters(STEPS[name])]
    found = _rows(details)
    if not weights:
        weights = select("Other numbers in", DTYPES, "run_weights", DTYPES[0], WEIGHTS.help)
    if chosen["structure"] != NONE:
        given = {k.removeprefix("run_c_prune_"): v for k, v in found.items() if k.startswith("run_c_prune_")}
        steps.append(Prune(structure=chosen["structure"], level=chosen["level"], **given))
    if (ratio := found["run_c_lowrank_ratio"]) is not None:
        steps.append(LowRank(ratio=ratio))
    if name in QUANTIZATIONS:
        prefix = f"run_c_{name}_"
        steps.append(STEPS[name](**{k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}))
    own = st.text_input(
        "Recipe",
        key="run_c_recipe",
        persist_state=KEEP,
        placeholder=str(Recipe(tuple(steps))) or "distill:teacher=lab-m,steps=500+int4",
        help="Written out, in the place of what is chosen above: steps joined by plus signs. Besides those above there "
        "are recover, distill, qat and calibrate; `python cli.py compress --steps` lists all with their parameters.",
    )
    if own.strip():
        return weights, parse_recipe(own)
    return weights, _with_texts(Recipe(tuple(steps)))


def put(recipe: Recipe, weights: str) -> Values:
    """What the widgets hold for a recipe: its parts where they can be chosen, else its text."""
    values: Values = {"run_c_precision": weights, "run_c_structure": NONE, "run_c_recipe": "", "run_weights": weights}
    values["run_c_lowrank_ratio"] = None
    parts = {type(step): step for step in recipe.work}
    plain = len(parts) == len(recipe.work) and all(isinstance(s, (Prune, LowRank, Quantize)) for s in recipe.work)
    factored = parts.get(LowRank)
    if not plain or (factored is not None and factored != LowRank(ratio=factored.ratio)):  # type: ignore[attr-defined]
        return values | {"run_c_recipe": str(recipe)}
    if recipe.steps and isinstance(recipe.steps[0], Calibrate):
        values["run_c_data"] = recipe.data.data
        if recipe.data != Calibrate(data=recipe.data.data):
            return values | {"run_c_recipe": str(recipe)}
    for step in recipe.work:
        given = {k: v for k, v in step.to_dict().items() if k != "name"}
        if isinstance(step, Prune):
            values |= {"run_c_structure": given.pop("structure"), "run_c_level": given.pop("level")}
            values |= {f"run_c_prune_{k}": v for k, v in given.items()}
        elif isinstance(step, LowRank):
            values["run_c_lowrank_ratio"] = step.ratio
        else:
            values |= {"run_c_precision": step.name} | {f"run_c_{step.name}_{k}": v for k, v in given.items()}
    return values


def _with_texts(recipe: Recipe) -> Recipe:
    """The recipe with the texts that its steps look at, which are asked for where there are such steps."""
    if not recipe.needs_data:
        return recipe
    declared = _parameter(Calibrate, "data")
    data = st.text_input(
        "Sample texts", "" if fields.is_filled("run_c_data") else declared.default, key="run_c_data",
        persist_state=KEEP, help=declared.help,
    )  # fmt: skip
    if data.strip() in ("", declared.default):
        return recipe
    return Recipe((Calibrate(data=data.strip()), *recipe.steps))


def _prune_parameters(structure: str) -> list[Parameter]:
    """Those that mean something for what is taken out, with the ways of choosing that it has."""
    words = {c.name: c.value for c in Criterion if c in RULES[Structure(structure)]}
    allowed = StrEnum("allowed", words)  # type: ignore[misc]
    found = []
    for p in parameters(Prune):
        if p.name == "method":
            found.append(replace(p, type=allowed, default=next(iter(words.values()))))
        elif p.name not in ("structure", "level") and not (
            structure == Structure.TWO_OF_FOUR and p.name in ("scope", "rounds")
        ):
            found.append(p)
    return found


def _low_rank() -> Parameter:
    """The rank to keep; empty factorizes nothing."""
    p = _parameter(LowRank, "ratio")
    words = f"{p.help} Empty: no factorization. Scaled by {Scaling.ACTIVATION}s."
    return replace(p, default=None, low=0.01, high=0.99, optional=True, help=words)


def _parameter(step: type[Step], name: str) -> Parameter:
    return next(p for p in parameters(step) if p.name == name)


def _rows(declared: list[tuple[Parameter, str]], per_row: int = 3) -> Values:
    values: Values = {}
    for start in range(0, len(declared), per_row):
        for column, (p, prefix) in zip(st.columns(per_row), declared[start : start + per_row], strict=False):
            with column:
                values[prefix + p.name] = field(p, prefix + p.name, label=LABELS.get(p.name), placeholder="none")
    return values
