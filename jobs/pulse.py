"""The heartbeat of a leased run: a thread with its own database connection, so that nothing else can hold it up."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from spec.errors import StoreError
from spec.results import Phase, Progress
from store import Lease, LeaseLost, Store, open_store

BEAT_S = 0.5
log = logging.getLogger("isoquant.worker")


class Pulse(threading.Thread):
    """Renews the lease and writes the progress every half second; what it learns it says by its two events.

    ``cancel_requested``: the user asked to stop. ``lost``: the run belongs to somebody else, or to nobody, now.
    """

    def __init__(self, path: str, lease: Lease, beat_s: float = BEAT_S) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.cancel_requested = threading.Event()
        self.lost = threading.Event()
        self.progress: Progress | None = None
        self.phase: Phase | None = None
        self._path, self._lease, self._beat_s = path, lease, beat_s
        self._end = threading.Event()
        self._failing = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        """Beat until the attempt is over. A database that cannot be opened or written is tried again, not given up."""
        store: Store | None = None
        while not self._end.is_set() and not self.lost.is_set():
            begin = time.monotonic()
            try:
                store = store or open_store(self._path)
                if store.jobs.heartbeat(self._lease, self.progress, self.phase):
                    self.cancel_requested.set()
                self._failing = False
            except LeaseLost:
                self.lost.set()
            except StoreError as error:
                if not self._failing:
                    log.warning("The heartbeat could not be written: %s", error)
                self._failing = True
            self._end.wait(max(0.0, begin + self._beat_s - time.monotonic()))
        if store is not None:
            store.close()
