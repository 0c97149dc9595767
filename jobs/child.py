"""The engine process: runs specs, one after the other, and keeps the model loaded in between. It has no database.

Started by ``jobs.host`` as ``python -m jobs.child EVENTS_FD PARENT_PID``; speaks ``jobs.protocol``. It dies with its
parent: by PR_SET_PDEATHSIG, and at the end of stdin where there is no such thing.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from jobs.loading import Loading
from jobs.protocol import decode, encode, error_message
from spec.errors import Cancelled, DoesNotFitError, IsoquantError
from spec.results import Answer, Event, event_to_dict
from spec.run_spec import RunSpec

PR_SET_PDEATHSIG = 1
Execute = Callable[[RunSpec, Callable[[Event], None], list[Answer], Callable[[], bool]], Any]


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, and leave at once if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Inbox(threading.Thread):
    """Reads commands while a run is going on, so that a cancel is seen at once and the pipe never fills up."""

    def __init__(self, stdin: BinaryIO) -> None:
        super().__init__(daemon=True, name="inbox")
        self.stdin = stdin
        self.runs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def run(self) -> None:
        """Sort messages until stdin ends, which means that the supervisor is gone."""
        for line in self.stdin:
            message = decode(line)
            if message["command"] == "run":
                self.runs.put(message)
            elif message["command"] == "cancel":
                self._cancelled.add(message["number"])
            else:
                self.runs.put(None)
        os._exit(1)

    def is_cancelled(self, number: int) -> bool:
        """Whether the run with this number was asked to stop."""
        return number in self._cancelled


class Outbox:
    """Writes whole lines to the events pipe; the engine may emit from several threads."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._pipe = os.fdopen(fd, "wb", buffering=0)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; blocks while the supervisor is behind."""
        data = memoryview(encode(message))
        with self._lock:
            while data:
                data = data[self._pipe.write(data) :]


def serve(inbox: Inbox, outbox: Outbox, execute: Execute) -> None:
    """Run what comes in until told to quit, or until a fault leaves the process in a state not to be trusted."""
    outbox.send({"event": "ready"})
    while (message := inbox.runs.get()) is not None:
        if not _run(message, inbox, outbox, execute):
            raise SystemExit(1)


def _run(message: dict[str, Any], inbox: Inbox, outbox: Outbox, execute: Execute) -> bool:
    number = message["number"]
    try:
        spec = RunSpec.from_dict(message["spec"])
        answered = [Answer.from_dict(a) for a in message["answered"]]
        with Loading(spec, lambda event: outbox.send(event_to_dict(event) | {"number": number})) as loading:
            result = execute(spec, loading.send, answered, lambda: inbox.is_cancelled(number))
        outbox.send({"event": "result", "number": number, "result": result.to_dict()})
    except Cancelled:
        outbox.send({"event": "cancelled", "number": number})
    except IsoquantError as error:
        outbox.send(error_message(number, error))
    except MemoryError:
        error = DoesNotFitError("The run needs more memory than this machine has; choose a smaller batch or model.")
        outbox.send(error_message(number, error))
    except Exception as error:  # a fault: reported with its traceback, and the process is not used again
        traceback.print_exc()
        outbox.send(error_message(number, error))
        return False
    return True


def private_stdin() -> BinaryIO:
    """The command pipe under a descriptor of its own; stdin itself becomes empty, for libraries ask questions there."""
    commands = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return os.fdopen(commands, "rb")


def main() -> None:
    """Entry point: the slow imports happen here, while commands can already arrive."""
    die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox = Outbox(int(sys.argv[1]))
    inbox = Inbox(private_stdin())
    inbox.start()
    # transformers imports most of itself at the first load, which would then look as if it took seconds.
    importlib.import_module("transformers.modeling_utils")
    from engine.models import ModelHost
    from engine.run import execute

    host = ModelHost()
    serve(
        inbox,
        outbox,
        lambda spec, emit, answered, cancelled: execute(spec, emit, host=host, answered=answered, cancelled=cancelled),
    )


if __name__ == "__main__":
    main()
