"""Conditions on runs as plain values: names are checked against the columns, values are only ever bound.

    {"model": "lab-s", "n": [1, 8], "accuracy": Between(0.5, None), "temperature": None}

One value: equal; a list: one of them; Between: a range with both ends included, None for an open end; None: no value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from spec.errors import unknown
from store.values import marks, plain, text


@dataclass(frozen=True, slots=True)
class Between:
    """``low`` to ``high``, both included; None leaves that end open. Rows without a value never match."""

    low: float | None = None
    high: float | None = None


Filters = Mapping[str, Any]


def where(filters: Filters | None, columns: Collection[str]) -> tuple[str, list[Any]]:
    """``(" AND ..." or "", bound values)``. Raises SpecError for a name that is no column, naming the nearest."""
    parts: list[str] = []
    values: list[Any] = []
    for name, wanted in (filters or {}).items():
        condition, bound = _condition(column(name, columns), wanted)
        parts.append(f" AND {condition}")
        values += bound
    return "".join(parts), values


def column(name: str, columns: Collection[str]) -> str:
    """``name`` if it is one of the columns, else SpecError naming the nearest."""
    if name not in columns:
        raise unknown("column", name, columns, field="column")
    return name


def order_by(order: Sequence[str], columns: Collection[str]) -> str:
    """``["-accuracy", "model"]`` as the beginning of an ORDER BY: best accuracy first; runs without a value last."""
    parts = []
    for name in order:
        direction = "DESC" if name.startswith("-") else "ASC"
        parts.append(f"{column(name.removeprefix('-'), columns)} {direction} NULLS LAST, ")
    return "".join(parts)


def like(words: str) -> str:
    """A LIKE pattern (with ESCAPE '\\') for rows that contain ``words`` as they are."""
    escaped = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _condition(name: str, wanted: Any) -> tuple[str, list[Any]]:
    if wanted is None:
        return f"{name} IS NULL", []
    if isinstance(wanted, Between):
        ends = [(">=", wanted.low), ("<=", wanted.high)]
        given = [(sign, _bindable(end)) for sign, end in ends if end is not None]
        return " AND ".join([f"{name} IS NOT NULL", *(f"{name} {sign} ?" for sign, _ in given)]), [v for _, v in given]
    if isinstance(wanted, (list, tuple, set, frozenset)):
        options = [_bindable(v) for v in wanted]
        return f"{name} IN ({marks(options)})", options
    return f"{name} = ?", [_bindable(wanted)]


def _bindable(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, (str, Enum)):
        return text(value)
    return value
