"""A thread that reads a value at a steady pace while the run goes on; shared by power, energy and memory sampling."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Poller(Generic[Value]):
    """Calls ``read`` at once, then every ``interval_s``, and once more at ``stop``; keeps (instant, value) pairs.

    A ``read`` that raises ends the sampling; ``stop`` raises that error, so that a dead sensor is never taken for
    a quiet one. Instants are those of the clock that never stands still: a sensor goes on while ``time.paused``.

    With ``merge``, for a value sampled often in a long run, only one pair is kept: the last instant, and all values
    merged into one.

        >>> with Poller(lambda: 5, interval_s=1.0) as poller:
        ...     pass
        >>> [value for _, value in poller.samples]
        [5, 5]
    """

    def __init__(
        self, read: Callable[[], Value], interval_s: float, merge: Callable[[Value, Value], Value] | None = None
    ) -> None:
        self._read = read
        self._merge = merge
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._loop, name="isoquant-poller", daemon=True)
        self.samples: list[tuple[float, Value]] = []

    def start(self) -> None:
        """Take the first sample here and now, then go on in the background."""
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample and end; raises what ``read`` raised in between."""
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._sample()

    def _loop(self) -> None:
        try:
            while not self._stopping.wait(self._interval_s):
                self._sample()
        except Exception as error:
            self._error = error

    def _sample(self) -> None:
        at, value = time.perf_counter(), self._read()
        if self._merge is not None and self.samples:
            self.samples[0] = (at, self._merge(self.samples[0][1], value))
        else:
            self.samples.append((at, value))

    @property
    def max_gap_s(self) -> float:
        """Longest time between two successive samples; 0 where they are merged."""
        times = [at for at, _ in self.samples]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def __enter__(self) -> Poller[Value]:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
