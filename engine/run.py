"""The one path of a run: validate, load, warm up, measure, check, summarise.

>>> result = execute(RunSpec("lab-s", task=TaskSpec("lab-words", limit=20)))  # doctest: +SKIP
>>> result.measures["accuracy"]  # doctest: +SKIP
0.65
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.asking import Asking
from engine.environment import environment
from engine.measure.memory import reset_peak
from engine.measure.summary import summarise
from engine.models import ModelHost
from engine.progress import stop_if
from engine.reading import measure_text
from engine.setup import set_up
from spec.results import Answer, Event, Origin, Phase, RunResult
from spec.run_spec import RunSpec
from tasks.registry import check_votes, load_task


def ignore(event: Event) -> None:
    """Send events nowhere."""


def never() -> bool:
    """Never cancelled."""
    return False


def execute(
    spec: RunSpec,
    on_event: Callable[[Event], None] = ignore,
    *,
    host: ModelHost | None = None,
    answered: Sequence[Answer] = (),
    cancelled: Callable[[], bool] = never,
    task: Any = None,
) -> RunResult:
    """Run a specification and measure it.

    Args:
        spec: what to run.
        on_event: receives Phase, Origin, Progress and Answered, in the calling thread.
        host: keeps models loaded between runs; without one the model is loaded for this run alone.
        answered: what an earlier attempt at the same run measured; counted, not asked again.
        cancelled: asked several times a second.
        task: used instead of the task the spec names; any object with the face of ``tasks.task``.

    Raises the errors of spec.errors: SpecError, InputError, ModelError, DoesNotFitError, Cancelled.
    """
    check_votes(spec)
    task = task or load_task(spec.task)
    stop_if(cancelled)
    setup = set_up(spec, task, host or ModelHost(), on_event, cancelled)
    stop_if(cancelled)
    reward = setup.reward.fingerprint if setup.reward else None
    on_event(Origin(setup.loaded.fingerprint, task.content_hash(), reward))
    reset_peak(setup.device)
    record, prompt = measure_text(setup) if task.kind == "text" else Asking(setup, answered).measure()
    on_event(Phase("summarise", "Summing up"))
    result = summarise(record, environment(spec, setup.loaded, setup.reward, task, prompt, setup.ran, setup.server))
    skipped = [f"Left out of the task: {line}" for line in getattr(task, "skipped", [])]
    return replace(result, notes=[*setup.notes, *skipped, *result.notes])
