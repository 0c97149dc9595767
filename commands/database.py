"""Opening the database that ``--db`` names."""

from __future__ import annotations

from pathlib import Path

from spec.errors import InputError, StoreError
from store import Store, open_store


def open_database(path: Path | str | None) -> Store:
    """The store at ``path``, or the user's own. A file that cannot be opened as one is bad input."""
    try:
        return open_store(path)
    except StoreError as error:
        raise InputError(str(error)) from error
