"""Statistics: textbook values, and properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.statistics import Stability, pass_at_k, percentile, repeats, t_quantile, wilson

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


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (6, 6, 1), (4, 1, 4)])
def test_pass_at_k_counts_subsets(n, c, k):
    subsets = list(itertools.combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


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
