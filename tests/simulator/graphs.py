"""CUDA graphs of the simulated GPU: what is launched while one is recorded is done again, on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.simulator.memory import same_memory
from tests.simulator.waiting import WAITS, Capture

BROKEN = "CUDA error: operation failed due to a previous error during capture"
STUCK = "captures_underway.empty() INTERNAL ASSERT FAILED"


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    current: Graph | None = None

    def __init__(self, *_: Any, **__: Any) -> None:
        self._work: list[Callable[[], None]] = []

    def operation(self, run: Callable[[], Any], inputs: Any, outputs: Any) -> None:
        """Note an operation of PyTorch: a replay writes what it makes where the recording's outputs lie."""
        given, made = tensors(inputs), tensors(outputs)
        fresh = [not any(same_memory(t, g) for g in given) for t in made]

        def again() -> None:
            for old, new, is_fresh in zip(made, tensors(run()), fresh, strict=True):
                if is_fresh:
                    old.copy_(new)

        self._work.append(again)

    def launch(self, run: Callable[[], None]) -> None:
        """Note a kernel, which writes into its arguments."""
        self._work.append(run)

    def replay(self) -> None:
        """Do all of it again."""
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.inference_mode():
            for work in self._work:
                work()

    def reset(self) -> None:
        """Forget what was recorded."""
        self._work.clear()


@contextmanager
def recording(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    """Stands for ``torch.cuda.graph``, which waits for the GPU before it begins."""
    WAITS.note("recording", is_asked=True)
    empty_cache()
    Capture.is_on, Graph.current = True, graph
    try:
        yield
    finally:
        was_broken = Capture.is_broken
        Capture.is_on = Capture.is_broken = False
        Graph.current = None
        if was_broken:
            graph.reset()
            Capture.is_stuck = Capture.spoils_random = True  # as PyTorch leaves it: see CUDAGraph::capture_end
            raise RuntimeError(BROKEN)
        Capture.spoils_random = False


def empty_cache() -> None:
    """Nothing is kept, but PyTorch's allocator refuses while it believes that a graph is being recorded."""
    if Capture.is_stuck:
        raise RuntimeError(STUCK)


def end_allocate_to_pool(_: int, pool: tuple[int, int]) -> None:
    """Stands for ``torch._C._cuda_endAllocateToPool``."""
    if not Capture.is_stuck:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
    Capture.is_stuck = False


def tensors(values: Any) -> list[torch.Tensor]:
    """The tensors of nested arguments or results."""
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
