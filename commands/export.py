"""``export``: the table of runs as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import errno
import io
import json as jsonlib
import os
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.database import open_database
from commands.options import Db, Json
from commands.output import print_json, say
from spec.choices import parse_choice
from spec.errors import InputError, SpecError, shorten_path
from spec.paths import expand

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # not the fault of who named the file
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Format(StrEnum):
    """File formats of an export."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


FormatName = Annotated[
    str | None,
    typer.Option("--format", help="csv, json or parquet.", show_default="csv; with --json and no --output, json"),
]
Output = Annotated[str | None, typer.Option("--output", help="File to write; without it, standard output.")]


def export(format: FormatName = None, output: Output = None, db: Db = None, json: Json = False) -> None:
    """Write all runs, oldest first, one row each: configuration, state, measures, hardware."""
    to_stdout_as_json = json and output is None
    kind = parse_choice(Format, format or ("json" if to_stdout_as_json else "csv"), field="format")
    if to_stdout_as_json and kind is not Format.JSON:
        raise SpecError(f"--json prints JSON, not {kind}; leave it out, or give a file with --output.", field="format")
    if output is None and kind is Format.PARQUET:
        raise SpecError("Parquet is no text; give a file with --output.", field="output")
    with open_database(db) as store:
        rows = list(store.runs.export_rows())
    data = ENCODERS[kind](rows)
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = expand(output).absolute()
    try:
        write_whole(path, data)
    except OSError as error:
        if error.errno in FULL_OR_BROKEN:
            raise
        raise InputError(
            f"{shorten_path(path)} cannot be written ({error.strerror}); name a file in a folder that is there and "
            "may be written to."
        ) from None
    if json:
        print_json({"path": str(path), "format": kind, "rows": len(rows)})
    else:
        say(f"{len(rows)} run{'' if len(rows) == 1 else 's'} written to {path}.")


def to_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Comma-separated, with a header; a text that a spreadsheet would run as a formula gets a ' in front."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0].keys() if rows else ["run_id"])
    writer.writerows([_harmless(value) for value in row.values()] for row in rows)
    return text.getvalue().encode()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def to_json(rows: Sequence[dict[str, Any]]) -> bytes:
    """A list of objects, null for what was not measured."""
    return (jsonlib.dumps(list(rows), indent=1, allow_nan=False) + "\n").encode()


def to_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """One Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


ENCODERS = {Format.CSV: to_csv, Format.JSON: to_json, Format.PARQUET: to_parquet}


def write_whole(path: Path, data: bytes) -> None:
    """Write the file at once: a full disk leaves the old one, never half a new one. An OSError names ``path``."""
    try:
        _write_whole(path, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_whole(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".export-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
