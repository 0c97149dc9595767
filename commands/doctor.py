"""``doctor``: what this machine offers, what is missing and why; with ``--calibrate`` how fast it can be at best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.format import si
from commands.database import open_database
from commands.options import Db, Json
from commands.output import EXIT_FAILED, print_json, print_table, say
from spec.errors import IsoquantError
from spec.paths import expand
from store import home, open_store
from store.store import FILE_NAME

if TYPE_CHECKING:
    from engine.doctor import Check

Calibrate = Annotated[bool, typer.Option("--calibrate", help="Measure copy bandwidth and matrix rate, and store them.")]
Network = Annotated[bool, typer.Option("--network", help="Also ask whether the model hub can be reached.")]


def doctor(calibrate: Calibrate = False, network: Network = False, db: Db = None, json: Json = False) -> int:
    """Say what works on this machine, what does not, and why. Exit code 1 when something that is needed is missing."""
    from engine.doctor import report  # here, for it imports torch

    checks = [*report(network=network), check_database(db)]
    ceilings = _calibrate(db) if calibrate else _known_ceilings(db)
    failed = any(c.status == "fail" for c in checks)
    if json:
        print_json({"checks": [dataclasses.asdict(c) for c in checks], "ceilings": ceilings})
        return EXIT_FAILED if failed else 0
    print_table(("", "check", "found", ""), [(c.status, c.name, c.value, c.advice) for c in checks])
    for device in ceilings:
        rates = ", ".join(f"{name} {si(rate, 'FLOP/s')}" for name, rate in device["matmul_flop_per_s"].items())
        say(f"{device['device']}: copies {si(device['copy_bytes_per_s'], 'B/s')}; multiplies matrices at {rates}")
    return EXIT_FAILED if failed else 0


def check_database(db: str | None) -> Check:
    """Whether the database can be opened and is whole, as far as a quick look at every page of it can tell."""
    from engine.doctor import Check

    path: Path | str = db or FILE_NAME
    try:
        path = _path(db)
        if not path.exists():
            return Check("database", "ok", f"{path}: none yet")
        with open_store(path) as store:
            faults = store.integrity(quick=True)
    except (OSError, IsoquantError) as error:
        return Check("database", "fail", str(path), str(error))
    if faults:
        advice = f"{faults[0]}; stop Isoquant and put the newest copy that `python cli.py backup` made in its place."
        return Check("database", "fail", f"{path}: damaged", advice)
    return Check("database", "ok", str(path))


def _path(db: str | None) -> Path:
    return expand(db) if db is not None else home() / FILE_NAME


def _known_ceilings(db: str | None) -> list[dict[str, Any]]:
    """The ceilings that an earlier ``--calibrate`` measured on this machine."""
    from engine.measure.hardware import ceilings_key

    try:
        if not _path(db).exists():
            return []
        with open_store(_path(db)) as store:
            return list(store.settings.get(ceilings_key(), []))
    except (OSError, IsoquantError):  # the check of the database says what is wrong with it
        return []


def _calibrate(db: str | None) -> list[dict[str, Any]]:
    """Measure the ceilings of every device and keep them with the hardware they belong to."""
    from engine.measure.hardware import ceilings_key

    found = _measure()
    with open_database(db) as store:
        store.settings.set(ceilings_key(), found)
    return found


def _measure() -> list[dict[str, Any]]:
    from engine.doctor import ceilings

    return [device.to_dict() for device in ceilings()]
