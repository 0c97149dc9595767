"""The worker: takes runs from the queue, one at a time, and has the engine process measure them.

``Worker(path).work()`` goes on until SIGTERM or Ctrl-C; the run in hand then goes back to the queue and is resumed by
the next worker. It owns the queue's housekeeping as well: leases that ran out are given to whoever is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.measure.hardware import gpus
from jobs.attempt import STALL_S, Attempt, Ending, Orders, Outcome
from jobs.host import CHILD, EngineProcess
from jobs.lock import SlotLock
from jobs.pool import CannotStart, EnginePool
from spec.errors import StoreError, unknown
from store import Lease, Store, open_store

POLL_S = 0.4
SPARE_AFTER_S = 1.0
PRESENCE_S = 5.0
START_AGAIN_S = 5.0
MIN_FREE_BYTES = 256 * 2**20
DEVICES = ("auto", "cpu")
log = logging.getLogger("isoquant.worker")


class Worker:
    """One worker for one database and one device.

    ``device``: ``auto`` gives runs the GPU where there is one; ``cpu`` hides it, and leaves the runs that ask for it to
    another worker. ``command`` starts the engine process.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        device: str = "auto",
        command: Sequence[str] = CHILD,
        stall_s: float = STALL_S,
    ) -> None:
        if device not in DEVICES:
            raise unknown("device", device, DEVICES, field="device")
        self.orders = Orders()
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.stall_s = stall_s
        with open_store(path) as store:
            self.path = store.path
        slot = "cpu" if device == "cpu" or not gpus() else "gpu"
        self.lock = SlotLock(Path(f"{self.path}.worker-{slot}.lock"))
        # Without a GPU in the machine nobody else could take such a run, which then fails with the reason.
        self.devices = DEVICES if device == "cpu" and gpus() else None
        env = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        self.pool = EnginePool(lambda: EngineProcess(command, env=env, keep_fds=(self.lock.fd,)))
        self.presence = Presence(self.path, self.name, device)
        self._idle_since: float | None = None
        self._start_again: float | None = None  # when to try once more to start an engine, after that has failed

    def work(self, *, until_idle: bool = False) -> None:
        """Serve the queue until told to stop, or with ``until_idle`` until nothing is left to do.

        Raises SlotTaken when another worker serves it already.
        """
        self.lock.acquire()
        try:
            self._warm_up()
            with open_store(self.path) as store, self.presence:
                log.info("Worker %s waits for runs in %s.", self.name, self.path)
                while not self.orders.release:
                    if not self._one(store) and until_idle and not store.jobs.any_waiting(self.devices):
                        return
        finally:
            self.pool.close()
            self.lock.release()
            log.info("Stopped.")

    def install_signals(self) -> None:
        """SIGTERM and Ctrl-C stop the worker, the run in hand goes back to the queue; more of them change nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: object) -> None:
        self.orders.release = True

    def _one(self, store: Store) -> bool:
        """Claim and conduct one run; False when there was none."""
        lease = self._claim(store)
        if lease is None:
            self._idle()
            return False
        self._idle_since = None
        self.presence.run_id = lease.run_id
        log.info("Run %s: %s (attempt %d).", lease.run_id, lease.job.spec, lease.job.attempt)
        begin = time.monotonic()
        try:
            ending = Attempt(store, lease, self.pool, orders=self.orders, stall_s=self.stall_s).conduct()
        except CannotStart as error:
            self._wait_for_room(error)
            with contextlib.suppress(StoreError):  # the lease then runs out by itself
                store.jobs.release(lease, str(error))
            return True
        except StoreError as error:
            log.error("Run %s could not be saved: %s It goes on later where it stopped.", lease.run_id, error)
            return True
        finally:
            self.presence.run_id = None
        log.log(*_line(lease.run_id, ending, time.monotonic() - begin))
        return True

    def _claim(self, store: Store) -> Lease | None:
        """The next run, or None: nothing is queued, or there is no room to measure it or to save what it gives."""
        if self._start_again is not None and not self._warm_up():
            return None
        free = shutil.disk_usage(Path(self.path).parent).free
        if free < MIN_FREE_BYTES:
            self._hold_up(f"Only {free // 2**20} MB are free on the disk of {self.path}; free some space.")
            return None
        try:
            store.jobs.reap()
            lease = store.jobs.claim(self.name, self.devices)
        except StoreError as error:
            self._hold_up(str(error))
            return None
        if self.presence.reason is not None:
            log.info("The cause is gone; going on.")
            self.presence.reason = None
        return lease

    def _warm_up(self) -> bool:
        """See to a spare engine; False, after saying why, while no process can be started."""
        if self._start_again is not None and time.monotonic() < self._start_again:
            return False
        try:
            self.pool.warm_up()
        except CannotStart as error:
            self._wait_for_room(error)
            return False
        self._start_again = None
        return True

    def _wait_for_room(self, error: CannotStart) -> None:
        self._hold_up(str(error))
        self._start_again = time.monotonic() + START_AGAIN_S

    def _hold_up(self, reason: str) -> None:
        words = f"{reason} No run is started until that changes."
        if self.presence.reason is None:
            log.error("%s", words)
        self.presence.reason = words

    def _idle(self) -> None:
        """Wait a little, by a random time so that workers do not march in step; keep a spare engine at hand."""
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > SPARE_AFTER_S:
            self._warm_up()
        time.sleep(POLL_S * random.uniform(0.5, 1.0))


class Presence(threading.Thread):
    """Says every few seconds that the worker is there, with its run or why it takes none, so that a page can tell."""

    def __init__(self, path: str, worker: str, device: str) -> None:
        super().__init__(daemon=True, name="presence")
        self.run_id: str | None = None
        self.reason: str | None = None
        self._path, self._worker, self._device = path, worker, device
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        """Until the worker stops, and then say so. A sign that cannot be written now is written a little later."""
        store, known = None, False
        while not self._end.is_set():
            with contextlib.suppress(StoreError):
                store = store or open_store(self._path)
                if not known:
                    store.workers.register(self._worker, self._device)
                    known = True
                store.workers.heartbeat(self._worker, self.run_id, self.reason)
            self._end.wait(PRESENCE_S)
        if store is not None:
            with contextlib.suppress(StoreError):
                store.workers.unregister(self._worker)
            store.close()


def _line(run_id: str, ending: Ending, seconds: float) -> tuple[Any, ...]:
    """What the log says about the end of an attempt: level, format, arguments."""
    well = ending.outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.RELEASED)
    return (
        logging.INFO if well else logging.ERROR,
        "Run %s %s after %.1f s. %s",
        run_id,
        ending.outcome,
        seconds,
        ending.message,
    )
