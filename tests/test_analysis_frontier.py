"""Frontiers: held against the definition, point by point."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.frontier import dominators, frontier
from spec.measures import Better

DIRECTIONS = st.sampled_from([Better.HIGHER, Better.LOWER])
# Few distinct values, so that ties are the rule.
VALUES = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))
POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=30)


def costs(points, x_better, y_better):
    sign = {Better.HIGHER: -1, Better.LOWER: 1}
    return [(sign[x_better] * x, sign[y_better] * y) for x, y in points]


def dominates(a, b):
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def missing(point):
    return any(math.isnan(v) for v in point)


def brute_force(points):
    """Indices of points that nothing dominates, the first of each tie."""
    return [
        i
        for i, p in enumerate(points)
        if not missing(p) and not any(dominates(q, p) for q in points) and p not in points[:i]
    ]


@given(POINTS, DIRECTIONS, DIRECTIONS)
def test_frontier_is_the_set_of_points_that_nothing_dominates(points, x_better, y_better):
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    found = frontier(xs, ys, x_better, y_better).tolist()
    assert sorted(found) == brute_force(costs(points, x_better, y_better))
    assert [xs[i] for i in found] == sorted(xs[i] for i in found)


@given(POINTS, DIRECTIONS, DIRECTIONS)
def test_dominator_is_the_cheapest_frontier_point_that_dominates(points, x_better, y_better):
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    flipped = costs(points, x_better, y_better)
    front = brute_force(flipped)
    axis = 1 if (x_better, y_better) == (Better.HIGHER, Better.LOWER) else 0
    for i, found in enumerate(dominators(xs, ys, x_better, y_better).tolist()):
        better = [j for j in front if not missing(flipped[i]) and dominates(flipped[j], flipped[i])]
        assert found == (min(better, key=lambda j: flipped[j][axis]) if better else -1)


def test_none_is_a_missing_value():
    assert frontier([1, None, 3], [1, 2, None], Better.LOWER, Better.HIGHER).tolist() == [0]


def test_infinite_values_are_left_out():
    assert frontier([1, math.inf, -math.inf], [1, 2, 3], Better.LOWER, Better.HIGHER).tolist() == [0]


def test_no_points_no_frontier():
    assert frontier([], [], Better.LOWER, Better.HIGHER).size == 0
    assert dominators([], [], Better.LOWER, Better.HIGHER).size == 0


def test_a_duplicate_is_not_dominated_by_its_twin():
    assert dominators([1, 1, 2], [1, 1, 1], Better.LOWER, Better.LOWER).tolist() == [-1, -1, 0]


@pytest.mark.parametrize(
    ("x", "y", "better"), [([1, 2], [1], Better.LOWER), ([1], [1], Better.NEITHER), ([[1]], [[1]], Better.LOWER)]
)
def test_unusable_axes_are_refused(x, y, better):
    with pytest.raises(ValueError, match="a frontier needs"):
        frontier(x, y, better, Better.LOWER)
