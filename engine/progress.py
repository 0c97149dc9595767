"""Tells the outside how far a run is, often enough to watch it live, seldom enough not to disturb it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.measure.time import now
from spec.errors import Cancelled
from spec.results import Answer, Answered, Event, Progress

INTERVAL_S = 0.5
CANCEL_INTERVAL_S = 0.1
RATE_WINDOW_S = 5.0


def stop_if(cancelled: Callable[[], bool]) -> None:
    """Raise Cancelled when the user has asked to stop."""
    if cancelled():
        raise Cancelled("The run was cancelled; what it had measured until then is kept.")


@dataclass(frozen=True, slots=True)
class Watch:
    """Whom long work tells in a sentence how far it is, and whom it asks whether to stop."""

    say: Callable[[str], None]
    cancelled: Callable[[], bool]


UNWATCHED = Watch(lambda words: None, lambda: False)


class Reporter:
    """Counts what is done and sends Progress and Answered events; asks whether the run is cancelled.

    ``step(tokens)`` is called after every decoding step and raises Cancelled when the user has asked to stop.
    """

    def __init__(
        self, total: int, earlier: list[Answer], on_event: Callable[[Event], None], cancelled: Callable[[], bool]
    ) -> None:
        self._total = total
        self._on_event = on_event
        self._cancelled = cancelled
        self._done = len(earlier)
        self._correct = sum(bool(a.correct) for a in earlier)
        self._checked = sum(a.correct is not None for a in earlier)
        self._tokens = 0
        self._started_s = self._told_s = self._asked_s = now()
        self._recent: deque[tuple[float, int]] = deque()

    def start(self) -> None:
        """Measuring begins."""
        self._started_s = now()
        self._recent.append((self._started_s, 0))
        self._tell()

    def step(self, tokens: int) -> None:
        """``tokens`` more were generated."""
        self._tokens += tokens
        self.poll(tokens)
        if now() - self._told_s >= INTERVAL_S:
            self._tell()

    def poll(self, tokens: int) -> None:
        """Raise Cancelled when the user has asked to stop; counts nothing."""
        at = now()
        if at - self._asked_s >= CANCEL_INTERVAL_S:
            self._asked_s = at
            stop_if(self._cancelled)

    def answered(self, answer: Answer) -> None:
        """One problem is finished."""
        self._done += 1
        self._checked += answer.correct is not None
        self._correct += bool(answer.correct)
        self._on_event(Answered(answer))

    def scored(self, passes: int, tokens: int) -> None:
        """``passes`` more windows of a text are scored, ``tokens`` tokens in them."""
        self._done += passes
        self.step(tokens)

    def finish(self) -> None:
        """Measuring is over."""
        self._tell()

    def _tell(self) -> None:
        at = now()
        self._told_s = at
        self._recent.append((at, self._tokens))
        while len(self._recent) > 2 and at - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        seconds = at - self._recent[0][0]
        rate = (self._tokens - self._recent[0][1]) / seconds if seconds > 0 and self._tokens else None
        self._on_event(
            Progress(self._done, self._total, self._correct, self._checked, self._tokens, at - self._started_s, rate)
        )
