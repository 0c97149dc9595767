"""One try at a leased run: feed the engine process, save what it measures as it comes, and end in exactly one way.

The worker and the command line's ``run`` use the same function, so a run is the same run wherever it was started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import psutil

from jobs.host import EngineDied
from jobs.pool import EnginePool
from jobs.protocol import LAST_WORDS, ProtocolError, as_error, as_event, as_result
from jobs.pulse import Pulse
from spec.errors import DoesNotFitError, InputError, IsoquantError, StoreError
from spec.results import Answer, Answered, Event, Origin, Phase, Progress, RunResult
from store import Lease, LeaseLost, Store

BATCH = 50
BATCH_S = 0.25
TICK_S = 0.1
STALL_S = 600.0
BUSY_STALL_S = 3600.0  # of one that computes: reading long prompts with a large model takes many minutes between steps
BUSY_SHARE = 0.05  # of a core; what the threads that sample memory and power use stays below
LOOK_S = 10.0
SHOWN_BESIDE = 3
RETRY_WRITE_S = 1.0
PASSING = frozenset({5, 6, 10, 13})  # SQLITE_BUSY, _LOCKED, _IOERR, _FULL
CANCELLED = "Cancelled; what was measured until then is kept."
T = TypeVar("T")
log = logging.getLogger("isoquant.worker")


class Outcome(StrEnum):
    """How an attempt ended. ``released``: back in the queue, to be resumed; ``lost``: no longer ours to decide."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    RELEASED = "released"
    LOST = "lost"


@dataclass
class Ending:
    """What the attempt ends with; ``error`` where a user can act on it, ``detail`` for the record."""

    outcome: Outcome
    message: str = ""
    detail: str = ""
    result: RunResult | None = None
    error: IsoquantError | None = None


@dataclass
class Orders:
    """What the owner of an attempt asks of it. Plain flags, for a signal handler may set them and must take no lock."""

    release: bool = False
    cancel: bool = False


