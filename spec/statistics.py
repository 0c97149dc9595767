"""The formulas behind the summary measures, written once: engine and analysis must not disagree about a percentile."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
