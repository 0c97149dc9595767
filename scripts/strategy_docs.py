"""Write the tables of docs/strategies.md anew from the declarations: ``python -m scripts.strategy_docs``.

In each section of that page, what stands between the two comments comes from here; the rest is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from spec.parameters import parameters
from spec.strategy import STRATEGIES, Strategy

PAGE = Path(__file__).resolve().parents[1] / "docs" / "strategies.md"
BEGIN, END = "<!-- from the declaration -->", "<!-- by hand -->"
_SECTION = re.compile(rf"^## `([\w-]+)`\n\n{BEGIN}\n.*?{END}\n", re.MULTILINE | re.DOTALL)


def section(strategy: type[Strategy]) -> str:
    """The heading and the generated part of a strategy's section."""
    parts = [strategy.summary]
    if strategy.source:
        parts.append(f"Source: {strategy.source}.")
    if strategy.needs_runtime:
        parts.append("Needs the own runtime.")
    rows = [f"| `{p.name}` | {_default(p.default)} | {p.allowed} | {p.help} |" for p in parameters(strategy)]
    table = ["| parameter | default | allowed | meaning |", "|---|---|---|---|", *rows] if rows else ["No parameters."]
    return "\n".join([f"## `{strategy.name}`", "", BEGIN, " ".join(parts), "", *table, END, ""])


def rewritten(page: str) -> str:
    """The page with every generated part anew. Raises KeyError for a section of no strategy."""
    return _SECTION.sub(lambda found: section(STRATEGIES[found.group(1)]), page)


def _default(value: object) -> str:
    return "none" if value == "" else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
