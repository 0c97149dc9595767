"""The engine processes of one worker: the one that holds a model, and a spare that holds none yet.

A run that wants the model already loaded gets the first; any other run gets the spare, and the first is ended, so that
no run is measured in memory that another model has used. The spare is there because importing torch takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from jobs.host import EngineProcess, artifact
from spec.run_spec import RunSpec


class CannotStart(Exception):
    """The machine has no room for another process now: too many of them, too little memory, too many open files."""


class EnginePool:
    """At most two engine processes; ``start`` makes one."""

    def __init__(self, start: Callable[[], EngineProcess] = EngineProcess) -> None:
        self._start = start
        self._engine: EngineProcess | None = None
        self._spare: EngineProcess | None = None
        self._wants_spare = True

    def _new(self) -> EngineProcess:
        self._wants_spare = True
        try:
            return self._start()
        except (OSError, RuntimeError) as error:  # the latter where no thread can be started
            words = getattr(error, "strerror", None) or error
            raise CannotStart(f"No engine process can be started ({words}).") from error

    def take(self, spec: RunSpec) -> EngineProcess:
        """The process to run ``spec`` in: warm, spare or new. A spare that is not used is frozen meanwhile.

        Raises CannotStart.
        """
        engine, self._engine = self._engine, None
        if engine is not None and not (engine.is_alive and engine.artifact == artifact(spec)):
            engine.kill()
            engine = None
        if engine is None and self._spare is not None:
            engine, self._spare = self._spare, None
            engine.resume()  # nothing else may have thawed it since it last stood by
            if not engine.is_alive:
                engine.kill()
                engine = None
        elif self._spare is not None:
            self._spare.pause()
        self._engine = engine or self._new()
        self._wants_spare = True
        return self._engine

    def discard(self) -> None:
        """Kill the process that was taken: it is not to be trusted any more."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.kill()

    def warm_up(self) -> None:
        """To be called while nothing is measured: see to it that a spare is there, or on its way.

        One that died while idle is replaced only after the next run: what killed it may kill its successor too.
        Raises CannotStart.
        """
        if self._spare is not None and not self._spare.is_alive:
            self._spare.kill()
            self._spare, self._wants_spare = None, False
        if self._spare is not None:
            self._spare.resume()
        elif self._wants_spare:
            self._spare = self._new()

    def close(self) -> None:
        """End all processes."""
        for engine in (self._engine, self._spare):
            if engine is not None:
                engine.resume()
                engine.stop()
        self._engine = self._spare = None
