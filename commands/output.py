"""How the command line speaks: tables and sentences for people, one JSON object for scripts.

Nothing a user or a file named reaches the terminal with its control characters, nor is read as markup.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spec.errors import Cancelled, InputError, IsoquantError, ModelError, SpecError

TOLD_EVERY_S = 0.5
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def plain(value: object) -> str:
    """Text that is safe on a terminal: control characters and lone surrogates are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def print_json(value: Any) -> None:
    """One JSON value on stdout, and nothing else."""
    print(json.dumps(value, indent=2, allow_nan=False))


def say(text: str) -> None:
    """One sentence on stdout."""
    print(plain(text))


def note(text: str) -> None:
    """One sentence on stderr, for what is not the result."""
    print(plain(text), file=sys.stderr)


class Thinned:
    """Which lines on how far it is are said: "8 of 128" not soon after "7 of 128", but other work at once."""

    def __init__(self) -> None:
        self._subject = ""
        self._at = 0.0

    def due(self, words: str) -> bool:
        """Whether to say this one now."""
        subject, now = words.partition(" of ")[0].rstrip("0123456789 "), time.monotonic()
        if subject == self._subject and now - self._at < TOLD_EVERY_S:
            return False
        self._subject, self._at = subject, now
        return True


def report_error(error: BaseException, as_json: bool) -> None:
    """One line on stderr, or with ``as_json`` one object on stdout."""
    if as_json:
        body = {"type": type(error).__name__, "message": str(error), "field": getattr(error, "field", None)}
        print_json({"error": body})
    else:
        note(f"error: {error}")


def exit_code(error: IsoquantError) -> int:
    """130 for a stop that the user asked for, 2 for what the user can correct, 1 for what went wrong."""
    if isinstance(error, Cancelled):
        return EXIT_INTERRUPTED
    return EXIT_BAD_INPUT if isinstance(error, (SpecError, InputError, ModelError)) else EXIT_FAILED


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """A table as wide as the terminal; cells are text, never markup. Cut cells end in "…"."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(plain("" if cell is None else cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
