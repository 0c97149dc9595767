"""The measurement of kernels that a page started, as a process of its own (see ``ui.process``)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spec.errors import InputError
from spec.kernel_result import PLANNED, KernelResult
from store import home
from ui import process

BUSY = "Kernels are being measured already; wait for the end, or stop it."


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
    process.start(_folder(), ["kernels", "measure", "--json", *arguments], BUSY)


def stop() -> None:
    """Ask it to end after the result at hand; a second call ends it at once."""
    process.stop(_folder())


def newest() -> Job | None:
    """The newest measurement; None where no page started one yet."""
    found = process.newest(_folder())
    if found is None:
        return None
    planned, results = _results(found)
    error = found.failure
    if error is None and (planned is None or len(results) < planned):
        error = f"The measurement ended early. {found.last_words or 'It left no message.'}"
    ended_by_itself = not found.running and not found.stopping
    return Job(found.running, found.started, found.stopping, planned, results, error if ended_by_itself else None)


def forget() -> None:
    """Take the newest measurement off the page once it has ended; its results are in the database."""
    process.forget(_folder())


def _folder() -> Path:
    return home() / "kernels"


def _results(found: process.State) -> tuple[int | None, tuple[KernelResult, ...]]:
    """How many results are planned, and those that came."""
    planned, results = None, []
    for entry in found.lines:
        if isinstance(entry.get(PLANNED), int):
            planned = entry[PLANNED]
            continue
        with contextlib.suppress(InputError):
            results.append(KernelResult.from_dict(entry))
    return planned, tuple(results)
