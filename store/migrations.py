"""Creating and upgrading the database: numbered, append-only migrations under a file lock.

A new file is made complete under another name and then renamed, so a database that exists is never empty or half made.
An older one is copied to ``backups/`` first; each migration is one transaction together with its number
(``user_version``), so a kill leaves the old schema or the new one, whole.

To change the schema: add a module ``migration_NNNN`` with STATEMENTS and list it here, with its reason. A new word in
a CHECK needs the table made anew (SQLite cannot change a CHECK): create, copy, drop, rename; foreign keys are off
meanwhile and checked before the commit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spec.errors import StoreError
from store import (
    migration_0001,
    migration_0002,
    migration_0003,
    migration_0004,
    migration_0005,
    migration_0006,
    migration_0007,
    migration_0008,
)
from store.backup import backup, backup_name
from store.connection import APPLICATION_ID, Connection

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "fuse.sshfs"})


@dataclass(frozen=True)
class Migration:
    """One step of the schema: what it is for, and its statements in order."""

    reason: str
    statements: Sequence[str]


MIGRATIONS: list[Migration] = [
    Migration("The first schema.", migration_0001.STATEMENTS),
    Migration("Lost workers that made progress are forgiven; workers say why they wait.", migration_0002.STATEMENTS),
    Migration("A run goes on only with the models and questions it began with.", migration_0003.STATEMENTS),
    Migration("Answers keep their own account, the tree of their search and early exits.", migration_0004.STATEMENTS),
    Migration("New words for back end, batching and prompts; a column for the caching.", migration_0005.STATEMENTS),
    Migration("Attention, fusion, CUDA graphs and the KV cache's format are chosen.", migration_0006.STATEMENTS),
    Migration("A table for what the kernel laboratory measured.", migration_0007.STATEMENTS),
    Migration("Compression is chosen; two more back ends.", migration_0008.STATEMENTS),
]


def open_connection(path: Path) -> Connection:
    """A configured connection to the database at ``path`` (a real path), made or brought up to date where needed."""
    try:
        return _open(path)
    except OSError as error:
        raise StoreError(
            f"The database {path} cannot be opened ({error.strerror}); choose a folder that can be read and written."
        ) from error


def _open(path: Path) -> Connection:
    if not path.exists() or _inspect(path) < len(MIGRATIONS):
        with _locked(path):
            _prepare(path)
    connection = Connection(path)
    try:
        # The write-ahead log may hold a newer version than the main file, which is all that _inspect saw.
        _refuse_newer(path, connection.value("PRAGMA user_version"))
        if connection.value("PRAGMA journal_mode") != "wal":  # e.g. a backup that was put in the database's place
            with _locked(path):
                _use_wal(connection)
        connection.configure()
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(path: Path) -> None:
    """Create or upgrade, under the lock; does nothing where another process was first."""
    if not path.exists():
        _create(path)
        return
    if _inspect(path) == len(MIGRATIONS):
        return
    connection = Connection(path)
    try:
        version = connection.value("PRAGMA user_version")
        if version < len(MIGRATIONS):
            backup(connection, backup_name(path, f"before-version-{len(MIGRATIONS)}"))
            _upgrade(connection, version)
    finally:
        connection.close()


def _create(path: Path) -> None:
    _refuse_network(path.parent)
    unborn = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{unborn}{suffix}").unlink()
        # Remains of a database that was taken away: SQLite would replay them into the new one.
        with contextlib.suppress(FileNotFoundError):
            if suffix:
                Path(f"{path}{suffix}").rename(f"{path}{suffix}.orphan")
    unborn.touch(mode=0o644)
    connection = Connection(unborn)
    try:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _use_wal(connection)
        connection.configure()
        _upgrade(connection, 0)
    finally:
        connection.close()
    unborn.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _use_wal(connection: Connection) -> None:
    if connection.value("PRAGMA journal_mode = WAL") != "wal":
        raise StoreError(
            f"The disk of {connection.path} does not allow a write-ahead log; put the database on a local disk, "
            "e.g. by setting ISOQUANT_HOME."
        )


def _upgrade(connection: Connection, version: int) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")  # inside a transaction it would have no effect
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        with connection.write():
            for statement in migration.statements:
                connection.execute(statement)
            broken = connection.execute("PRAGMA foreign_key_check")
            if broken:
                raise StoreError(f"The upgrade to version {number} was given up: {len(broken)} broken references.")
            connection.execute(f"PRAGMA user_version = {number}")
    connection.execute("PRAGMA foreign_keys = ON")


def _inspect(path: Path) -> int:
    """Version of the schema at ``path``; raises StoreError, the file untouched, where it is none of ours.

    ``immutable`` reads the main file alone: no journal is replayed, no file made beside it.
    """
    if not path.is_file():
        raise StoreError(f"{path} is not a file; choose another path for the database.")
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is an empty file, not a database; delete it or choose another path.")
    connection = Connection(path, "mode=ro&immutable=1")
    try:
        application = connection.value("PRAGMA application_id")
        version = int(connection.value("PRAGMA user_version"))
    finally:
        connection.close()
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program; choose another path, or move the file away.")
    _refuse_newer(path, version)
    return version


def _refuse_newer(path: Path, version: int) -> None:
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer Isoquant (schema {version}, this one knows {len(MIGRATIONS)}); "
            "update Isoquant, or choose another database."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; a file of its own, for a lock on the database file would clash with SQLite's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"The database {path} cannot be made or opened: {error.strerror}; check the permissions of {path.parent}, "
            "or set ISOQUANT_HOME to another folder."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_network(folder: Path) -> None:
    """Processes on a network disk do not share memory, which the write-ahead log needs."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    found: dict[str, str] = {}
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        found[point.encode().decode("unicode_escape")] = kind
    at = next((found[str(p)] for p in (folder, *folder.parents) if str(p) in found), "")
    if at in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{folder} lies on a network disk ({at}), where the database could be damaged; set ISOQUANT_HOME to a "
            "folder on a local disk."
        )
