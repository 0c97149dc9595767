"""The preparation of a model that a page started, as a process of its own (see ``ui.process``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from store import home
from ui import process

BUSY = "A model is being prepared already; wait for the end, or stop it."
_PROGRESS = re.compile(r"(\d+) of (\d+)(?!.*\d of \d)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Job:
    """The newest preparation.

    Attributes:
        said: the sentence on how far it is; empty before the first.
        made: id of what it prepared, once it has ended well.
        error: a sentence on why it ended early; None where it did not, or where it was stopped on purpose.
    """

    running: bool
    started: float
    stopping: bool
    model: str
    recipe: str
    said: str = ""
    made: str | None = None
    error: str | None = None

    @property
    def share(self) -> float | None:
        """How much of the work at hand is done, where the sentence says ``N of M``."""
        found = _PROGRESS.search(self.said)
        if found is None or int(found[2]) == 0:
            return None
        return min(1.0, int(found[1]) / int(found[2]))


def start(model: str, recipe: str) -> None:
    """Start ``compress --json``. Raises InputError while another one runs."""
    arguments = ["compress", "--json", "--model", model, "--recipe", recipe]
    process.start(_folder(), arguments, BUSY, {"model": model, "recipe": recipe})


def stop() -> None:
    """Ask it to end; what is done is kept. A second call ends it at once."""
    process.stop(_folder())


def newest() -> Job | None:
    """The newest preparation; None where no page started one yet."""
    found = process.newest(_folder())
    if found is None:
        return None
    said = [line["say"] for line in found.lines if isinstance(line.get("say"), str)]
    made = next((line["id"] for line in reversed(found.lines) if isinstance(line.get("id"), str)), None)
    error = found.failure
    if error is None and made is None:
        error = f"The preparation ended early. {found.last_words or 'It left no message.'}"
    return Job(
        running=found.running,
        started=found.started,
        stopping=found.stopping,
        model=str(found.asked.get("model", "")),
        recipe=str(found.asked.get("recipe", "")),
        said=said[-1] if said else "",
        made=None if found.running else made,
        error=None if found.running or found.stopping or made else error,
    )


def forget() -> None:
    """Take the newest preparation off the page once it has ended; what it made stays."""
    process.forget(_folder())


def _folder() -> Path:
    return home() / "prepare"
