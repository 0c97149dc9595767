"""The page of findings: its tables, and what each of them is counted from."""

import math

import pytest

from analysis.scaling import Sketch
from scripts import compressed, findings, tables
from spec.strategy import parse_strategy


def sketch_of(kinds, scores, correct=False):
    return Sketch("p", correct, kinds, scores, {}, 10.0, 10.0)


def test_every_table_of_the_page_is_made_and_every_table_has_its_place():
    named = tables.PART.findall(tables.FINDINGS.read_text())
    assert sorted(named) == sorted([*findings.TABLES, *compressed.TABLES])


def test_a_table_is_written_between_its_comments_and_others_are_left():
    page = "a\n<!-- table: votes -->\nold\n<!-- end -->\nb\n<!-- table: other -->\nold\n<!-- end -->"
    once = tables.rewritten(page, {"votes": lambda: "| new |"})
    assert once == page.replace("old", "\n| new |\n", 1)
    assert tables.rewritten(once, {"votes": lambda: "| new |"}) == once


@pytest.mark.parametrize(
    ("kinds", "scores", "right"),
    [
        ([1, 0, 1], [0.5, 0.9, 0.1], True),
        ([1, 0, 1], [0.95, 0.9, 0.1], False),
        ([-1, 0], [0.95, 0.1], True),  # no answer, no vote
        ([1, 0], [math.nan, 0.1], True),
        ([-1, -1], [0.5, 0.5], False),
    ],
)
def test_the_best_sample_alone_decides(kinds, scores, right):
    assert findings._by_best(sketch_of(kinds, scores)).correct is right
    assert findings._by_best(sketch_of(kinds, scores, correct=not right)).correct is right


def test_the_runs_differ_and_name_strategies_that_exist():
    specs = findings.specs()
    assert len({s.key() for s in specs}) == len(specs)
    for model in findings.MODELS:
        for name in findings.compared(model):
            assert parse_strategy(name)
    assert {s.model for s in specs} == set(findings.MODELS)


def test_costs_are_multiples_of_the_larger_models():
    class Goal:
        def value(self, name):
            return 0.5

        def cost(self, name):
            return 2.0

    cells = findings._against(0.6, 0.5, 0.7, [1.0, 4.0, 20.0], Goal())
    assert cells == ["60.0 (50.0 to 70.0)", "yes", "0.5x", "2.0x", "10.0x"]
    assert findings._against(0.4, 0.3, 0.5, [1.0, 4.0, 20.0], Goal())[1] == "no"
