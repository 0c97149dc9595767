"""The supervisor's side of the engine process: start, send, receive, cancel, kill, and tell how it died.

    engine = EngineProcess()
    engine.run(spec, answered)
    while (message := engine.receive(0.25)) is None or message["event"] not in LAST_WORDS: ...

Linux kills a child with PR_SET_PDEATHSIG when the *thread* that started it ends: start engines from a thread that
lasts as long as they should, which is the main one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.protocol import LAST_WORDS, MAX_LINE_BYTES, ProtocolError, decode, encode
from spec.results import Answer
from spec.run_spec import RunSpec

ROOT = Path(__file__).resolve().parents[1]
STDERR_BYTES = 64 * 1024
ASK_S = 1.0
TERM_S = 1.0
KILL_S = 5.0
SETTLE_S = 0.5
CHILD = (sys.executable, "-P", "-m", "jobs.child")


class EngineDied(Exception):
    """The engine process ended, or cannot be used any more; ``str(error)`` says how in one sentence."""

    def __init__(self, message: str, returncode: int | None, stderr_tail: str) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr_tail = stderr_tail


class Ring(threading.Thread):
    """Reads a pipe to its end and keeps the last ``size`` bytes, however much is written."""

    def __init__(self, pipe: Any, size: int = STDERR_BYTES) -> None:
        super().__init__(daemon=True, name="stderr")
        self._pipe, self._size, self._data = pipe, size, bytearray()

    def run(self) -> None:
        """Keep reading, for a writer whose pipe is full stands still."""
        with contextlib.suppress(ValueError, OSError), self._pipe:
            while chunk := self._pipe.read1(65536):
                self._data = (self._data + chunk)[-self._size :]

    def clear(self) -> None:
        """Forget what was kept."""
        self._data = bytearray()

    def text(self) -> str:
        """What is kept, as text."""
        return bytes(self._data).decode("utf-8", "replace")


class EngineProcess:
    """One engine process. ``artifact`` names the model it holds, None while it holds none."""

    def __init__(
        self, command: Sequence[str] = CHILD, *, env: dict[str, str] | None = None, keep_fds: Sequence[int] = ()
    ) -> None:
        self.artifact: str | None = None
        self.ready = False
        self._number = 0
        self._messages: queue.Queue[bytes | None] = queue.Queue(maxsize=1000)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        events_in, events_out = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(events_out), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(events_out, *keep_fds),
                start_new_session=True,
                env=_environment(env or {}),
            )
        except BaseException:
            os.close(events_in)
            raise
        finally:
            os.close(events_out)
        self._ring = Ring(self._process.stdout)
        self._ring.start()
        self._reader = threading.Thread(target=self._read, args=(events_in,), daemon=True, name="events")
        self._reader.start()
        threading.Thread(target=self._write, daemon=True, name="commands").start()

    def __repr__(self) -> str:
        return f"EngineProcess(pid={self.pid}, artifact={self.artifact!r}, alive={self.is_alive})"

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def stderr_tail(self) -> str:
        """The last 64 KB of what the process and its libraries printed.

        Messages and print-outs come by different pipes, so words printed before a message may still be on their way:
        waits until nothing new has come for a moment, half a second at most; where the process has ended, to the end.
        """
        if not self.is_alive:
            self._ring.join(SETTLE_S)
        before, text = None, self._ring.text()
        deadline = time.monotonic() + SETTLE_S
        while text != before and time.monotonic() < deadline:
            time.sleep(SETTLE_S / 5)
            before, text = text, self._ring.text()
        return text

    def run(self, spec: RunSpec, answered: Sequence[Answer] = ()) -> None:
        """Start a run; what an earlier attempt has measured goes along and is not measured again."""
        if self._number and self.is_alive:  # what it said while it started, or as it died, is what a crash is told by
            self._ring.clear()
        self._number += 1
        self.artifact = artifact(spec)
        answers = [a.to_dict() for a in answered]
        message = {"command": "run", "number": self._number, "spec": spec.to_dict(), "answered": answers}
        self._outgoing.put(encode(message))

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message of the present run, or None when none came in time; raises EngineDied."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._next(max(0.0, deadline - time.monotonic()))
            if message is None:
                return None
            if message["event"] == "ready":
                self.ready = True
            elif message.get("number") == self._number:
                return message

    def cancel(self, on_message: Callable[[dict[str, Any]], None]) -> bool:
        """End the present run within 2 s whatever the process does; True when it obeyed and is still usable.

        Messages that arrive meanwhile go to ``on_message``: what was measured before the end is kept.
        """
        self._outgoing.put(encode({"command": "cancel", "number": self._number}))
        deadline = time.monotonic() + ASK_S
        try:
            while (left := deadline - time.monotonic()) > 0:
                message = self.receive(left)
                if message is not None:
                    on_message(message)
                    if message["event"] in LAST_WORDS:
                        return True
        except EngineDied:
            return False
        self.kill(TERM_S)
        with contextlib.suppress(EngineDied):
            while (message := self.receive(0)) is not None:
                on_message(message)
        return False

    def stop(self) -> None:
        """End an idle process: ask, then kill."""
        self._outgoing.put(encode({"command": "quit"}))
        try:
            self._process.wait(ASK_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill(0)

    def kill(self, grace_s: float = 0.0) -> None:
        """SIGTERM to the whole process group, SIGKILL after ``grace_s``; returns when the process is gone."""
        if grace_s > 0 and self.is_alive:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)
        self._reader.join(0.3)
        self._closed.set()
        self._outgoing.put(None)

    def pause(self) -> None:
        """Freeze the process, so that it does not disturb a measurement."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo ``pause``."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message of any run. A process that died while a grandchild keeps the pipe open is noticed too."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                line = self._messages.get(timeout=min(left, 0.2)) if left > 0 else self._messages.get_nowait()
            except queue.Empty:
                if not self.is_alive:
                    self._reader.join(0.5)
                    if self._messages.empty():
                        self._raise_death()
                if left <= 0:
                    return None
                continue
            if line is None:
                self._raise_death()
            try:
                return decode(line)
            except ProtocolError as error:
                self.kill()
                raise EngineDied(
                    f"The engine process sent {error}, so it was ended.", None, self.stderr_tail()
                ) from None

    def _raise_death(self) -> None:
        """Raise EngineDied with the cause; a process that only closed its pipe is ended first."""
        try:
            code: int | None = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        self._ring.join(0.5)
        raise EngineDied(describe_exit(code), code, self.stderr_tail())

    def _read(self, fd: int) -> None:
        with os.fdopen(fd, "rb") as pipe:
            while line := pipe.readline(MAX_LINE_BYTES):
                if not self._put(line):
                    return
        self._put(None)

    def _put(self, line: bytes | None) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._messages.put(line, timeout=0.5)
                return True
        with contextlib.suppress(queue.Full):
            self._messages.put_nowait(line)
        return False

    def _write(self) -> None:
        """A thread of its own, for a process that does not read must not hold up the supervisor."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            while (line := self._outgoing.get()) is not None:
                pipe.write(line)
                pipe.flush()


def artifact(spec: RunSpec) -> str:
    """What a process must hold in memory for this spec: its models, number formats, device and back end."""
    parts = (spec.model, spec.precision.weights, spec.precision.kv_cache, spec.runtime.device, spec.runtime.backend)
    more = (spec.runtime.attention, getattr(spec.strategy, "reward", ""), *spec.strategy.models)
    return "|".join(map(str, (*parts, *more)))


def describe_exit(code: int | None) -> str:
    """How a process ended, in one sentence. Only for ends that the supervisor did not cause itself."""
    if code is None:
        return "The engine process closed its connection and was ended."
    if code == -signal.SIGKILL:
        return (
            "The engine process was killed from outside (SIGKILL); most often the machine had run out of memory: "
            "choose a smaller model or batch if it happens again."
        )
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"The engine process crashed ({name})."
    return f"The engine process ended by itself with exit code {code} before the run was finished."


def _environment(extra: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | extra
