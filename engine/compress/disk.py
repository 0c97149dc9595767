"""What is said when a prepared model, or a part of one, cannot be written."""

from __future__ import annotations

from pathlib import Path

from engine.artifacts import ADVICE
from spec.errors import ModelError, shorten_path
from tasks.files import disk_problem


def unwritten(path: Path, error: Exception) -> ModelError:
    """The error for a folder that could not be written; safetensors hides the system's error in a text."""
    words = disk_problem(error)
    if words is None:
        words = "No space left on device" if "No space left" in str(error) else " ".join(str(error).split())[:120]
    return ModelError(f"The prepared model {shorten_path(path)} cannot be written ({words}); {ADVICE}")
