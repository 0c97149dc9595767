"""The command line that does what the form does."""

from __future__ import annotations

import shlex
from typing import Any

from spec.parameters import parameters
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec

NAMES = {"weights": "precision", "name": "task"}


def command(spec: RunSpec, verb: str = "run") -> str:
    """``python cli.py run ...`` with what differs from the defaults, ready for a shell."""
    words = ["python", "cli.py", verb, "--model", spec.model, "--strategy", str(spec.strategy)]
    if spec.compression:
        words += ["--recipe", str(spec.compression)]
    words += _differing(spec.precision, Precision) + _differing(spec.runtime, Runtime) + _differing(spec.task, TaskSpec)
    words += _differing(spec, RunSpec)
    if spec.task.skip_bad:
        words.append("--skip-bad")
    return shlex.join(words)


def _differing(part: Any, kind: type) -> list[str]:
    words: list[str] = []
    for p in parameters(kind):
        value = getattr(part, p.name)
        if value is not None and (value != p.default or p.name == "name"):
            words += ["--" + NAMES.get(p.name, p.name).replace("_", "-"), str(value)]
    return words
