"""Figures as text."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.format import count, duration, measure_text, percent, si
from spec.measures import MEASURES

PREFIX = {"p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@given(st.floats(1e-11, 9e17), st.booleans())
def test_si_keeps_three_digits(value, negative):
    value = -value if negative else value
    text = si(value, "J")
    number, prefix = re.fullmatch(r"(-?[\d.]+) ([pnµmkMGTP]?)J", text).groups()
    assert float(number) * PREFIX[prefix] == pytest.approx(value, rel=0.0051)
    assert len(number.strip("-").replace(".", "").lstrip("0")) == 3
    assert 1 <= abs(float(number)) < 1000


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999.96, "J", "1.00 kJ"),
        (999.4, "J", "999 J"),
        (0, "s", "0 s"),
        (12_300, "tokens", "12.3 k tokens"),
        (1.84e10, "FLOP/s", "18.4 GFLOP/s"),
        (0.0111, "nats", "0.0111 nats"),
        (2.5, "nats", "2.50 nats"),
        (1.5, "", "1.50"),
        (1e30, "FLOP", "1000000000000 EFLOP"),
        (math.nan, "J", "n/a"),
        (None, "J", "n/a"),
    ],
)
def test_si_examples(value, unit, text):
    assert si(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0000123, "12.3 µs"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (61, "1 min 1 s"),
        (200.4, "3 min 20 s"),
        (3599.7, "1 h"),
        (3900, "1 h 5 min"),
        (86_399, "23 h 59 min"),
        (200_000, "2 d 7 h"),
        (-200, "-3 min 20 s"),
        (math.inf, "n/a"),
        (None, "n/a"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_percent_and_count():
    assert percent(0.712, 0.683, 0.74) == "71.2 % (68.3-74.0)"
    assert percent(0.0) == "0.0 %"
    assert percent(20 / 64) == "31.3 %"
    assert percent(None, 0.1, 0.2) == "n/a"
    assert count(1234567) == "1,234,567"
    assert count(None) == "n/a"


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_a_text_for_a_value_for_zero_and_for_nothing(name):
    assert measure_text(name, None) == "n/a"
    assert measure_text(name, 0).startswith("0")
    assert "n/a" not in measure_text(name, 0.25)


def test_bytes_and_shares():
    assert measure_text("weights_bytes", 2_470_000_000) == "2.47 GB"
    assert measure_text("pass_at_n", 0.5) == "50.0 %"
    assert measure_text("n_problems", 1319) == "1,319"
    assert measure_text("throughput_tok_s", 1234.5) == "1.23 k tokens/s"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("perplexity_token", 1500.2, "1500"),
        ("perplexity_token", 0.0123, "0.0123"),
        ("problems_per_s", 0.5, "0.500 1/s"),
        ("problems_per_s", 1500, "1500 1/s"),
        ("throughput_tok_s", 0.5, "0.500 tokens/s"),
        ("tokens_per_problem", 0.25, "0.250 tokens"),
        ("flops_per_problem", 0.5, "0.500 FLOP"),
        ("j_per_token", 0.005, "5.00 mJ"),
    ],
)
def test_prefixes_only_where_they_have_a_meaning(name, value, text):
    assert measure_text(name, value) == text


def test_figures_of_a_compressed_model_read_as_artifacts_print_them():
    assert measure_text("logit_kl", 0.0111) == "0.0111 nats"
    assert measure_text("top1_agreement", 0.973) == "97.3 %"
