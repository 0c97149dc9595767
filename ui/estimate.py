"""What a run will take: memory from the model's architecture, time from what was measured here before."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from analysis.format import duration, si
from engine.catalog import resolve
from engine.measure.hardware import fingerprint
from spec.choices import Dtype
from spec.errors import IsoquantError
from spec.run_spec import RunSpec
from store import Store
from tasks.registry import TASKS

PROMPT_TOKENS = 128
SIMILAR = 50
LAB_PROBLEMS = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """``memory_bytes`` is weights plus a full batch's KV cache; ``seconds`` comes from ``basis``. None: not known."""

    memory_bytes: int | None
    free_bytes: int
    seconds: float | None
    basis: str

    @property
    def fits(self) -> bool | None:
        """Whether the memory is there; None where the need is not known."""
        return None if self.memory_bytes is None else self.memory_bytes < self.free_bytes


def estimate(store: Store, spec: RunSpec) -> Estimate:
    """Both estimates for this machine; nothing is loaded."""
    seconds, basis = seconds_needed(store, spec)
    return Estimate(memory_needed(spec), psutil.virtual_memory().available, seconds, basis)


def memory_needed(spec: RunSpec) -> int | None:
    """Bytes of the weights, and of the KV cache of a batch of longest answers."""
    try:
        ref = resolve(spec.model)
    except IsoquantError:
        return None
    if ref.sizes is None:
        return None
    chosen = spec.precision.weights
    dtype = str(ref.dtype or Dtype.FP32) if chosen is Dtype.AUTO else str(chosen)
    longest = spec.task.max_new_tokens or TASKS[spec.task.kind].default_max_new_tokens or 0
    length = min(PROMPT_TOKENS + longest, ref.sizes.context or 1 << 30)
    return ref.sizes.weights_bytes(dtype) + spec.runtime.batch_size * length * ref.sizes.kv_bytes_per_token(dtype)


def seconds_needed(store: Store, spec: RunSpec) -> tuple[float | None, str]:
    """Seconds of measuring, from the run here that is most like this one, and what that run was."""
    limit = spec.task.limit or (LAB_PROBLEMS if spec.task.kind == "lab-words" else None)
    rows = store.runs.table(
        {
            "model": spec.model,
            "task": spec.task.name,
            "state": "succeeded",
            "hardware_id": fingerprint()["hardware_id"],
        },
        ("strategy", "n", "batch_size", "weights", "wall_s", "n_problems", "repeats"),
        limit=SIMILAR,
    )
    rows = [r for r in rows if r["wall_s"] and r["n_problems"]]
    if limit is None or not rows:
        return None, "no run of this model on this task has been measured here"
    ours = spec.strategy.samples

    def distance(row: dict[str, object]) -> tuple[bool, float, bool]:
        n = float(str(row["n"]))
        same = row["batch_size"] == spec.runtime.batch_size and row["weights"] == str(spec.precision.weights)
        return (row["strategy"] != spec.strategy.name, abs(n - ours) / (n + ours), not same)

    like = min(rows, key=distance)
    each = like["wall_s"] / (like["n_problems"] * like["repeats"])
    seconds = each * ours / like["n"] * limit * spec.repeats
    return seconds, f"from {like['strategy']} with n = {like['n']} on this machine"


def sentence(found: Estimate) -> str:
    """The estimate in words."""
    time = f"about {duration(found.seconds)}, {found.basis}" if found.seconds is not None else f"unknown: {found.basis}"
    if found.memory_bytes is None:
        memory = "unknown until the model is loaded"
    else:
        memory = f"about {si(found.memory_bytes, 'B')} of {si(found.free_bytes, 'B')} free"
    return f"**Time** {time}  \n**Memory** {memory}"
