"""The formulas behind the summary measures, written once: engine and analysis must not disagree about a percentile."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

Z_95 = 1.959963984540054


def wilson(k: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share ``k / n`` (Wilson 1927), 95 % by default.

    ``k`` may be fractional: a mean over repeats of the same ``n`` problems.
    Raises ValueError unless 0 <= k <= n and n > 0.

    >>> tuple(round(v, 3) for v in wilson(8, 10))
    (0.49, 0.943)
    """
    if not (n > 0 and 0 <= k <= n):
        raise ValueError(f"a share needs 0 <= k <= n and n > 0, not k={k}, n={n}")
    p = k / n
    z2 = z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, middle - half)
    high = 1.0 if k == n else min(1.0, middle + half)
    return low, high


def percentile(ordered: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0 to 100) of an ascending series, linearly interpolated (numpy's default method).

    Raises ValueError for an empty series or a ``q`` out of range.
    """
    if not ordered or not 0 <= q <= 100:
        raise ValueError("a percentile needs at least one sample and 0 <= q <= 100")
    at = (len(ordered) - 1) * q / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    a, b = ordered[low], ordered[high]
    return a if a == b else a + (b - a) * (at - low)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of ``k`` samples is correct, from ``n`` samples of which ``c`` are (Chen et al. 2021).

    1 - C(n-c, k) / C(n, k). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


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


def repeats(values: Sequence[float]) -> Repeats:
    """Spread of repeated measurements of one thing; raises ValueError without a finite value."""
    finite = [float(v) for v in values if math.isfinite(v)]
    n = len(finite)
    if not n:
        raise ValueError("there is nothing to average")
    mean = statistics.fmean(finite)
    if n == 1:
        return Repeats(1, mean, None, None, None)
    spread = statistics.stdev(finite)
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
