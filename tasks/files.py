"""Reading what a user points at: text files and JSON lines, with every way in which they can be wrong told apart.

Messages name the file and the line, never what is in it: the path may lead anywhere.
"""

from __future__ import annotations

import codecs
import errno
import json
import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from spec.errors import InputError, shorten_path

MAX_FILE_BYTES = 512 * 2**20
MAX_LINE_BYTES = 2**20
SHOWN = 5

Row = TypeVar("Row")


_ON_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.EIO,
    errno.ENAMETOOLONG,
)
DISK_ADVICE = "free some space or check the permissions of the hub's cache (HF_HOME)."


def disk_problem(error: BaseException) -> str | None:
    """The system's words where a download failed on this machine's disk; None where the hub or network is at fault."""
    return error.strerror if isinstance(error, OSError) and error.errno in _ON_DISK else None


class BadLine(Exception):
    """One line of a file is not usable; the message says why, without the line number."""


def read_bytes(path: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file; raises InputError for what is no readable, non-empty file of at most ``limit`` bytes."""
    file = Path(os.path.expanduser(path))
    name = shorten_path(path)
    try:
        if file.is_dir():
            raise InputError(f"{name} is a folder; give a file.")
        if not file.exists():
            raise InputError(f"There is no file {name}; check the path.")
        if not file.is_file():
            raise InputError(f"{name} is no regular file; give a file.")
        if file.stat().st_size > limit:
            raise InputError(f"{name} is larger than {limit // 2**20} MiB; split it, or give a part of it.")
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} cannot be read ({type(error).__name__}); check the path and its permissions."
        ) from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name} is UTF-16; save it as UTF-8.")
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise InputError(f"{name} is empty.")
    return data


def read_text(path: str, limit: int = MAX_FILE_BYTES) -> str:
    """The content of a UTF-8 text file, byte order mark dropped; raises InputError naming the first bad line."""
    data = read_bytes(path, limit)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{shorten_path(path)} is not UTF-8 (line {line}); save it as UTF-8.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{shorten_path(path)} is not a text file (NUL character in line {line}).")
    return text


def read_json_lines(
    path: str, parse: Callable[[dict[str, Any]], Row], *, skip_bad: bool
) -> tuple[list[tuple[int, Row]], list[str]]:
    """(line number, ``parse(object)``) of every line of a JSON Lines file, and what was skipped.

    ``parse`` raises BadLine for an object it cannot use. Blank lines are not lines. Raises InputError that lists the
    first bad lines, unless ``skip_bad``; and always when no line is left.
    """
    rows: list[tuple[int, Row]] = []
    bad: list[str] = []
    for number, raw in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            rows.append((number, parse(_object(raw))))
        except BadLine as error:
            bad.append(f"line {number}: {error}")
    if bad and not (skip_bad and rows):
        raise InputError(_complaint(path, bad, usable=len(rows)))
    return rows, bad


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine(f"longer than {MAX_LINE_BYTES // 2**20} MiB")
    if b"\0" in raw:
        raise BadLine("holds a NUL character")
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError:
        raise BadLine("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"is not JSON ({error.msg.lower()} at column {error.colno})") from None
    except (RecursionError, ValueError):
        raise BadLine("is JSON too deep or a number too long to read") from None
    if not isinstance(value, dict):
        raise BadLine('is not an object like {"question": ..., "answer": ...}')
    return value


def _complaint(path: str, bad: list[str], usable: int) -> str:
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    way_out = "fix them, or leave them out with --skip-bad" if usable else "no line is usable"
    plural = "s" if len(bad) > 1 else ""
    return f"{shorten_path(path)} has {len(bad)} bad line{plural} ({'; '.join(bad[:SHOWN])}{more}): {way_out}."
