"""``doctor``: what this machine offers, what is missing and why; with ``--calibrate`` how fast it can be at best."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from analysis.format import si
from commands.database import open_database
from commands.options import Db, Json
from commands.output import EXIT_FAILED, print_json, print_table, say

Calibrate = Annotated[bool, typer.Option("--calibrate", help="Measure copy bandwidth and matrix rate, and store them.")]
Network = Annotated[bool, typer.Option("--network", help="Also ask whether the model hub can be reached.")]


def doctor(calibrate: Calibrate = False, network: Network = False, db: Db = None, json: Json = False) -> int:
    """Say what works on this machine, what does not, and why. Exit code 1 when something that is needed is missing."""
    from engine.doctor import report  # here, for it imports torch

    checks = report(network=network)
    ceilings = _calibrate(db) if calibrate else []
    failed = any(c.status == "fail" for c in checks)
    if json:
        print_json({"checks": [dataclasses.asdict(c) for c in checks], "ceilings": ceilings})
        return EXIT_FAILED if failed else 0
    print_table(("", "check", "found", ""), [(c.status, c.name, c.value, c.advice) for c in checks])
    for device in ceilings:
        rates = ", ".join(f"{name} {si(rate, 'FLOP/s')}" for name, rate in device["matmul_flop_per_s"].items())
        say(f"{device['device']}: copies {si(device['copy_bytes_per_s'], 'B/s')}; multiplies matrices at {rates}")
    return EXIT_FAILED if failed else 0


def _calibrate(db: str | None) -> list[dict[str, Any]]:
    """Measure the ceilings of every device and keep them with the hardware they belong to."""
    from engine.doctor import ceilings
    from engine.measure.hardware import fingerprint

    found = [device.to_dict() for device in ceilings()]
    with open_database(db) as store:
        store.settings.set(f"ceilings:{fingerprint()['hardware_id']}", found)
    return found
