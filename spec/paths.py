"""Paths as a user writes them.

>>> expand("models/x")
PosixPath('models/x')
"""

from __future__ import annotations

import os
from pathlib import Path

from spec.errors import InputError, shorten_path


def expand(text: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises InputError where there is no such user, and for a NUL character, which no path may hold.
    """
    if "\0" in os.fspath(text):
        raise InputError(f"{shorten_path(text)} holds a NUL character, which no path may; check the path.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"The home folder in {shorten_path(text)} is not known; write the path out in full.") from None


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; InputError where the system cannot tell: a name too long, a parent not readable."""
    try:
        return path.is_dir()
    except OSError as error:
        words = error.strerror or type(error).__name__
        raise InputError(f"{shorten_path(path)} cannot be looked at ({words}); check the path.") from None


def home() -> Path:
    """Where all that a user makes lies: ``$ISOQUANT_HOME``, or ``./data``. Raises InputError."""
    return expand(os.environ.get("ISOQUANT_HOME") or "data").absolute()


def absolute_model(name: str) -> str:
    """A model's folder by its full path, for the worker runs elsewhere; any other name as it is."""
    try:
        folder = Path(name).expanduser()
        is_named = name.startswith(("shape:", "lab-")) or not name
        is_path = not is_named and (name.startswith((".", "~")) or folder.is_dir())
    except (OSError, ValueError, RuntimeError):
        return name
    return str(folder.resolve()) if is_path else name
