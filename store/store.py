"""The store: one connection to the database and the tables behind it.

    with open_store() as store:
        job = store.jobs.enqueue(spec)
        print(store.runs.poll(job.run_id)["state"])

Opening takes well under a millisecond, so open one where it is needed and close it there; a connection belongs to the
thread that opened it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from spec import paths
from spec.errors import InputError, StoreError, shorten
from spec.paths import expand
from store import backup as backups
from store.answers import Answers
from store.clock import Clock
from store.connection import Connection, check_library
from store.jobs import Jobs
from store.kernel_results import KernelResults
from store.migrations import open_connection
from store.runs import Runs
from store.settings import Settings
from store.workers import Workers

FILE_NAME = "isoquant.db"


class Store:
    """``runs``, ``jobs``, ``answers``, ``workers``, ``settings``, ``kernel_results`` of a database at ``path``."""

    def __init__(self, connection: Connection, clock: Clock | None = None) -> None:
        clock = clock or Clock()
        self.connection = connection
        self.path = str(connection.path)
        self.runs = Runs(connection, clock)
        self.jobs = Jobs(connection, clock, self.runs)
        self.answers = Answers(connection, clock)
        self.workers = Workers(connection, clock)
        self.settings = Settings(connection, clock)
        self.kernel_results = KernelResults(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.path}>"

    def close(self) -> None:
        """Let go of the file; a second close does nothing."""
        self.connection.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Make several calls one transaction: all of them are saved, or none."""
        with self.connection.write():
            yield

    def data_version(self) -> int:
        """A number that changes whenever stored results do (finished, saved, deleted, restored): a key for caches."""
        return int(self.connection.value("SELECT value FROM counters WHERE name = 'results'"))

    def backup(self, path: Path | str | None = None) -> Path:
        """A checked copy of the whole database, by default into ``backups/`` beside it; returns its path."""
        target = _expand(path) if path is not None else backups.backup_name(self.connection.path, "copy")
        return backups.backup(self.connection, target)

    def integrity(self, *, quick: bool = False) -> list[str]:
        """What a full check of the file finds wrong, or one that is ``quick``; empty when all is well."""
        return backups.integrity(self.connection, quick=quick)


def home() -> Path:
    """Where the database and all else that a user makes lies: ``$ISOQUANT_HOME``, or ``./data``; raises StoreError."""
    try:
        return paths.home()
    except InputError as error:
        raise StoreError(str(error)) from error


def _expand(path: Path | str) -> Path:
    try:
        return expand(path)
    except InputError as error:
        raise StoreError(str(error)) from error


def open_store(path: Path | str | None = None, *, clock: Clock | None = None) -> Store:
    """Open the database at ``path`` (by default ``isoquant.db`` in ``home()``), making or upgrading it first.

    Raises StoreError with one plain sentence where that is not possible; a file that is not ours stays untouched.
    """
    check_library()
    where = _expand(path) if path is not None else home() / FILE_NAME
    try:
        real = os.path.realpath(where)
    except (OSError, ValueError) as error:  # e.g. a NUL in the name
        raise StoreError(f"{shorten(str(where))} is no path of a database: {error}.") from error
    return Store(open_connection(Path(real)), clock)
