"""Pareto frontiers over two measures.

A point is dominated if another is at least as good on both axes and better on one. Of exact ties the first is kept.
Points that miss a value (NaN) are neither on the frontier nor dominated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spec.measures import Better

Indices = NDArray[np.intp]


def frontier(x: ArrayLike, y: ArrayLike, x_better: Better, y_better: Better) -> Indices:
    """Indices of the points on the frontier, ascending in x. O(n log n).

    Raises ValueError for unequal lengths or a direction that is neither ``higher`` nor ``lower``.

        >>> frontier([1, 2, 3], [0.5, 0.4, 0.9], Better.LOWER, Better.HIGHER).tolist()
        [0, 2]
    """
    cost_x, cost_y = _costs(x, y, x_better, y_better)
    found = _minima(cost_x, cost_y)
    return found if x_better is Better.LOWER else found[::-1]


def dominators(x: ArrayLike, y: ArrayLike, x_better: Better, y_better: Better) -> Indices:
    """For each point the frontier point that dominates it at the least cost, or -1 if none does. O(n log n).

    The cost is the axis on which lower is better; x if that is true of both or neither.

        >>> dominators([1, 2, 3], [0.5, 0.4, 0.9], Better.LOWER, Better.HIGHER).tolist()
        [-1, 0, -1]
    """
    cost_x, cost_y = _costs(x, y, x_better, y_better)
    if y_better is Better.LOWER and x_better is Better.HIGHER:
        cost_x, cost_y = cost_y, cost_x
    front = _minima(cost_x, cost_y)
    result = np.full(cost_x.shape, -1, dtype=np.intp)
    if not front.size:
        return result
    usable = np.flatnonzero(np.isfinite(cost_x) & np.isfinite(cost_y))
    # Along the frontier cost_x rises and cost_y falls: the first point whose cost_y is low enough is the cheapest.
    at = np.searchsorted(-cost_y[front], -cost_y[usable], side="left")
    best = front[np.minimum(at, front.size - 1)]
    better = (cost_x[best] < cost_x[usable]) | (cost_y[best] < cost_y[usable])
    dominated = better & (cost_x[best] <= cost_x[usable]) & (cost_y[best] <= cost_y[usable])
    result[usable[dominated]] = best[dominated]
    return result


def _costs(
    x: ArrayLike, y: ArrayLike, x_better: Better, y_better: Better
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both axes as costs, lower is better; None becomes NaN."""
    cost_x, cost_y = (_cost(v, better) for v, better in ((x, x_better), (y, y_better)))
    if cost_x.shape != cost_y.shape or cost_x.ndim != 1:
        raise ValueError("a frontier needs two series of the same length")
    return cost_x, cost_y


def _cost(values: ArrayLike, better: Better) -> NDArray[np.float64]:
    if better is Better.NEITHER:
        raise ValueError("a frontier needs axes on which one direction is better")
    array = np.asarray(values, dtype=np.float64)
    return -array if better is Better.HIGHER else array


def _minima(cost_x: NDArray[np.float64], cost_y: NDArray[np.float64]) -> Indices:
    """Indices of the non-dominated points, ascending in cost_x; the first of each tie."""
    usable = np.flatnonzero(np.isfinite(cost_x) & np.isfinite(cost_y))
    order = usable[np.lexsort((cost_y[usable], cost_x[usable]))]
    falling = cost_y[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(falling)[:-1])) if order.size else falling
    found: Indices = order[falling < before]
    return found
