"""Whole copies of the database, checked before they get their name."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from spec.errors import StoreError
from store.connection import Connection

FULL = 13  # SQLITE_FULL


def backup(source: Connection, target: Path) -> Path:
    """A compact copy of the database as it is now, while others read and write; returns its path.

    Copying the file with other tools would miss what still lies in the write-ahead log. Raises StoreError when the
    target exists, cannot be written, or the copy does not pass SQLite's integrity check.
    """
    target = target.absolute()
    if target.exists():
        raise StoreError(f"{target} exists already; choose another name for the backup.")
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        unfinished.touch()  # SQLite would report a folder that may not be written as a fault of the database
        _copy(source, unfinished, target)
        _check(unfinished)
        _sync(unfinished)
        unfinished.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise StoreError(f"The backup {target} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return target


def _copy(source: Connection, unfinished: Path, target: Path) -> None:
    try:
        source.execute("VACUUM INTO ?", (str(unfinished),))
    except StoreError as error:
        if getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF != FULL:
            raise
        raise StoreError(f"The disk is full: the backup {target} was not made; choose another place.") from error


def backup_name(path: Path, reason: str) -> Path:
    """Where an automatic backup of the database at ``path`` goes: ``backups/`` beside it."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    plain = path.parent / "backups" / f"{path.stem}-{stamp}-{reason}.db"
    number = 1
    while plain.exists():
        number += 1
        plain = path.parent / "backups" / f"{path.stem}-{stamp}-{reason}-{number}.db"
    return plain


def integrity(connection: Connection, *, quick: bool = False) -> list[str]:
    """What SQLite's full check finds wrong, broken references included; empty when all is well.

    ``quick`` does not compare indexes with their tables: several times faster, and finds most but not all damage.
    """
    try:
        if quick:
            return [str(row[0]) for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        broken = connection.execute("PRAGMA foreign_key_check")
    except StoreError as error:  # too damaged to be checked
        return [str(error)]
    return [line for line in found if line != "ok"] + [
        f"row {row} of {table} refers to a row of {parent} that is not there" for table, row, parent, _ in broken
    ]


def _check(copy: Path) -> None:
    connection = Connection(copy, "ro")
    try:
        faults = integrity(connection)
    finally:
        connection.close()
    if faults:
        raise StoreError(f"The backup did not pass its check ({faults[0]}); the database may be damaged.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
