"""Tables of measured runs between two comments of a page of the documentation, and the runs that they need."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis.format import tenth_of_percent
from lab.family import RUNS
from spec.run_spec import RunSpec
from store import Store, open_store

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = ROOT / "docs" / "findings.md"
DATABASE = RUNS / "findings.db"
PART = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def measure(specs: Sequence[RunSpec], path: Path) -> None:
    """Queue what is not measured yet, and let a worker take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_store(path) as store:
        for wanted in specs:
            if not store.runs.find_same(wanted.key()):
                store.jobs.enqueue(wanted, source="cli")
    command = [sys.executable, "cli.py", "worker", "--until-idle", "--db", str(path)]
    subprocess.run(command, cwd=ROOT, check=True)


def rewritten(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with these tables anew; others stay as they are."""

    def part(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"<!-- table: {name} -->\n\n{tables[name]()}\n\n<!-- end -->" if name in tables else found.group()

    return PART.sub(part, page)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], names: int) -> str:
    """A table whose first ``names`` columns are words, the others numbers."""
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def with_interval(share: float, low: float, high: float) -> str:
    """A share and the ends of its interval, in per cent."""
    return f"{tenth_of_percent(share)} ({tenth_of_percent(low)} to {tenth_of_percent(high)})"


def write(
    doc: str | None,
    database: Path,
    specs: Sequence[RunSpec],
    tables: Mapping[str, Callable[[Any], str]],
    read: Callable[[Store], Any],
) -> None:
    """What a script of runs and tables does: measure what is missing, and write its tables from what ``read`` gives.

    ``doc``: of the script.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--db", type=Path, default=database)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    chosen = parser.parse_args()
    if not chosen.tables:
        measure(specs, chosen.db)
    with open_store(chosen.db) as store:
        found = read(store)
        made = {name: partial(make, found) for name, make in tables.items()}
        FINDINGS.write_text(rewritten(FINDINGS.read_text(), made))
