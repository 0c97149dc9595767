"""Work that a page starts: a process of its own, found again by every tab and after a restart of the web app.

Its folder holds when it was started and what it was asked, what it printed, and a lock that it has for as long as it
lives. There is one at a time in each folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.measure.hardware import ROOT
from spec.errors import InputError

OUT, ERR, JOB, STOPPING, LOCK = "out.jsonl", "err.txt", "job.json", "stopping", "lock"
_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class State:
    """The newest process of a folder.

    Attributes:
        asked: what ``start`` was told to remember.
        stopping: whether somebody asked it to end.
        lines: what it printed, whole lines of JSON objects; others are left out.
        failure: the error that it printed at its end, as ``--json`` does; ``last_words``: its last line on stderr.
    """

    running: bool
    started: float
    stopping: bool
    lines: tuple[dict[str, Any], ...] = ()
    failure: str | None = None
    last_words: str | None = None
    asked: dict[str, Any] = field(default_factory=dict)


def start(folder: Path, arguments: Sequence[str], busy: str, asked: dict[str, Any] | None = None) -> None:
    """Start ``cli.py`` with these arguments. Raises InputError, with ``busy``, while another one runs, and OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _starting, _lock(folder) as held:
        if held is None:
            raise InputError(busy)
        for name in (OUT, JOB, STOPPING):
            (folder / name).unlink(missing_ok=True)
        with (folder / OUT).open("wb") as out, (folder / ERR).open("wb") as err:
            child = subprocess.Popen(
                [sys.executable, "cli.py", *arguments],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, pass_fds=(held,),
            )  # fmt: skip
        unborn = folder / f"{JOB}.new"
        unborn.write_text(json.dumps({"pid": child.pid, "started": time.time(), "asked": asked or {}}))
        unborn.replace(folder / JOB)
    threading.Thread(target=child.wait, daemon=True).start()  # or it would stay behind as a zombie


def stop(folder: Path) -> None:
    """Ask it to end; a second call ends it at once."""
    with _starting, _lock(folder) as held:
        job = _read(folder)
        if held is not None or job is None:
            return  # it has ended, and its number may belong to somebody else by now
        again = (folder / STOPPING).exists()
        (folder / STOPPING).touch()
        with contextlib.suppress(ProcessLookupError):
            os.kill(job[0], signal.SIGKILL if again else signal.SIGTERM)


def newest(folder: Path) -> State | None:
    """How far the newest one is; None where there is none."""
    job = _read(folder)
    if job is None:
        return None
    with _lock(folder) as held:
        running = held is None
    lines, failure = _printed(folder)
    last = _text(folder / ERR).strip().splitlines()
    return State(
        running=running,
        started=job[1],
        stopping=(folder / STOPPING).exists(),
        lines=tuple(lines),
        failure=failure,
        last_words=last[-1] if last else None,
        asked=job[2],
    )


def forget(folder: Path) -> None:
    """Take the newest one off the page once it has ended."""
    with _lock(folder) as held:
        if held is not None:
            (folder / JOB).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int | None]:
    """The descriptor of the lock, or None where a process holds it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:  # no folder: nothing was ever started
        yield -1
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # whoever inherited it keeps the lock


def _read(folder: Path) -> tuple[int, float, dict[str, Any]] | None:
    try:
        data = json.loads((folder / JOB).read_text())
        return int(data["pid"]), float(data["started"]), dict(data.get("asked") or {})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _printed(folder: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The objects that came, one a line, and the error that closed the output."""
    found: list[dict[str, Any]] = []
    lines = _text(folder / OUT).splitlines()
    for at, line in enumerate(lines):
        if line == "{":  # an error is printed over several lines, after everything else
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return found, str(json.loads("\n".join(lines[at:]))["error"]["message"])
            break
        with contextlib.suppress(ValueError):  # the last line may be half written
            entry = json.loads(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found, None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
