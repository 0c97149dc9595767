"""A decoding step of the native forward pass as benchmarks time it, in turns with others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.native_runner import NativeRunner

CONTEXT = 64


def blocks_of(size: int, context: int = CONTEXT) -> int:
    """KV blocks of ``size`` sequences with one token behind ``context`` others."""
    return size * (context // BLOCK + 1)


def step_of(runner: NativeRunner, size: int, context: int = CONTEXT) -> Callable[[], None]:
    """One decoding step of ``size`` sequences behind ``context`` tokens each; ``runner`` has ``blocks_of`` them."""
    width = blocks_of(1, context)
    tables = np.arange(size * width, dtype=np.int32).reshape(size, width)
    slots = np.arange(size, dtype=np.int32)
    tokens, positions = np.full(size, 7, dtype=np.int32), np.full(size, context, dtype=np.int32)
    batch = Batch(tokens, positions, slots, tables, slots)
    return lambda: runner.greedy(batch) and None


def in_turns(calls: list[Callable[[], None]], rounds: int, seconds: float) -> list[float]:
    """The median over ``rounds`` of each call's time, each repeated for about ``seconds`` in a round."""
    found: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, times in zip(calls, found, strict=True):
            count, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < seconds or not count:
                call()
                count += 1
            times.append(spent / count)
    return [statistics.median(t) for t in found]
