"""The one place that opens the database file.

Everything goes through the SQLite library that sqlite-utils picked (pysqlite3 where it is installed, and it is a
requirement): two copies of SQLite in one process would drop each other's file locks and lose committed rows.
For the same reason nothing may open the database file itself, not even to read its first bytes: closing that
descriptor would release the locks of every connection of the process.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the library it picked, whichever it is

from spec.errors import StoreError

APPLICATION_ID = 0x49534F51  # "ISOQ"
OLDEST_SQLITE = (3, 51, 3)
BACKPORTS = ((3, 50, 7), (3, 44, 6))
BUSY_S = 5.0
WAL_LIMIT_BYTES = 64 * 2**20
CHUNK = 500

Row = dict[str, Any]


def sqlite_version() -> str:
    """Version of the SQLite library that opens the database."""
    return str(sqlite3.sqlite_version)


def check_library(version: str | None = None) -> None:
    """Raise StoreError when this SQLite is one that can lose commits in WAL mode (3.7.0 to 3.51.2)."""
    version = version or sqlite_version()
    number = tuple(int(part) for part in version.split("."))
    fixed = any(number[:2] == b[:2] and number >= b for b in BACKPORTS)
    if number < OLDEST_SQLITE and not fixed:
        raise StoreError(
            f"SQLite {version} can lose committed data when several processes write; install a fixed one with "
            "`pip install 'pysqlite3>=0.6.1'`."
        )


class Connection:
    """One connection to the file at ``path``, for one thread. Reads are complete before they return.

    >>> with connection.write():
    ...     connection.execute("UPDATE runs SET state = ? WHERE run_id = ?", ("failed", run_id))
    """

    def __init__(self, path: Path, mode: str = "rw") -> None:
        self.path = path
        with self._explained():
            raw = sqlite3.connect(
                f"{path.as_uri()}?{mode if '=' in mode else 'mode=' + mode}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
            )
        # sqlite-utils plugins are other people's code; a tool that opens this file should not run it.
        self.db = Database(raw, execute_plugins=False, recursive_triggers=False)

    def configure(self) -> None:
        """Set what SQLite does not keep in the file."""
        for pragma in (
            "synchronous = FULL",  # NORMAL can lose the last commits when the power fails
            "foreign_keys = ON",
            "trusted_schema = OFF",
            f"journal_size_limit = {WAL_LIMIT_BYTES}",
        ):
            self.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        """Close; a second close does nothing."""
        self.db.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """One transaction that takes the write lock at once (BEGIN IMMEDIATE); all of it is saved, or nothing.

        A deferred transaction would fail with "database is locked" when it turns from reading to writing, without
        waiting. Inside another ``write()`` it becomes a savepoint of that one.
        """
        inner = self.db.conn.in_transaction
        self.execute("SAVEPOINT inner_write" if inner else "BEGIN IMMEDIATE")
        try:
            yield
            self.execute("RELEASE inner_write" if inner else "COMMIT")
        except BaseException:
            for statement in ("ROLLBACK TO inner_write", "RELEASE inner_write") if inner else ("ROLLBACK",):
                # A full disk ends the transaction by itself, and then there is nothing left to undo.
                if self.db.conn.in_transaction:
                    self.execute(statement)
            raise

    def execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and fetch all it returns: an open cursor would keep the WAL from being reset."""
        with self._explained():
            return list(self.db.conn.execute(sql, values).fetchall())

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each row; the number of rows it changed."""
        with self._explained():
            return int(self.db.conn.executemany(sql, rows).rowcount)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows as dictionaries."""
        with self._explained():
            cursor = self.db.conn.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def columns(self, sql: str, values: Sequence[Any], width: int) -> list[list[Any]]:
        """All rows as ``width`` columns, for many rows: a few at a time, so that they are still in the cache.

        The garbage collector is paused: so many new objects would make it search them all several times over.
        """
        columns: list[list[Any]] = [[] for _ in range(width)]
        collecting = gc.isenabled()
        gc.disable()
        try:
            with self._explained():
                cursor = self.db.conn.execute(sql, values)
                while rows := cursor.fetchmany(CHUNK):
                    for column, part in zip(columns, zip(*rows, strict=True), strict=True):
                        column.extend(part)
        finally:
            if collecting:
                gc.enable()
        return columns

    def row(self, sql: str, values: Sequence[Any] = ()) -> Row | None:
        """The first row as a dictionary, or None."""
        return next(iter(self.rows(sql, values)), None)

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        found = self.execute(sql, values)
        return found[0][0] if found else None

    def insert(self, table: str, row: Row) -> None:
        """Insert one row; the names are ours, the values are bound."""
        names = ", ".join(row)
        self.execute(f"INSERT INTO {table} ({names}) VALUES ({','.join('?' * len(row))})", list(row.values()))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise explain(error, self.path) from error


def explain(error: Exception, path: Path) -> StoreError:
    """The sentence for an error of SQLite: what is wrong with the database at ``path``, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return StoreError(_SENTENCES.get(code, "The database {path} refused: {error}.").format(path=path, error=error))


_SENTENCES = {
    sqlite3.SQLITE_FULL: "The disk is full: nothing more was saved, and what was saved before is intact. "
    "Free some space where {path} lies and try again.",
    sqlite3.SQLITE_BUSY: "The database {path} was in use by another process for too long; try again in a moment.",
    sqlite3.SQLITE_READONLY: "The database {path} may not be written; check its permissions and those of its folder.",
    sqlite3.SQLITE_CANTOPEN: "The database {path} cannot be opened; check that its folder exists and may be written.",
    sqlite3.SQLITE_PERM: "The database {path} may not be opened; check its permissions.",
    sqlite3.SQLITE_NOTADB: "{path} is not a database; choose another path, or move the file away.",
    sqlite3.SQLITE_CORRUPT: "The database {path} is damaged; stop Isoquant and put the newest copy that "
    "`python cli.py backup` made in its place.",
    sqlite3.SQLITE_IOERR: "The disk failed while the database {path} was in use; check the disk, then try again.",
}
