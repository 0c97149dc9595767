"""What a run will take, in words: the engine's prediction, fed with what was measured on this machine."""

from __future__ import annotations

from analysis.format import duration, si
from engine.measure.hardware import ceilings_key, fingerprint_of, gpus
from engine.predict import Estimate, Fit, Past, Rates, predict
from spec.run_spec import RunSpec
from store import Store
from tasks.registry import TASKS

SIMILAR = 20
LAB_PROBLEMS = {"test": 1000, "validation": 1000}


def estimate(store: Store, spec: RunSpec) -> Estimate:
    """Memory and time of a run here; nothing is loaded. Raises what an invalid model name raises."""
    problems = spec.task.limit or (LAB_PROBLEMS.get(spec.task.split) if spec.task.kind == "lab-words" else None)
    return predict(
        spec,
        problems=problems,
        default_max_new_tokens=TASKS[spec.task.kind].default_max_new_tokens or 0,
        past=measured(store, spec),
        rates=calibrated(store, spec),
    )


def calibrated(store: Store, spec: RunSpec) -> Rates | None:
    """What ``doctor --calibrate`` found out about the device of this run; None where it was not asked."""
    ceilings = store.settings.get(ceilings_key(), [])
    return Rates.of_ceilings(ceilings, on_gpu=spec.runtime.device != "cpu" and bool(gpus()))


def measured(store: Store, spec: RunSpec) -> list[Past]:
    """Runs of the same model on this machine, newest first."""
    here = fingerprint_of(spec)["hardware_id"]
    columns = ("run_id", "throughput_run_tok_s", "tokens_per_problem")
    rows = store.runs.table({"model": spec.model, "state": "succeeded", "hardware_id": here}, columns, limit=SIMILAR)
    return [
        Past(store.runs.get(r["run_id"], samples=False).spec, r["throughput_run_tok_s"], r["tokens_per_problem"])
        for r in rows
        if r["throughput_run_tok_s"] and r["tokens_per_problem"]
    ]


def sentence(found: Estimate) -> str:
    """The estimate as two lines of markdown."""
    time = roughly(found.seconds)
    if found.needed_bytes is None:
        memory = "n/a" if found.available_bytes is None else "not known"
    else:
        memory = f"up to {si(found.needed_bytes, 'B')}, of {si(found.available_bytes, 'B')} free"
    return f"**Time** {time}  \n**Memory** {memory}  \n:gray[{found.basis}]"


def roughly(seconds: float | None) -> str:
    """A time as exact as a guess can be: ``under 10 s``, ``about 40 s``, ``about 3 min``."""
    if seconds is None:
        return "n/a"
    if seconds < 10:
        return "under 10 s"
    return f"about {duration(round(seconds, -1) if seconds < 120 else round(seconds / 60) * 60)}".replace(".0 s", " s")


def warning(found: Estimate) -> str | None:
    """What to say where memory is short; None where it is not."""
    if found.fit is Fit.NO:
        return (
            f"This needs about {si(found.needed_bytes, 'B')} and {si(found.available_bytes, 'B')} is free: choose a "
            "smaller model or a smaller batch."
        )
    if found.fit is Fit.TIGHT:
        return "This fits unless all answers grow to their limit; a smaller batch would make it safe."
    return None
