"""Statistics of runs: intervals, paired comparisons, spread over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spec.statistics import pass_at_k, wilson

__all__ = [
    "Interval",
    "McNemar",
    "Repeats",
    "Stability",
    "mcnemar",
    "paired_bootstrap",
    "pass_at_k",
    "percentiles",
    "repeats",
    "t_quantile",
    "wilson",
]

RESAMPLES = 10_000
_CHUNK = 2_000_000


def percentiles(values: ArrayLike, qs: Sequence[float] = (50, 90, 95, 99)) -> dict[float, float]:
    """``{q: value}`` by linear interpolation, values that are not finite left out; empty for none at all."""
    finite = _finite(values)
    if not finite.size:
        return {}
    return {q: float(v) for q, v in zip(qs, np.percentile(finite, list(qs)), strict=True)}


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    finite: NDArray[np.float64] = array[np.isfinite(array)]
    return finite


@dataclass(frozen=True, slots=True)
class McNemar:
    """Paired comparison of two runs on ``n`` problems: how many only a, only b solved, and the exact p-value."""

    n: int
    only_a: int
    only_b: int
    p_value: float

    @property
    def difference(self) -> float:
        """Accuracy of b minus accuracy of a."""
        return (self.only_b - self.only_a) / self.n


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """McNemar's exact test (two-sided binomial on the problems that only one run solved).

    ``a[i]`` and ``b[i]`` tell whether the runs solved problem i. Raises ValueError for unequal lengths or none.
    """
    if len(a) != len(b) or not a:
        raise ValueError("a paired test needs the same problems, one at least, on both sides")
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(len(a), only_a, only_b, min(1.0, 2 * tail / 2**n))


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from ``n`` values with its 95 % interval."""

    n: int
    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(a: ArrayLike, b: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of ``b - a`` over pairs with its percentile-bootstrap 95 % interval (Efron 1979).

    Pairs in which either value is missing are left out. The same seed gives the same interval. Raises ValueError for
    unequal lengths or no pair.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError("a paired comparison needs two series of the same length")
    difference = _finite(y - x)
    n = difference.size
    if not n:
        raise ValueError("there is no pair to compare")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // n)  # bounds the memory of one draw, whatever n
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        means[start : start + count] = difference[rng.integers(0, n, size=(count, n))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(n, float(difference.mean()), float(low), float(high))


class Stability(StrEnum):
    """Band of the coefficient of variation: below 5 %, below 10 %, above."""

    GOOD = "good"
    FAIR = "fair"
    UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class Repeats:
    """Repeated measurements: mean with t-interval, coefficient of variation and its band.

    ``interval`` and ``cv`` are None where they have no meaning: one value, or a mean of zero.
    """

    n: int
    mean: float
    interval: tuple[float, float] | None
    cv: float | None
    stability: Stability | None


def repeats(values: ArrayLike) -> Repeats:
    """Spread of repeated measurements of one thing; raises ValueError without a finite value."""
    finite = _finite(values)
    n = int(finite.size)
    if not n:
        raise ValueError("there is nothing to average")
    mean = float(finite.mean())
    if n == 1:
        return Repeats(1, mean, None, None, None)
    spread = float(finite.std(ddof=1))
    half = t_quantile(0.975, n - 1) * spread / math.sqrt(n)
    cv = spread / abs(mean) if mean else None
    return Repeats(n, mean, (mean - half, mean + half), cv, None if cv is None else _band(cv))


def _band(cv: float) -> Stability:
    return Stability.GOOD if cv < 0.05 else Stability.FAIR if cv < 0.10 else Stability.UNSTABLE


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for 0.5 <= p < 1 and a whole number of degrees of freedom, to 1e-9.

    >>> round(t_quantile(0.975, 4), 3)
    2.776
    """
    if not (0.5 <= p < 1 and df >= 1):
        raise ValueError("t_quantile needs 0.5 <= p < 1 and df >= 1")
    low, high = 0.0, 1.0
    while _t_central(high, df) < 2 * p - 1:
        high *= 2
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, df) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _t_central(t: float, df: int) -> float:
    """P(-t < T < t), exact finite sums for whole df (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(df))
    sine, cosine2 = math.sin(theta), math.cos(theta) ** 2
    odd = df % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= cosine2 * (k - 1) / k
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
