"""Figures as people read them: three significant digits, SI prefixes, intervals. Not measured is "n/a", never 0."""

from __future__ import annotations

import math

from spec.measures import MEASURES, Measure

MISSING = "n/a"
_PREFIXES = {-4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}
_WORDS = ("tokens", "layers")  # no symbols: a prefix stands apart from them
# Units of which a thousandth has no name: 0.5 tokens and 0.0111 nats, not 500 m tokens and 11.1 mnats.
_COUNTED = frozenset({"tokens", "tokens/s", "FLOP", "FLOP/s", "B", "B/s", "nats"})
SHARES = frozenset({"accuracy", "accuracy_low", "accuracy_high", "pass_at_n", "acceptance_rate", "top1_agreement"})


def si(value: float | None, unit: str = "") -> str:
    """Three significant digits and an SI prefix; none for ``1/s``, and none below 1 for what is counted or in nats.

    >>> si(0.01234, "s"), si(999.96, "J"), si(2.5e12, "FLOP/s"), si(12_300, "tokens"), si(0, "B"), si(None, "J")
    ('12.3 ms', '1.00 kJ', '2.50 TFLOP/s', '12.3 k tokens', '0 B', 'n/a')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return f"0 {unit}".strip()
    rounded = float(f"{value:.2e}")  # first, so that 999.96 becomes 1.00 k and not 1000
    power = min(max(_magnitude(rounded) // 3, min(_PREFIXES)), max(_PREFIXES))
    power = 0 if unit == "1/s" else max(0, power) if unit in _COUNTED else power
    prefix = _PREFIXES[power]
    # "12.3 k tokens", but "12.3 kJ": a prefix sticks to a symbol, not to a word.
    gap = " " if prefix and unit.startswith(_WORDS) else ""
    return f"{significant(rounded / 10.0 ** (3 * power))} {prefix}{gap}{unit}".strip()


def significant(value: float) -> str:
    """Three significant digits without a prefix.

    >>> significant(1.8), significant(0.0456), significant(12345)
    ('1.80', '0.0456', '12345')
    """
    return f"{value:.{max(0, 2 - _magnitude(float(f'{value:.2e}')))}f}" if value else "0"


def _magnitude(value: float) -> int:
    """Exponent of the leading decimal digit of a number other than zero."""
    return int(f"{value:e}".partition("e")[2])


def duration(seconds: float | None) -> str:
    """A time span in the two units that matter.

    >>> duration(0.85), duration(12.34), duration(200), duration(3900), duration(200_000)
    ('850 ms', '12.3 s', '3 min 20 s', '1 h 5 min', '2 d 7 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 59.95:
        return si(seconds, "s")
    whole = round(seconds)
    if whole < 3600:
        big, small, size, inner = "min", "s", 60, 1
    elif whole < 86400:
        big, small, size, inner = "h", "min", 3600, 60
    else:
        big, small, size, inner = "d", "h", 86400, 3600
    first, rest = divmod(whole, size)
    return f"{first} {big} {rest // inner} {small}" if rest // inner else f"{first} {big}"


def percent(share: float | None, low: float | None = None, high: float | None = None) -> str:
    """A share in percent, with its interval where there is one.

    >>> percent(0.712, 0.683, 0.74), percent(0.5), percent(None)
    ('71.2 % (68.3-74.0)', '50.0 %', 'n/a')
    """
    if share is None or not math.isfinite(share):
        return MISSING
    text = f"{tenth_of_percent(share)} %"
    return text if low is None or high is None else f"{text} ({tenth_of_percent(low)}-{tenth_of_percent(high)})"


def tenth_of_percent(share: float) -> str:
    """Percent with one decimal, halves up as tables in the browser round them: 20 of 64 is 31.3, not 31.2."""
    return f"{math.floor(1000 * share + 0.5) / 10:.1f}"


def count(value: float | None) -> str:
    """A whole number with thousands separators.

    >>> count(1319), count(None)
    ('1,319', 'n/a')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{round(value):,}"


def measure_text(measure: str | Measure, value: float | None) -> str:
    """The value of a measure as text, by its unit.

    >>> measure_text("accuracy", 0.5), measure_text("n_problems", 1000), measure_text("logit_kl", 0.0111)
    ('50.0 %', '1,000', '0.0111 nats')
    """
    m = MEASURES[measure] if isinstance(measure, str) else measure
    if m.name in SHARES:
        return percent(value)
    if m.unit == "s":
        return duration(value)
    if m.integer and m.unit in ("", "tokens"):
        return count(value)
    if not m.unit:
        return MISSING if value is None or not math.isfinite(value) else significant(value)
    return si(value, m.unit)
