"""docs/strategies.md says what the declarations say."""

import re

from scripts.strategy_docs import BEGIN, END, PAGE, rewritten
from spec.strategy import STRATEGIES

TEXT = PAGE.read_text()


def test_the_tables_are_those_of_the_declarations():
    assert rewritten(TEXT) == TEXT, "run: python -m scripts.strategy_docs"


def test_every_strategy_has_one_section_with_a_generated_and_a_written_part():
    assert re.findall(r"^## `(.+)`$", TEXT, re.MULTILINE) == list(STRATEGIES)
    sections = re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:]
    for part in sections:
        assert part.startswith(f"\n\n{BEGIN}\n")
        assert len(part.partition(END)[2].strip()) > 40


def test_a_stale_table_is_noticed():
    stale = TEXT.replace("| `balance` | `0.1` |", "| `balance` | `0.2` |")
    assert stale != TEXT
    assert rewritten(stale) == TEXT
