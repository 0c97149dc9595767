"""Errors a user can act on.

    IsoquantError
    ├── SpecError           what was asked for cannot be: unknown name, value out of range, fields that clash
    ├── InputError          a file or data set is missing or malformed
    ├── ModelError          a model cannot be found or loaded
    │   └── UnsafeModelError    it could, but only by running code that came with it
    ├── ServerError         a server cannot be reached, refuses a request, or breaks off its answer
    ├── DoesNotFitError     not enough memory; a result in its own right, not a crash
    ├── StoreError          the database cannot be opened, is newer than this program, or the disk is full
    └── Cancelled           the user asked to stop

Every message is one plain sentence on what is wrong and what to do next; ``str(error)`` is fit to show as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHORT = 6  # a list of so many words is no burden in a sentence


class IsoquantError(Exception):
    """Base of all errors that are shown to the user without a traceback."""


class SpecError(IsoquantError):
    """A run specification is not valid. ``field`` names the part of the spec at fault, e.g. ``strategy.n``."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InputError(IsoquantError):
    """A file or data set is missing or malformed."""


class ModelError(IsoquantError):
    """A model cannot be found or loaded."""


class UnsafeModelError(ModelError):
    """Loading the model would run code that came with it (a pickle, or remote code)."""


class ServerError(IsoquantError):
    """A server that executes a run cannot be reached, refuses a request, or breaks off its answer."""


class DoesNotFitError(IsoquantError):
    """The run needs more memory than the device has. ``needed_bytes`` is None where it could not be told."""

    def __init__(self, message: str, needed_bytes: int | None = None, available_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class StoreError(IsoquantError):
    """The database cannot be opened or written."""


class Cancelled(IsoquantError):
    """The user asked to stop; what was measured until then is kept."""


def shorten(value: object, limit: int = 80) -> str:
    """``repr`` of a user's value with control characters escaped, cut to ``limit`` characters, safe in a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_path(path: object, limit: int = 80) -> str:
    """Like ``shorten``, but cut at the front: a path is told apart by its end."""
    text = repr(str(path))
    return text if len(text) <= limit else f"'…{text[-(limit - 2) :]}"


def unknown(kind: str, name: str, valid: Iterable[str], field: str | None = None) -> SpecError:
    """The error for a name that is not in ``valid``: names the nearest valid one, or lists them all.

    A short list is given beside the nearest one too. A number is near to no other.
    """
    options = sorted(map(str, valid), key=lambda o: (not o.isdecimal(), int(o) if o.isdecimal() else 0, o))
    folded = {o.casefold(): o for o in options}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.5)
    listed = ", ".join(options)
    hint = f"choose one of: {listed}."
    if near and not str(name).isdecimal():
        hint = f"did you mean {folded[near[0]]!r}?" + (f" There are: {listed}." if 1 < len(options) <= SHORT else "")
    return SpecError(f"Unknown {kind} {shorten(name)}; {hint}", field=field)
