"""What may enter the database: plain finite numbers, text that is valid UTF-8, JSON without NaN.

numpy's scalars are taken as the Python numbers they stand for (sqlite would store them as blobs). NaN and infinity are
refused by name: SQLite stores NaN as NULL, which would read as "not measured".
"""

from __future__ import annotations

import json
import math
import zlib
from array import array
from collections.abc import Collection, Iterable
from typing import Any

from spec.errors import StoreError, shorten

MAX_INTEGER = 2**63 - 1


def plain(value: Any) -> Any:
    """A numpy scalar or array as plain Python; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def number(name: str, value: Any, *, integer: bool = False) -> int | float | None:
    """``value`` as int or float for the column ``name``; None stays None. Raises StoreError naming the column."""
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StoreError(f"{name} must be a number, not {shorten(value)}; nothing was saved.")
    if not math.isfinite(value):
        raise StoreError(f"{name} is {value}, which is no measurement; nothing was saved.")
    if not integer:
        return float(value)
    if value != int(value) or abs(value) > MAX_INTEGER:
        raise StoreError(f"{name} must be a whole number below 2^63, not {shorten(value)}; nothing was saved.")
    return int(value)


def integer(name: str, value: Any) -> int | None:
    """``value`` as int for the column ``name``; None stays None."""
    return None if value is None else int(number(name, value, integer=True) or 0)


def flag(name: str, value: Any) -> int | None:
    """A truth value as 1, 0 or None."""
    value = plain(value)
    if value is None:
        return None
    if not isinstance(value, bool):
        raise StoreError(f"{name} must be true, false or none, not {shorten(value)}; nothing was saved.")
    return int(value)


def text(value: Any) -> str | None:
    """``str(value)`` as SQLite can hold it: half a surrogate pair, which UTF-8 cannot write, becomes its escape."""
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def to_json(name: str, value: Any) -> str:
    """Compact JSON of ``value``. Raises StoreError naming it when it holds NaN, infinity or a foreign type."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_foreign)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name} cannot be saved: {error}.") from None


def _foreign(value: Any) -> Any:
    converted = plain(value)
    if converted is value:
        raise TypeError(f"{type(value).__name__} is no JSON type")
    return converted


def pack_json(name: str, value: Any) -> bytes:
    """Compressed JSON; inverse of ``unpack_json``."""
    return zlib.compress(to_json(name, value).encode())


def unpack_json(data: bytes) -> Any:
    """What ``pack_json`` was given, tuples as lists."""
    return json.loads(zlib.decompress(data))


def pack_series(name: str, values: Iterable[Any]) -> bytes:
    """A series of finite numbers as compressed little-endian float64; inverse of ``unpack_series``."""
    series = array("d", (number(f"a value of {name}", v) or 0.0 for v in values))
    return zlib.compress(series.tobytes())


def unpack_series(data: bytes) -> list[float]:
    """The numbers of ``pack_series``."""
    series = array("d")
    series.frombytes(zlib.decompress(data))
    return series.tolist()


def marks(values: Collection[Any]) -> str:
    """``?,?,?`` for as many bound parameters."""
    return ",".join("?" * len(values))
