"""``run``: one run in the foreground, through the same queue, engine process and database as a worker's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from analysis.format import si
from commands.database import open_database
from commands.options import Db, Json, takes_spec
from commands.output import Thinned, note, plain, print_json, say
from commands.results import flat, print_levels, print_measures
from jobs.attempt import Attempt, Ending, Orders, Outcome
from jobs.pool import CannotStart, EnginePool
from spec.choices import JobState
from spec.errors import Cancelled, IsoquantError
from spec.results import Event, Phase, Progress
from spec.run_spec import RunSpec
from spec.statistics import wilson
from store import Lease, Store

NoSave = Annotated[bool, typer.Option("--no-save", help="Measure and print, but keep nothing.")]
_PHASES = {
    "load": "Loading",
    "compress": "Compressing",
    "warmup": "Warming up",
    "measure": "Measuring",
    "summarise": "Summing up",
}
LINE_EVERY_S = 5.0


class RunFailed(IsoquantError):
    """The run started and did not end well."""


@takes_spec
def run(spec: RunSpec, no_save: NoSave = False, db: Db = None, json: Json = False) -> None:
    """Run one configuration here and now, save it, print what was measured. Ctrl-C cancels and keeps what is there."""
    with _store(db, no_save) as store:
        lease = store.jobs.start(spec, worker=f"{socket.gethostname()}:{os.getpid()}", source="cli")
        run_id = None if no_save else lease.run_id
        for busy in store.jobs.list([JobState.RUNNING]):
            if busy.run_id != lease.run_id:
                note(f"note: run {busy.run_id} is being measured too; both will look slower than they are.")
        ending = _conduct(store, lease)
    _raise_unless_done(ending, run_id)
    result = ending.result
    assert result is not None
    if json:
        print_json({"run_id": run_id, "spec": spec.to_dict(), **flat(result)})
        return
    say(str(spec) + (f"   run {run_id}" if run_id else "   not saved"))
    say("")
    print_measures(result)
    print_levels(result.by_level)
    for text in result.notes:
        say(f"Note: {text}")


@contextlib.contextmanager
def _store(db: str | None, no_save: bool) -> Iterator[Store]:
    """The user's database, or with ``no_save`` one that is gone afterwards."""
    if not no_save:
        with open_database(db) as store:
            yield store
        return
    with tempfile.TemporaryDirectory(prefix="isoquant-") as folder, open_database(Path(folder) / "run.db") as store:
        yield store


def _conduct(store: Store, lease: Lease) -> Ending:
    """Run it, with Ctrl-C and SIGTERM as cancel; a second Ctrl-C does not wait for anything."""
    orders, pool = Orders(), EnginePool()

    def stop(number: int, _frame: object) -> None:
        if orders.cancel and number == signal.SIGINT:
            raise KeyboardInterrupt
        orders.cancel = True

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Display() as display:
            return Attempt(store, lease, pool, orders=orders, on_event=display.show).conduct()
    except CannotStart as error:
        store.jobs.fail(lease, str(error), retry=False)
        raise RunFailed(str(error)) from error
    finally:
        pool.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_unless_done(ending: Ending, run_id: str | None) -> None:
    kept = f" It is kept as run {run_id}." if run_id else ""
    if ending.outcome is Outcome.CANCELLED:
        raise Cancelled(f"{ending.message}{kept}")
    if ending.error is not None:
        raise ending.error
    if ending.outcome is not Outcome.SUCCEEDED:
        for line in ending.detail[-4000:].splitlines():
            note(line)
        raise RunFailed(ending.message)


class Display:
    """The live progress bar on stderr; where that is no terminal, a line every five seconds."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("Starting", total=None, detail="")
        self._lines = not console.is_terminal
        self._last_line = 0.0
        self._last_phase = ""
        self._thinned = Thinned()

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Draw one event of the engine."""
        if isinstance(event, Phase):
            text = plain(event.detail or _PHASES.get(event.name, event.name))
            self._bar.update(self._task, description=text.replace("[", r"\["))
            if self._lines and text != self._last_phase and self._thinned.due(text):
                note(text)
            self._last_phase = text
        elif isinstance(event, Progress):
            self._bar.update(self._task, completed=event.done, total=event.total, detail=describe(event))
            if self._lines and time.monotonic() - self._last_line > LINE_EVERY_S:
                self._last_line = time.monotonic()
                note(f"{event.done} of {event.total}  {describe(event)}")


def describe(progress: Progress) -> str:
    """Partial accuracy with its interval, and the present speed."""
    parts = []
    if progress.checked:
        low, high = wilson(progress.correct, progress.checked)
        parts.append(f"accuracy {100 * progress.correct / progress.checked:.0f} % ({100 * low:.0f}–{100 * high:.0f})")
    if progress.tok_s is not None:
        parts.append(si(progress.tok_s, "tokens/s"))
    return "  ".join(parts)
