"""Why a point is dominated, in words."""

from dataclasses import replace

import pytest

from analysis.explain import Point, differences, why_dominated
from spec.run_spec import Precision, RunSpec
from spec.strategy import parse_strategy


def point(label, latency, accuracy, spec):
    return Point(
        label, {"latency_p50_s": latency, "accuracy": accuracy, "throughput_tok_s": 1 / latency}, spec.to_dict()
    )


A = point("A", 1.8, 0.50, RunSpec("lab-s", Precision("fp32")))
B = point("B", 1.0, 0.52, RunSpec("lab-s", Precision("bf16")))


def test_the_cost_comes_first_and_the_cause_last():
    expected = (
        "1.80x the median latency of B at 2.0 points lower accuracy; it differs in precision.weights: fp32 → bf16."
    )
    assert why_dominated(A, B, "latency_p50_s", "accuracy") == expected
    assert why_dominated(A, B, "accuracy", "latency_p50_s") == expected


@pytest.mark.parametrize(
    ("latency", "accuracy", "start"),
    [
        (1.0, 0.50, "the same median latency as B at 2.0 points lower accuracy;"),
        (1.8, 0.52, "1.80x the median latency of B at the same accuracy;"),
        (1.8, None, "1.80x the median latency of B at an unknown accuracy;"),
    ],
)
def test_equal_and_unknown_values_are_called_so(latency, accuracy, start):
    assert why_dominated(point("A", latency, accuracy, RunSpec("m")), B, "latency_p50_s", "accuracy").startswith(start)


def test_zero_gives_no_ratio():
    free = Point("B", {"energy_j": 0.0, "accuracy": 0.6}, {})
    paid = Point("A", {"energy_j": 12.0, "accuracy": 0.5}, {})
    assert why_dominated(paid, free, "energy_j", "accuracy").startswith("12.0 J instead of 0 J energy of B at ")


def test_equal_configurations_are_chance():
    assert why_dominated(
        A, point("B", 1.0, 0.5, RunSpec("lab-s", Precision("fp32"))), "latency_p50_s", "accuracy"
    ).endswith("the configurations are the same, so this is chance.")


def test_another_machine_is_no_chance():
    here = replace(A, environment={"hardware_id": "a", "commit": "1"})
    there = replace(A, label="B", environment={"hardware_id": "b", "commit": "2"})
    assert why_dominated(here, there, "latency_p50_s", "accuracy").endswith(
        "the same, but it was measured on another machine and by another version of the program."
    )
    assert why_dominated(here, A, "latency_p50_s", "accuracy").endswith("chance.")


def test_other_data_under_the_same_name_are_no_chance():
    then, today = (replace(A, label=x, environment={"task_hash": x}) for x in "ab")
    assert why_dominated(then, today, "latency_p50_s", "accuracy").endswith("on other data under the same task name.")


def test_many_differences_are_counted():
    other = RunSpec("lab-m", Precision("bf16"), strategy=parse_strategy("best-of-n:n=16"), seed=3)
    assert why_dominated(A, point("B", 1.0, 0.6, other), "latency_p50_s", "accuracy").endswith("more.")


def test_differences_are_dotted_and_show_missing_fields():
    a = RunSpec("lab-s").to_dict()
    b = RunSpec("lab-s", strategy=parse_strategy("sample:temperature=0.5")).to_dict()
    found = {d.field: (d.ours, d.theirs) for d in differences(a, b)}
    assert found["strategy.name"] == ("greedy", "sample")
    assert found["strategy.temperature"] == ("-", "0.5")
    assert differences(a, a) == []
