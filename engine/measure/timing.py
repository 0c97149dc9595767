"""How long one call takes, with inputs that do not lie in a cache already.

On a GPU many calls are recorded into one CUDA graph, so that what the host does between two of them is not timed. The
inputs go round over as many copies as do not fit into the last cache. On a processor calls are timed one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spec.statistics import percentile

if TYPE_CHECKING:
    import torch

WARM_S, BUDGET_S = 0.2, 1.0
LEAST, MOST = 3, 2000  # timings on a processor
REPLAYS = 40  # of a graph, each one a timing
GRAPH_S = 2e-3  # at least so long is what a graph holds, or the clock would be too coarse
MAX_LAUNCHES, MAX_COPIES = 400, 64
CPU_COPIES_BYTES, GPU_SHARE = 2**28, 0.25  # memory that the copies of the inputs may take


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one call: median and quartiles of ``repeats`` timings. ``note``: what a reader must know."""

    median_s: float
    q1_s: float
    q3_s: float
    repeats: int
    note: str | None = None


def of(seconds: Sequence[float], note: str | None = None) -> Timed:
    """From single timings."""
    ordered = sorted(seconds)
    q1, median, q3 = (percentile(ordered, q) for q in (25, 50, 75))
    return Timed(median, q1, q3, len(ordered), note)


def cache_bytes(device: torch.device) -> int:
    """The last cache before memory: L2 of a GPU, L3 of a processor; 32 MiB where nobody says."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit():
            sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 1))
    return max(sizes, default=2**25)


def copies_for(size: int, device: torch.device, held: int = 0) -> int:
    """How many sets of inputs of which a call reads ``size`` bytes: twice the cache, as memory and patience allow.

    ``held``: bytes that one takes, where it is more.
    """
    from engine.devices import available_bytes

    wanted = 2 * cache_bytes(device) // max(size, 1) + 2
    free = available_bytes(device)
    room = int(free * GPU_SHARE) if device.type == "cuda" else min(CPU_COPIES_BYTES, free // 4)
    return max(1, min(wanted, MAX_COPIES, room // max(size, held, 1)))


def fits_cache_note(size: int, copies: int, device: torch.device) -> str | None:
    """Said where the inputs, copies and all, do not leave the cache."""
    if size * copies > cache_bytes(device):
        return None
    return "the inputs fit into the processor's cache" if device.type == "cpu" else "the inputs fit into the L2 cache"


def time_calls(calls: Sequence[Callable[[], Any]], device: torch.device, budget_s: float = BUDGET_S) -> Timed:
    """Time one call of ``calls``, which do the same with different inputs and are made in turn."""
    if device.type == "cuda":
        return _on_gpu(calls, device, budget_s)
    return _on_cpu(calls, budget_s)


def _on_cpu(calls: Sequence[Callable[[], Any]], budget_s: float) -> Timed:
    at = 0
    until = time.perf_counter() + min(WARM_S, budget_s / 4)
    while at == 0 or time.perf_counter() < until:
        calls[at % len(calls)]()
        at += 1
    seconds: list[float] = []
    until = time.perf_counter() + budget_s
    while len(seconds) < LEAST or (time.perf_counter() < until and len(seconds) < MOST):
        start = time.perf_counter()
        calls[at % len(calls)]()
        seconds.append(time.perf_counter() - start)
        at += 1
    return of(seconds)


def _on_gpu(calls: Sequence[Callable[[], Any]], device: torch.device, budget_s: float) -> Timed:
    import torch

    from engine.recording import Recorder, Unrecordable

    note = None
    with torch.cuda.device(device):
        for call in calls:  # compiles what is compiled at the first call, which is not to be timed
            call()
        torch.cuda.synchronize(device)
        once = _seconds(lambda: [call() for call in calls]) / len(calls)
        launches = max(len(calls), min(MAX_LAUNCHES, int(GRAPH_S / max(once, 1e-7)) + 1))
        launches = -(-launches // len(calls)) * len(calls)

        def work() -> None:
            for i in range(launches):
                calls[i % len(calls)]()

        replay: Callable[[], Any] = work
        try:
            replay = Recorder(device).record(work)[0].replay
        except Unrecordable as error:
            note = f"it cannot be recorded, so the host's part is in the time ({error})"
        replay()
        torch.cuda.synchronize(device)
        seconds: list[float] = []
        until = time.perf_counter() + budget_s
        while len(seconds) < LEAST or (len(seconds) < REPLAYS and time.perf_counter() < until):
            seconds.append(_seconds(replay) / launches)
    return of(seconds, note)


def _seconds(work: Callable[[], Any]) -> float:
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
