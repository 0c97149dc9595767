"""The two sides of the engine's benchmark: models, prompts, and how each side is driven."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

from engine.backends.isoquant import IsoquantBackend, Layout
from engine.backends.rows import Backend, Grown, Row
from engine.backends.transformers import TransformersBackend
from engine.models import LoadedModel, ModelHost
from engine.runtime.plan import Plan
from engine.sampling import Sampling, stream_key
from spec.choices import Dtype
from spec.run_spec import Precision, RunSpec, TaskSpec
from tasks.registry import load_task

HOST = ModelHost(keep=8)
BUDGET = 512
STOP = ("\nQuestion:",)


@lru_cache(maxsize=8)
def model(name: str, dtype: Dtype = Dtype.FP32) -> LoadedModel:
    """A loaded model, fp32 unless told otherwise: what both sides compute exactly alike."""
    return HOST.get(RunSpec(name, precision=Precision(dtype)))


def prompts(name: str, count: int) -> list[tuple[int, ...]]:
    """Token ids of the first problems of lab-words."""
    task = load_task(TaskSpec(limit=count))
    return [tuple(model(name).tokenizer.encode(task.prompt(p))) for p in task.problems()]  # type: ignore[union-attr]


def rows(
    contexts: Sequence[tuple[int, ...]],
    limit: int,
    n: int = 1,
    sampling: Sampling | None = None,
    stop: tuple[str, ...] = STOP,
) -> list[Row]:
    """``n`` rows for each context."""
    return [
        Row(c, limit, sampling, stream_key(0, 0, str(i), k), 0, stop, (i,))
        for i, c in enumerate(contexts)
        for k in range(n)
    ]


def ours(name: str, batch_size: int, longest: int = 512, dtype: Dtype = Dtype.FP32, **more: object) -> IsoquantBackend:
    """Our back end on one model; ``more`` goes to ``Layout``."""
    plan = Plan(batch_size, max(BUDGET, batch_size))
    return IsoquantBackend({None: model(name, dtype)}, Layout(plan, longest, **more))  # type: ignore[arg-type]


def theirs(name: str, batch_size: int, dtype: Dtype = Dtype.FP32) -> TransformersBackend:
    """transformers' generate."""
    return TransformersBackend(model(name, dtype), batch_size)


def drive(backend: Backend, some: Sequence[Row]) -> tuple[float, list[Grown]]:
    """Run rows to their ends; seconds, and what became of them in order."""
    started = time.perf_counter()
    backend.submit(some)
    found: dict[Row, Grown] = {}
    while backend.busy:
        found.update(backend.step(lambda tokens: None))
    return time.perf_counter() - started, [found[r] for r in some]


def in_turns(tries: int, *sides: Callable[[], float]) -> list[float]:
    """The median seconds of each side, measured in turns."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(tries):
        for side, times in zip(sides, taken, strict=True):
            times.append(side())
    return [statistics.median(times) for times in taken]


def equal(a: Sequence[Grown], b: Sequence[Grown]) -> str:
    """How many of two sides' texts are token for token the same."""
    same = sum(x.extension.ids == y.extension.ids for x, y in zip(a, b, strict=True))
    return f"{same} of {len(a)} outputs equal"
