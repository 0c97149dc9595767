"""Opening the database that ``--db`` names."""

from __future__ import annotations

from pathlib import Path

from jobs.attempt import may_pass
from spec.errors import InputError, StoreError
from store import Store, open_store


def open_database(path: Path | str | None) -> Store:
    """The store at ``path``, or the user's own. A file that is no database of ours is bad input, a full disk is not."""
    try:
        return open_store(path)
    except StoreError as error:
        if may_pass(error):
            raise
        raise InputError(str(error)) from error
