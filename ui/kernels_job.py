"""The measurement that a page started: a process of its own, found again by every tab and after a restart.

Its folder holds what was asked, what it printed, and a lock that it has for as long as it lives.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.measure.hardware import ROOT
from spec.errors import InputError
from spec.kernel_result import PLANNED, KernelResult
from store import home

_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Job:
    """The newest measurement: whether it still runs, how many results will come, and those that came.

    ``error``: a sentence on why it ended early; None where it did not, or where it was stopped on purpose.
    """

    running: bool
    started: float
    stopping: bool
    planned: int | None
    results: tuple[KernelResult, ...]
    error: str | None


def start(arguments: Sequence[str]) -> None:
    """Start ``kernels measure --json`` with these arguments. Raises InputError while another one runs."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _starting, _lock(folder) as held:
        if held is None:
            raise InputError("Kernels are being measured already; wait for the end, or stop it.")
        for name in ("out.jsonl", "job.json", "stopping"):
            (folder / name).unlink(missing_ok=True)
        with (folder / "out.jsonl").open("wb") as out, (folder / "err.txt").open("wb") as err:
            child = subprocess.Popen(
                [sys.executable, "cli.py", "kernels", "measure", "--json", *arguments],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, pass_fds=(held,),
            )  # fmt: skip
        unborn = folder / "job.json.new"
        unborn.write_text(json.dumps({"pid": child.pid, "started": time.time()}))
        unborn.replace(folder / "job.json")
    threading.Thread(target=child.wait, daemon=True).start()  # or it would stay behind as a zombie


def stop() -> None:
    """Ask it to end after the result at hand; a second call ends it at once."""
    folder = _folder()
    with _starting, _lock(folder) as held:
        asked = _read(folder)
        if held is not None or asked is None:
            return  # it has ended, and its number may belong to somebody else by now
        again = (folder / "stopping").exists()
        (folder / "stopping").touch()
        with contextlib.suppress(ProcessLookupError):
            os.kill(asked[0], signal.SIGKILL if again else signal.SIGTERM)


def newest() -> Job | None:
    """The newest measurement; None where no page started one yet."""
    folder = _folder()
    asked = _read(folder)
    if asked is None:
        return None
    with _lock(folder) as held:
        running = held is None
    planned, results, error = _printed(folder)
    stopping = (folder / "stopping").exists()
    if not running and not stopping and error is None and (planned is None or len(results) < planned):
        lines = _text(folder / "err.txt").strip().splitlines()
        error = f"The measurement ended early. {lines[-1] if lines else 'It left no message.'}"
    return Job(running, asked[1], stopping, planned, tuple(results), None if running or stopping else error)


def forget() -> None:
    """Take the newest measurement off the page once it has ended; its results are in the database."""
    folder = _folder()
    with _lock(folder) as held:
        if held is not None:
            (folder / "job.json").unlink(missing_ok=True)


def _folder() -> Path:
    return home() / "kernels"


@contextlib.contextmanager
def _lock(folder: Path):  # type: ignore[no-untyped-def]
    """The descriptor of the lock, or None where a measurement holds it."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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


def _read(folder: Path) -> tuple[int, float] | None:
    try:
        data = json.loads((folder / "job.json").read_text())
        return int(data["pid"]), float(data["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _printed(folder: Path) -> tuple[int | None, list[KernelResult], str | None]:
    """How many results are planned, those that came, and the error that closed the output."""
    planned, results = None, []
    lines = _text(folder / "out.jsonl").splitlines()
    for at, line in enumerate(lines):
        if line == "{":  # an error is printed over several lines, after all results
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return planned, results, str(json.loads("\n".join(lines[at:]))["error"]["message"])
            break
        with contextlib.suppress(ValueError, InputError):  # the last line may be half written
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get(PLANNED), int):
                planned = entry[PLANNED]
            else:
                results.append(KernelResult.from_dict(entry))
    return planned, results, None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
