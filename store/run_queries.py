"""Reading many runs: tables, frontier points, facets, search, export.

Names of columns are checked against the live schema, values are bound; every query is read to its end at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from spec.choices import JobState
from spec.errors import SpecError
from store.connection import Connection, Row
from store.filters import Filters, column, like, order_by, where
from store.values import text

POINT_COLUMNS = ("run_id", "model", "precision", "strategy", "n", "batch_size", "task", "hardware_id", "energy_method")
SEARCHED = ("run_id", "spec_text", "strategy_text", "task", "message", "source", "state")
PAGE = 1000
MAX_WORDS = 200  # SQLite takes expressions of limited depth
NOT_DELETED = "deleted_at IS NULL"


class RunQueries:
    """The reading half of ``store.runs``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column of ``runs`` that a filter, an order or a table may name."""
        return tuple(row[1] for row in self._connection.execute("PRAGMA table_info(runs)") if row[1] != "id")

    def count(self, filters: Filters | None = None) -> int:
        """How many runs match; deleted ones never do."""
        condition, values = where(filters, self.columns)
        return int(self._connection.value(f"SELECT count(*) FROM runs WHERE {NOT_DELETED}{condition}", values))

    def table(
        self,
        filters: Filters | None = None,
        columns: Sequence[str] | None = None,
        order: Sequence[str] = ("-created",),
        limit: int | None = None,
        offset: int = 0,
        *,
        search: str | None = None,
        deleted: bool = False,
    ) -> list[Row]:
        """Rows as dictionaries; ``order`` names columns, ``-`` in front for descending, runs without a value last.

        ``search``: words that must all occur in the run's text. ``deleted``: the deleted runs instead of the others.
        """
        names = ", ".join(column(c, self.columns) for c in columns) if columns else ", ".join(self.columns)
        condition, values = where(filters, self.columns)
        found, bound = _search(search)
        sql = (
            f"SELECT {names} FROM runs WHERE deleted_at IS {'NOT ' if deleted else ''}NULL{condition}{found} "
            f"ORDER BY {order_by(order, self.columns)}id DESC LIMIT ? OFFSET ?"
        )
        return self._connection.rows(sql, [*values, *bound, -1 if limit is None else limit, offset])

    def search(self, words: str, limit: int | None = 100) -> list[Row]:
        """Runs whose text contains all the words, newest first."""
        return self.table(search=words, limit=limit)

    def frontier_rows(
        self, x: str, y: str, filters: Filters | None = None, columns: Sequence[str] = POINT_COLUMNS
    ) -> dict[str, list[Any]]:
        """The points of a chart as columns: ``{"x": [...], "y": [...], <column>: [...]}``, all of one length.

        Only succeeded runs that have both values; oldest first.
        """
        names = [column(c, self.columns) for c in (x, y, *columns)]
        condition, values = where(filters, self.columns)
        sql = (
            f"SELECT {', '.join(names)} FROM runs WHERE state = '{JobState.SUCCEEDED}' AND {NOT_DELETED} "
            f"AND {x} IS NOT NULL AND {y} IS NOT NULL{condition}"
        )
        return dict(zip(("x", "y", *columns), self._connection.columns(sql, values, len(names)), strict=True))

    def of_each(
        self, group: Sequence[str], largest: str, columns: Sequence[str], filters: Filters | None = None
    ) -> dict[str, list[Any]]:
        """Of the succeeded runs that agree in ``group`` the one with the largest number ``largest``, else the newest.

        As columns, like ``frontier_rows``; ``count`` says how many runs each stands for.
        """
        names = [column(c, self.columns) for c in columns]
        condition, values = where(filters, self.columns)
        # One number that orders by both and gives the id back: ids stay below 2^33.
        sql = (
            f"SELECT {', '.join(names)}, many FROM (SELECT count(*) AS many, "
            f"max((coalesce({column(largest, self.columns)}, 0) << 33) + id) & ((1 << 33) - 1) AS best FROM runs "
            f"WHERE state = '{JobState.SUCCEEDED}' AND {NOT_DELETED}{condition} "
            f"GROUP BY {', '.join(column(c, self.columns) for c in group)}) JOIN runs ON runs.id = best"
        )
        return dict(zip((*columns, "count"), self._connection.columns(sql, values, len(names) + 1), strict=True))

    def facets(self, columns: Sequence[str], filters: Filters | None = None) -> dict[str, list[tuple[Any, int]]]:
        """What filters can offer: for each column its values among succeeded runs, with counts, most frequent first."""
        condition, values = where(filters, self.columns)
        found = {}
        for name in columns:
            sql = (
                f"SELECT {column(name, self.columns)}, count(*) FROM runs WHERE state = '{JobState.SUCCEEDED}' "
                f"AND {NOT_DELETED}{condition} GROUP BY 1 ORDER BY 2 DESC, 1"
            )
            found[name] = [(value, int(count)) for value, count in self._connection.execute(sql, values)]
        return found

    def hardware(self) -> dict[str, str]:
        """Name of every machine that measured something, by its id."""
        return dict(self._connection.execute("SELECT hardware_id, name FROM hardware ORDER BY created"))

    def export_rows(self, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Every matching run, oldest first, for csv, json or parquet; a thousand at a time, so any number fits.

        The specification comes as text (``spec_text``) and as JSON (``spec``).
        """
        names = [column(c, self.columns) for c in columns or self.columns]
        condition, values = where(filters, self.columns)
        sql = (
            f"SELECT id, {', '.join(names)}, (SELECT spec FROM specs WHERE specs.spec_key = runs.spec_key) AS spec "
            f"FROM runs WHERE id > ? AND {NOT_DELETED}{condition} ORDER BY id LIMIT {PAGE}"
        )
        last = 0
        while rows := self._connection.rows(sql, [last, *values]):
            last = rows[-1]["id"]
            for row in rows:
                del row["id"]
                yield row


def _search(words: str | None) -> tuple[str, list[str]]:
    every = list(dict.fromkeys((words or "").split()))
    if len(every) > MAX_WORDS:
        raise SpecError(f"Search for at most {MAX_WORDS} different words, not {len(every):,}.", field="search")
    one = " OR ".join(f"{name} LIKE ? ESCAPE '\\'" for name in SEARCHED)
    patterns = [like(text(word) or "") for word in every]
    return "".join(f" AND ({one})" for _ in every), [p for p in patterns for _ in SEARCHED]
