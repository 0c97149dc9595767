"""Renders measured results of the family as a Markdown table, into `lab/README.md` between its two marker comments.

python -m lab.table results.json        # a list of {model, strategy, accuracy, accuracy_by_level, n_problems,
                                        #            wilson_low, wilson_high}
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.family import LAB

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
README = LAB / "README.md"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal, `n/a` where it was not measured."""
    return "n/a" if share is None else f"{100 * share:.1f}"


def render(results: Iterable[Mapping[str, Any]]) -> str:
    """The table: one row per model and strategy, in the order given; levels are the columns that occur."""
    rows = list(results)
    levels = sorted({int(level) for row in rows for level in row["accuracy_by_level"]})
    head = ["model", "strategy", "accuracy %", "95 % interval", "problems", *(f"level {level}" for level in levels)]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in rows:
        by_level = {int(level): share for level, share in row["accuracy_by_level"].items()}
        lines.append(
            [
                f"`{row['model']}`",
                str(row["strategy"]),
                percent(row["accuracy"]),
                f"{percent(row['wilson_low'])} to {percent(row['wilson_high'])}",
                str(row["n_problems"]),
                *(percent(by_level.get(level)) for level in levels),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def insert(text: str, table: str) -> str:
    """`text` with everything between the marker comments replaced by the table."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} and then {END}, once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Read results and rewrite the table in the README."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="JSON file: a list of results")
    parser.add_argument("--readme", type=Path, default=README)
    args = parser.parse_args()
    table = render(json.loads(args.results.read_text()))
    args.readme.write_text(insert(args.readme.read_text(), table))


if __name__ == "__main__":
    main()
