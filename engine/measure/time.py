"""Time: one record per sequence, and the series and the steady window derived from the records.

All instants are seconds of one monotonic clock (``now``), which has no meaning across processes: a resumed run
keeps only the latencies of its earlier attempts, not their instants. The clock can be stopped (``paused``) for what
is no part of a run, so that no time, rate or latency holds it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from spec.statistics import percentile

MAX_STORED_SAMPLES = 10_000

_pause: tuple[float | None, float] = (None, 0.0)  # since when the clock stands, and for how long it stood before


def now() -> float:
    """The instant, in seconds; it stands still while the clock is paused."""
    since, away_s = _pause
    return (time.perf_counter() if since is None else since) - away_s


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock for the block. For the thread that measures; blocks do not nest."""
    global _pause
    since, away_s = time.perf_counter(), _pause[1]
    _pause = (since, away_s)
    try:
        yield
    finally:
        _pause = (None, away_s + time.perf_counter() - since)


def synchronise(device: str) -> None:
    """Wait until the device has finished what was queued on it; without this a GPU's time is not its own."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class SequenceTiming:
    """Instants of one generated sequence.

    Attributes:
        problem_id: the problem it belongs to; ``repeat`` the repetition.
        admitted_s: handed to the engine; waiting for a place in a batch begins here.
        started_s: its batch started (equals ``admitted_s`` where nothing had to wait).
        token_s: when each generated token was on the host, ascending; empty where none was generated.
    """

    problem_id: str
    repeat: int
    admitted_s: float
    started_s: float
    token_s: Sequence[float]

    @property
    def ttft_s(self) -> float | None:
        """First token minus admission, queueing included."""
        return self.token_s[0] - self.admitted_s if self.token_s else None

    @property
    def queue_s(self) -> float:
        """Waiting for a place in a batch."""
        return self.started_s - self.admitted_s

    @property
    def itl_s(self) -> list[float]:
        """Gaps between successive tokens."""
        return [b - a for a, b in zip(self.token_s, self.token_s[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """(last token - first token) / (tokens - 1); undefined for fewer than two tokens."""
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1) if len(self.token_s) > 1 else None


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run in which the machine was as full as asked for: from, to, tokens generated in between."""

    opened_s: float
    closed_s: float
    tokens: int

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.closed_s - self.opened_s

    @property
    def throughput_tok_s(self) -> float:
        """Tokens generated per second of the window."""
        return self.tokens / self.seconds


def steady_window(timings: Sequence[SequenceTiming], batch_size: int) -> Window | None:
    """The steady window: opens once ``batch_size`` sequences are in flight, closes when the queue is empty.

    A sequence is in flight from its start to its last token. The queue is empty when the last sequence has started.
    None where there was no such time, e.g. when everything fitted in one batch.
    """
    done = [t for t in timings if t.token_s]
    if not done:
        return None
    # At equal instants a start counts before an end: a static batch starts and ends as one.
    changes = sorted([(t.started_s, -1) for t in done] + [(t.token_s[-1], 1) for t in done])
    in_flight, opened = 0, None
    for at, change in changes:
        in_flight -= change
        if in_flight >= batch_size:
            opened = at
            break
    closed = max(t.started_s for t in done)
    if opened is None or closed <= opened:
        return None
    tokens = sum(1 for t in done for at in t.token_s if opened < at <= closed)
    return Window(opened, closed, tokens)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """p50, p90, p95, p99 and the mean of ``count`` samples, by linear interpolation."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """Percentiles of a series in any order; None for an empty one."""
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p90, p95, p99 = (percentile(ordered, q) for q in (50, 90, 95, 99))
    return Percentiles(len(ordered), sum(ordered) / len(ordered), p50, p90, p95, p99)


def thin(values: Sequence[float], limit: int = MAX_STORED_SAMPLES) -> list[float]:
    """At most ``limit`` of the values, evenly spaced, order kept, first and last included."""
    n = len(values)
    if n <= limit:
        return list(values)
    if limit == 1:
        return [values[0]]
    return [values[round(i * (n - 1) / (limit - 1))] for i in range(limit)]
