"""Opens the back end that a run names, and the judge beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.backends.compiling import Compiled
from engine.backends.isoquant import IsoquantBackend, Layout
from engine.backends.onnxruntime import OnnxBackend
from engine.backends.openai import OpenAIBackend
from engine.backends.rows import Backend
from engine.backends.transformers import TransformersBackend
from engine.rewards import PaddedJudge
from engine.runtime.judge import RuntimeJudge
from engine.runtime.plan import Plan
from engine.runtime.support import Unsupported
from engine.runtime.way import Way
from engine.scheduler import Judge
from engine.setup import Setup
from spec.choices import Backend as Name
from spec.choices import Batching, Caching, Fusion
from spec.errors import SpecError
from spec.run_spec import RunSpec
from spec.strategy import EarlyExit, Lookup, Speculative


@contextmanager
def open_backend(setup: Setup, longest: int) -> Iterator[tuple[Backend, Judge | None]]:
    """The back end of a run and, where its strategy asks for scores, a judge; closed at the end.

    ``longest``: tokens of the longest sequence expected. Raises SpecError, DoesNotFitError.
    """
    own = setup.spec.runtime.backend is Name.ISOQUANT
    backend = _open(setup, longest)
    judge: Judge | None = None
    try:
        if setup.reward is not None:
            judge = _judge(setup, longest) if own else PaddedJudge(setup.reward, setup.spec.runtime.batch_size)
        yield backend, judge
    finally:
        if judge is not None:
            judge.close()
        backend.close()


def _open(setup: Setup, longest: int) -> Backend:
    runtime = setup.spec.runtime
    if setup.server is not None:
        return OpenAIBackend(setup.server, setup.pieces, runtime.batch_size, setup.note)
    if runtime.backend is Name.ISOQUANT:
        return _isoquant(setup, longest)
    if runtime.backend is Name.ONNXRUNTIME:
        return OnnxBackend(setup.loaded, runtime.batch_size)
    return _transformers(setup, longest)


def _isoquant(setup: Setup, longest: int) -> IsoquantBackend:
    spec = setup.spec
    plan = Plan(
        batch_size=spec.runtime.batch_size,
        budget=max(spec.runtime.chunk, spec.runtime.batch_size),
        static=spec.runtime.batching is Batching.STATIC,
        kv_cache=spec.runtime.caching is not Caching.OFF,
    )
    share = spec.runtime.caching in (Caching.AUTO, Caching.PREFIX)
    exits = isinstance(spec.strategy, EarlyExit)
    way = Way(spec.runtime.attention, spec.runtime.fusion, spec.runtime.graphs, spec.precision.kv_cache)
    guesses = spec.strategy.tokens if isinstance(spec.strategy, (Lookup, Speculative)) else 0
    layout = Layout(plan, longest, share=share, drafts=_drafts(spec), guesses=guesses, exits=exits, way=way, sole=True)
    return IsoquantBackend(setup.models, layout)


def _judge(setup: Setup, longest: int) -> Judge:
    """The reward model on our runtime; one that it cannot run reads in padded batches, and a note says so."""
    runtime = setup.spec.runtime
    assert setup.reward is not None
    share = runtime.caching in (Caching.AUTO, Caching.PREFIX)
    try:
        return RuntimeJudge(setup.reward, runtime.batch_size, longest, runtime.chunk, share, sole=True)
    except Unsupported as error:
        setup.note(f"The reward model reads every solution whole, for our runtime cannot run it: {error}.")
        return PaddedJudge(setup.reward, runtime.batch_size)


def _drafts(spec: RunSpec) -> str | None:
    return "" if isinstance(spec.strategy, Lookup) else spec.strategy.draft_name


def _transformers(setup: Setup, longest: int) -> TransformersBackend:
    if setup.others:
        raise SpecError(
            f"The strategy {setup.spec.strategy.name} asks several models, which runs on the isoquant back end.",
            field="runtime.backend",
        )
    runtime = setup.spec.runtime
    compiled = None
    if runtime.fusion is Fusion.COMPILE:
        if runtime.caching is Caching.OFF:
            raise SpecError(
                "Compiled steps need a cache of a fixed size; leave caching at auto.", field="runtime.caching"
            )
        compiled = Compiled(setup.loaded.model, runtime.batch_size, longest)
    return TransformersBackend(
        setup.loaded, runtime.batch_size, runtime.caching is not Caching.OFF, runtime.attention, compiled
    )
