"""Statistics: textbook values, and properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats import (
    Stability,
    mcnemar,
    paired_bootstrap,
    pass_at_k,
    percentiles,
    repeats,
    t_quantile,
    wilson,
)
from spec.statistics import percentile

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
FLOATS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(COUNTS)
def test_wilson_contains_the_share_and_is_symmetric(counts):
    k, n = counts
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    mirrored_low, mirrored_high = wilson(n - k, n)
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(k, n):
    with pytest.raises(ValueError, match="a share needs"):
        wilson(k, n)


@given(st.lists(FLOATS, min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_agrees_with_numpy(values, q):
    assert percentile(sorted(values), q) == pytest.approx(float(np.percentile(values, q)), abs=1e-6, rel=1e-9)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses_no_samples_and_odd_ranks(values, q):
    with pytest.raises(ValueError, match="a percentile needs"):
        percentile(values, q)


def test_percentiles_leave_missing_values_out():
    assert percentiles([1, 2, 3, math.nan, math.inf], [50]) == {50: 2.0}
    assert percentiles([math.nan]) == {}


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (6, 6, 1), (4, 1, 4)])
def test_pass_at_k_counts_subsets(n, c, k):
    subsets = list(itertools.combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_mcnemar_is_the_binomial_of_the_problems_that_one_run_solved():
    a = [True] * 10 + [True] * 1 + [False] * 9 + [False] * 5
    b = [True] * 10 + [False] * 1 + [True] * 9 + [False] * 5
    found = mcnemar(a, b)
    assert (found.n, found.only_a, found.only_b) == (25, 1, 9)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert found.difference == pytest.approx(8 / 25)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_symmetric_and_a_probability(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    assert mcnemar(a, b).p_value == mcnemar(b, a).p_value
    assert 0 < mcnemar(a, b).p_value <= 1
    assert mcnemar(a, a).p_value == 1


def test_mcnemar_refuses_different_problems():
    with pytest.raises(ValueError, match="same problems"):
        mcnemar([True], [True, False])


def test_bootstrap_is_seeded_and_finds_a_clear_difference():
    rng = np.random.default_rng(1)
    a = rng.normal(1.0, 0.1, 200)
    b = a + 0.5 + rng.normal(0, 0.1, 200)
    found = paired_bootstrap(a, b)
    assert found == paired_bootstrap(a, b)
    assert found.low < 0.5 < found.high
    assert found.excludes_zero
    # The normal approximation holds for 200 pairs.
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(b - a) / math.sqrt(200), rel=0.05)


def test_bootstrap_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [paired_bootstrap(np.zeros(40), rng.normal(0, 1, 40), resamples=400, seed=i) for i in range(200)]
    assert 0.88 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.99


def test_bootstrap_leaves_incomplete_pairs_out_and_refuses_none():
    assert paired_bootstrap([1, 2, math.nan], [2, 3, 4]).n == 2
    with pytest.raises(ValueError, match="no pair"):
        paired_bootstrap([math.nan], [1])
    with pytest.raises(ValueError, match="same length"):
        paired_bootstrap([1, 2], [1])


@pytest.mark.parametrize(
    ("df", "value"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (99, 1.98422)],
)
def test_t_quantile_matches_the_table(df, value):
    assert t_quantile(0.975, df) == pytest.approx(value, abs=5e-5)


def test_t_quantile_refuses_other_probabilities():
    with pytest.raises(ValueError, match="t_quantile needs"):
        t_quantile(0.1, 3)


def test_repeats_give_an_interval_and_a_band():
    found = repeats([10.0, 10.2, 9.8])
    assert found.mean == pytest.approx(10)
    assert found.interval == pytest.approx((10 - 4.30265 * 0.2 / math.sqrt(3), 10 + 4.30265 * 0.2 / math.sqrt(3)))
    assert (found.cv, found.stability) == (pytest.approx(0.02), Stability.GOOD)
    assert repeats([10, 11.5, 10]).stability is Stability.FAIR
    assert repeats([10, 20]).stability is Stability.UNSTABLE


def test_one_repeat_has_no_spread():
    assert repeats([3.0]).interval is None
    assert repeats([3.0]).stability is None
    assert repeats([-1.0, 1.0]).cv is None
    with pytest.raises(ValueError, match="nothing to average"):
        repeats([math.nan])
