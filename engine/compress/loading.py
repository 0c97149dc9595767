"""Compressed models as a run loads them: from a prepared folder, or made of random weights on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine import artifacts
from engine.artifacts import Artifact
from engine.catalog import ModelRef
from engine.compress.anatomy import layers_of
from engine.compress.checkpoint import Checkpoint
from engine.compress.layout import tie
from engine.compress.linears import QuantizedLinear
from engine.compress.saving import read
from engine.compress.steps import carry_out
from engine.compress.texts import Texts
from engine.compress.work import Work
from engine.devices import torch_dtype
from engine.progress import UNWATCHED, Watch
from engine.recipes import identity
from engine.sizes import ModelSizes
from engine.tokenizers import Tokenizer
from spec.choices import Dtype
from spec.errors import ModelError, SpecError, shorten_path
from spec.recipe import Recipe


def prepared(ref: ModelRef, recipe: Recipe) -> Artifact:
    """The prepared model. Raises ModelError where it is not there, or damaged."""
    found = artifacts.find(identity(ref, recipe))
    if found is None:
        raise ModelError(f"{ref.name} + {recipe} is not prepared yet; `python cli.py compress` does it.")
    return found


def read_artifact(
    artifact: Artifact, device: torch.device, dtype: Dtype, attention: str | None = None
) -> tuple[Any, Tokenizer]:
    """A prepared model on a device, and its tokenizer. Raises ModelError where it is damaged."""
    model, tokenizer = read(artifact, torch_dtype(dtype), attention)
    if device.type != "cpu":
        model = model.to(device)
        tie(model)
    return model, tokenizer


def check_not_prepared(folder: Path) -> None:
    """Raise ModelError for the folder of a prepared model, whose modules the recipe alone tells how to build."""
    found = artifacts.find(folder.name) if folder.parent == artifacts.folder() else None
    if found is not None:
        raise ModelError(
            f"{shorten_path(folder)} is a prepared model, which runs by its recipe: --model {found.model} --recipe "
            f'"{found.recipe}".'
        )


def compress(
    model: Any, tokenizer: Tokenizer, recipe: Recipe, sizes: ModelSizes, watch: Watch = UNWATCHED
) -> dict[str, Any]:
    """Do all steps of a recipe to random weights, in place; nothing is kept. Returns what the steps wrote down.

    Raises SpecError and Cancelled.
    """
    if any(step.models for step in recipe.work):
        raise SpecError("Random weights learn nothing from a teacher; choose a model with weights.", "compression")
    saved = next(p.dtype for p in model.parameters() if p.is_floating_point())
    texts = Texts(recipe.data, tokenizer, sizes.context, sizes.vocab)
    facts: dict[str, Any] = {"kept": list(range(len(layers_of(model))))}
    for step in recipe.work:
        carry_out(
            Work(
                model,
                tokenizer,
                texts,
                Checkpoint(),
                watch.say,
                watch.cancelled,
                facts,
                lambda name: None,
                saved.itemsize * 8,
            ),
            step,
        )
    return facts


def simulated_reason(model: Any, device: torch.device) -> str | None:
    """Why the quantized products of a model do not run at their format's speed on a device; None where they do."""
    ways = {m.path(device) for m in model.modules() if isinstance(m, QuantizedLinear) and m.is_simulated(device)}
    return f"simulated: {', '.join(sorted(ways))}" if ways else None
