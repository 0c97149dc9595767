"""Which number formats and recipes have a form in ONNX Runtime. No torch and no ONNX: pages ask it too."""

from __future__ import annotations

from spec.choices import Dtype
from spec.compression.choices import Rounding
from spec.recipe import Int4, Int8, Int8Dynamic, Recipe

WORKS = "int8, int8-dynamic and int4 with rounding=nearest"


def recipe_reason(recipe: Recipe) -> str | None:
    """Why a recipe cannot be exported; None where it can."""
    for step in recipe.work:
        if not isinstance(step, (Int8, Int8Dynamic, Int4)):
            return f"{step.name} has no form in ONNX Runtime that computes the same; {WORKS} have one"
        if isinstance(step, Int4) and step.rounding is not Rounding.NEAREST:
            return f"int4 is rounded to the nearest here, not by {step.rounding}; choose rounding=nearest"
    return None


def dtype_reason(dtype: Dtype, recipe: Recipe) -> str | None:
    """Why a number format cannot run; None where it can."""
    if dtype is Dtype.BF16:
        return "ONNX Runtime's processor kernels have no matrix product in bf16; choose fp32 or fp16"
    if dtype is Dtype.FP16 and recipe:
        return f"what {recipe.work[-1].name} leaves as it was is kept in fp32 here; choose fp32, or fp16 with no recipe"
    return None
