"""Each kind of step and what carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.compress.aware import prepare_for
from engine.compress.distill import distill
from engine.compress.lowrank import factorize
from engine.compress.mixed import mix
from engine.compress.prune import prune_model
from engine.compress.quantize import quantize_model
from engine.compress.train import recover
from engine.compress.work import Work
from spec.errors import ModelError
from spec.recipe import (
    Aware,
    Distill,
    Fp8,
    Int4,
    Int8,
    Int8Dynamic,
    Int8Static,
    LowRank,
    Mixed,
    Nf4,
    Prune,
    Recover,
    Step,
)

STEPS: dict[type[Step], Callable[[Work, Any], None]] = {
    **dict.fromkeys((Int8, Int8Dynamic, Int8Static, Int4, Nf4, Fp8), quantize_model),
    Mixed: mix,
    Prune: prune_model,
    LowRank: factorize,
    Recover: recover,
    Distill: distill,
    Aware: prepare_for,
}


def carry_out(work: Work, step: Step) -> None:
    """Change ``work.model`` as ``step`` says; it is left ready to run, also after an error.

    Raises SpecError, InputError, ModelError, DoesNotFitError, Cancelled.
    """
    try:
        STEPS[type(step)](work, step)
    except ValueError as error:  # of numbers that cannot be rounded
        raise ModelError(f"{step.name} cannot be done to this model: {error}.") from None
    finally:
        work.model.requires_grad_(False).eval()
