"""What the engine process says while a model loads, which may take longer than any silence that is allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from engine.hub import downloaded_bytes, is_hub_id
from spec.results import Event, Phase
from spec.run_spec import RunSpec

EVERY_S = 5.0


class Loading:
    """Passes events on; from one that says a model is loading until the next, repeats it every five seconds.

    What has come from the hub meanwhile is told with it. As a context manager it falls silent at the end.
    """

    def __init__(self, spec: RunSpec, send: Callable[[Event], None], every_s: float | None = None) -> None:
        named = (spec.model, getattr(spec.strategy, "reward", ""))
        self._models = [name for name in named if is_hub_id(name)]
        self._send, self._every_s = send, EVERY_S if every_s is None else every_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._fall_silent()

    def send(self, event: Event) -> None:
        """Pass ``event`` on."""
        self._fall_silent()
        self._send(event)
        if isinstance(event, Phase) and event.name == "load":
            self._over.clear()
            self._thread = threading.Thread(target=self._repeat, args=(event,), daemon=True, name="loading")
            self._thread.start()

    def _fall_silent(self) -> None:
        """Return once nothing more will be said about loading."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _repeat(self, phase: Phase) -> None:
        before = self._downloaded()
        while not self._over.wait(self._every_s):
            new = (self._downloaded() - before) // 10**6
            self._send(replace(phase, detail=f"{phase.detail}: {new} MB downloaded") if new > 0 else phase)

    def _downloaded(self) -> int:
        return sum(downloaded_bytes(name) for name in self._models)