class Attempt:
    """``Attempt(store, lease, pool).conduct()`` runs the lease to its end and records that end."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        pool: EnginePool,
        *,
        orders: Orders | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        stall_s: float = STALL_S,
        busy_stall_s: float = BUSY_STALL_S,
    ) -> None:
        self.store, self.lease, self.pool = store, lease, pool
        self.orders = orders or Orders()
        self.on_event, self.stall_s, self.busy_stall_s = on_event, stall_s, busy_stall_s
        self._unsaved: list[Answer] = []
        self._unsaved_since = 0.0
        self._silent_s = 0.0  # listened to in vain; what we spend waiting for the disk or frozen is not the engine's
        self._idle_s = 0.0  # the part of that since the engine was last seen computing
        self._looked: tuple[float, float | None] = (0.0, None)  # how long it had been silent then, its processor time

    def conduct(self) -> Ending:
        """Run, save, record. Raises StoreError when the end could not be recorded; a lost lease is an ending."""
        with Pulse(self.store.path, self.lease) as self.pulse:
            try:
                return self._conduct()
            except LeaseLost:
                self.pool.discard()
                return Ending(Outcome.LOST, "The run was taken over or ended by someone else.")
            except BaseException:
                self.pool.discard()
                raise

    def _conduct(self) -> Ending:
        try:
            ending = self._run()
            self._save(force=True)
            self._record(ending)
        except LeaseLost:
            raise
        except StoreError as error:
            if may_pass(error):
                raise
            self.pool.discard()
            ending = Ending(Outcome.FAILED, f"What was measured could not be saved: {error}", error=error)
            self._record(ending)
        return ending

    def _run(self) -> Ending:
        """Drive the engine until it says its last word, dies, stalls, or is stopped."""
        spec = self.lease.job.spec
        answered = self.store.answers.of_run(self.lease.run_id, trees=False)  # the engine needs none
        self.engine = self.pool.take(spec)
        if not self.engine.ready:
            self._show(Phase("load", "Starting the engine"))
        try:
            self.engine.run(spec, answered)
            while (ending := self._stopped()) is None:
                message = self.engine.receive(TICK_S)
                if message is None:
                    self._wait_in_vain()
                elif (ending := self._hear(message)) is not None:
                    break
                self._save()
        except EngineDied as death:
            ending = Ending(Outcome.CRASHED, str(death), death.stderr_tail)
        except ProtocolError as error:
            ending = Ending(Outcome.CRASHED, f"The engine process sent {error}.", self.engine.stderr_tail())
        except InputError as changed:  # since the answers that are kept were given
            self.pool.discard()
            ending = Ending(Outcome.FAILED, str(changed), type(changed).__name__, error=changed)
        if ending.outcome is Outcome.CRASHED or isinstance(ending.error, DoesNotFitError):
            self.pool.discard()
        if ending.outcome is Outcome.CRASHED and self._cancel_wanted:
            ending = Ending(Outcome.CANCELLED, CANCELLED, ending.detail)
        return ending

    def _wait_in_vain(self) -> None:
        """Count the silence, and look now and then whether the engine computes meanwhile.

        Between two decoding steps it says nothing, and on a slow machine the first step may take longer than any
        silence of a healthy idle process. One that waits for a GPU is seen computing too: it spins.
        """
        self._silent_s += TICK_S
        self._idle_s += TICK_S
        looked_s, before = self._looked
        passed = self._silent_s - looked_s
        if before is not None and passed < min(LOOK_S, self.stall_s / 5):
            return
        used = cpu_s(self.engine.pid)
        if used is not None and before is not None and used - before > BUSY_SHARE * passed:
            self._idle_s = 0.0
        self._looked = (self._silent_s, used)

    def _stalled(self) -> str | None:
        """What is wrong with an engine that has been silent for too long; None for one that may go on."""
        if self._idle_s > self.stall_s:
            return f"The engine process gave no sign of life for {self._idle_s:.0f} s and was ended."
        if self._silent_s > self.busy_stall_s:
            return f"The engine process computed for {self._silent_s:.0f} s without a word and was ended."
        return None

    @property
    def _cancel_wanted(self) -> bool:
        return self.orders.cancel or self.pulse.cancel_requested.is_set()

    def _stopped(self) -> Ending | None:
        """The ending that somebody else wants, if anybody does; the engine has obeyed it or is dead by then.

        A result that was on its way meanwhile ends the run after all: everything is measured.
        """
        if self.pulse.lost.is_set():
            raise LeaseLost
        if self.orders.release:
            wanted = Ending(Outcome.RELEASED, "The worker was stopped; the run goes on when a worker is there again.")
        elif self._cancel_wanted:
            wanted = Ending(Outcome.CANCELLED, CANCELLED)
        elif (words := self._stalled()) is not None:
            return Ending(Outcome.CRASHED, words, self.engine.stderr_tail())
        else:
            return None
        results: list[RunResult] = []

        def take(message: dict[str, Any]) -> None:
            if message["event"] == "result":
                results.append(as_result(message))
            self._keep(message)

        try:
            obeyed = self.engine.cancel(take)
        except ProtocolError:
            obeyed = False
        if not obeyed:
            self.pool.discard()
        return Ending(Outcome.SUCCEEDED, result=results[0]) if results else wanted

    def _hear(self, message: dict[str, Any]) -> Ending | None:
        """Take in one message; the ending, when it is a last word."""
        self._silent_s = self._idle_s = 0.0
        self._looked = (0.0, None)
        if message["event"] == "result":
            return Ending(Outcome.SUCCEEDED, result=as_result(message))
        if message["event"] == "cancelled":
            return Ending(Outcome.CRASHED, "The engine stopped although nobody had asked it to.")
        if message["event"] == "error":
            error = as_error(message)
            if error is None:
                words = f"The engine failed: {message.get('message')}"
                return Ending(Outcome.CRASHED, words, self.engine.stderr_tail())
            return Ending(Outcome.FAILED, str(error), type(error).__name__, error=error)
        self._keep(message)
        return None

    def _keep(self, message: dict[str, Any]) -> None:
        """Take in what was measured, whatever becomes of the run."""
        event = as_event(message) if message["event"] not in LAST_WORDS else None
        if isinstance(event, Origin):
            self._persist(partial(self.store.answers.begin, self.lease, event))
        if isinstance(event, Answered):
            if not self._unsaved:
                self._unsaved_since = time.monotonic()
            self._unsaved.append(event.answer)
        if event is not None:
            self._show(event)

    def _show(self, event: Event) -> None:
        """Pass an event on to whoever watches: the heartbeat writes it, the command line draws it."""
        if isinstance(event, Progress):
            self.pulse.progress = event
        elif isinstance(event, Phase):
            self.pulse.phase = event
        self.on_event(event)

    def _save(self, force: bool = False) -> None:
        """Write the answers of the last quarter second, 50 at a time: a commit for each costs 5 to 30 times more."""
        due = force or len(self._unsaved) >= BATCH or time.monotonic() - self._unsaved_since > BATCH_S
        while due and self._unsaved:
            add = partial(self.store.answers.add, self.lease, self._unsaved[:BATCH], self.pulse.progress)
            self._persist(add)
            del self._unsaved[:BATCH]

    def _record(self, ending: Ending) -> None:
        """Write the end of the attempt into the queue."""
        jobs, lease = self.store.jobs, self.lease
        if (last := self.pulse.progress) is not None:  # a quick run is over before the heartbeat writes how far it came
            self._persist(lambda: jobs.heartbeat(lease, last, self.pulse.phase))
        match ending.outcome:
            case Outcome.SUCCEEDED:
                if (result := ending.result) is not None and (others := jobs.beside(lease.run_id)):
                    ending.result = replace(result, notes=[*result.notes, beside(others)])
                self._persist(lambda: jobs.finish(lease, ending.result))
            case Outcome.CANCELLED:
                self._persist(lambda: jobs.finish_cancelled(lease))
            case Outcome.RELEASED:
                self._persist(lambda: jobs.release(lease, ending.message))
            case _:
                retry = ending.outcome is Outcome.CRASHED
                self._persist(lambda: jobs.fail(lease, ending.message, ending.detail, retry=retry))

    def _persist(self, write: Callable[[], T]) -> T:
        """``write()``, tried again while the disk is full: measurements wait in memory, none is dropped.

        Raises StoreError when the attempt is told to stop as well, for then nothing can be saved any more, and when
        trying again would not help.
        """
        waiting = False
        while True:
            try:
                return write()
            except LeaseLost:
                raise
            except StoreError as error:
                if self.pulse.lost.is_set():
                    raise LeaseLost from None
                if not may_pass(error):
                    raise
                if waiting and (self.orders.release or self.orders.cancel):
                    raise
                if not waiting:
                    log.warning("%s Trying again every second; nothing is lost meanwhile.", error)
                waiting = True
                time.sleep(RETRY_WRITE_S)


def beside(others: Sequence[str]) -> str:
    """The note for a result that was measured while these runs were."""
    more = f" and {len(others) - SHOWN_BESIDE} more" if len(others) > SHOWN_BESIDE else ""
    runs = f"Run {others[0]} was" if len(others) == 1 else f"Runs {', '.join(others[:SHOWN_BESIDE])}{more} were"
    return f"{runs} measured at the same time, so times and energy may be higher than this run alone would have."


def cpu_s(pid: int) -> float | None:
    """Processor seconds that a process has used, all its threads together; None where it is gone or not ours to see."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def may_pass(error: StoreError) -> bool:
    """Whether the database refused for a cause that goes away: busy, locked, I/O error, full."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in PASSING
