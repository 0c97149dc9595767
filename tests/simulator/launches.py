"""Launches of Triton's kernels on the simulated GPU: interpreted, in any order of their programs."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.simulator.graphs import Graph, tensors
from tests.simulator.memory import on_gpu


def install() -> None:
    """Put itself between a launch and the interpreter."""
    import triton
    from triton.runtime import interpreter

    executor, original = interpreter.GridExecutor, interpreter.GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if not all(on_gpu(t) for t in tensors((args, kwargs))):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")

        def run() -> None:
            more = kwargs | {"UPCAST": True} if "UPCAST" in kwargs else kwargs  # the interpreter has no bf16 products
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                original(self, *args, **more)

        run()
        if Graph.current is not None:
            Graph.current.launch(run)

    executor.__call__ = launch
    quicken()
    _shuffle(interpreter)
    assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before Triton is imported"


def quicken() -> None:
    """Give Triton's language to the interpreter once, instead of at each launch and each call of a helper."""
    from triton.runtime import interpreter

    original, known = interpreter._patch_lang, set[int]()
    kept = SimpleNamespace(restore=lambda: None)

    def once(function: Any) -> Any:
        if id(function.__globals__) not in known:
            known.add(id(function.__globals__))
            original(function)
        return kept

    interpreter._patch_lang = once


def _shuffle(interpreter: Any) -> None:
    """Programs of a grid run in any order, as on a GPU: each takes another one's place."""
    builder, place = interpreter.interpreter_builder, interpreter.interpreter_builder.set_grid_idx
    order: dict[str, Any] = {}

    def set_dim(nx: int, ny: int, nz: int) -> None:
        grid = list(itertools.product(range(nx), range(ny), range(nz)))
        random.Random(len(grid)).shuffle(grid)
        order["left"] = iter(grid)
        type(builder).set_grid_dim(builder, nx, ny, nz)

    builder.set_grid_dim = set_dim
    builder.set_grid_idx = lambda *_: place(*next(order["left"]))
