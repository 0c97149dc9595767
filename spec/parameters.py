"""Numeric and named parameters with range, default and meaning, declared once on the dataclass field.

The form, the CLI help, the docs and the validation all read the same declaration.

    >>> @dataclass(frozen=True)
    ... class Majority:
    ...     n: int = parameter(8, low=1, high=4096, help="How many samples vote.")
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from typing import Any

from spec.choices import parse_choice
from spec.errors import SpecError, shorten, unknown


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared parameter: its name, type, default, allowed range (inclusive) and a one-sentence meaning.

    ``only``: the few words of its type that are allowed; ``words``: what is allowed, where the range does not say it.
    """

    name: str
    type: type
    default: Any
    low: float | None
    high: float | None
    help: str
    optional: bool
    only: tuple[str, ...] = ()
    words: str = ""

    @property
    def choices(self) -> list[str] | None:
        """The words allowed, for a named parameter; None for a number or free text."""
        if not issubclass(self.type, StrEnum):
            return None
        return [m.value for m in self.type if not self.only or m in self.only]

    @property
    def allowed(self) -> str:
        """The allowed values in words, e.g. ``1 to 4096``."""
        if self.words:
            return self.words
        if self.choices:
            return ", ".join(self.choices)
        if self.low is None and self.high is None:
            return "any text" if self.type is str else "any number"
        if self.high is None:
            return f"{_figure(self.low)} or more"
        return f"{_figure(self.low)} to {_figure(self.high)}"


def _figure(number: float | None) -> str:
    """A bound in digits: ``1``, ``0.01``, ``10,000,000``."""
    short = f"{number:g}"
    return f"{number:,.0f}" if "e+" in short else short


def parameter(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    kind: type | None = None,
    optional: bool = False,
    only: tuple[str, ...] = (),
    words: str = "",
) -> Any:
    """A dataclass field that carries its own table row. ``kind`` is needed where the default is None."""
    meta = {"help": help, "low": low, "high": high, "type": kind or type(default), "optional": optional}
    return field(default=default, metadata={"parameter": meta | {"only": only, "words": words}})


def parameters(cls: type) -> list[Parameter]:
    """The declared parameters of a dataclass, in order."""
    return [_of(f) for f in fields(cls) if "parameter" in f.metadata]


def _of(f: Field[Any]) -> Parameter:
    m = f.metadata["parameter"]
    return Parameter(name=f.name, default=f.default, **m)


def coerce(p: Parameter, value: Any, field_name: str) -> Any:
    """``value`` (from JSON, a form or text) as the parameter's type and inside its range, or SpecError."""
    if value is None:
        if p.optional:
            return None
        raise SpecError(f"{field_name} must be given ({p.allowed}).", field=field_name)
    if p.choices is not None:
        return parse_choice(p.type, value, field=field_name)
    if p.type is str:
        return str(value)
    number = _number(p, value, field_name) + 0  # makes -0.0 the same number, and the same key, as 0.0
    if (p.low is not None and number < p.low) or (p.high is not None and number > p.high):
        raise SpecError(f"{field_name} must be {p.allowed}, not {shorten(value)}.", field=field_name)
    return number


def _number(p: Parameter, value: Any, field_name: str) -> int | float:
    what = "a whole number" if p.type is int else "a number"
    error = SpecError(
        f"{field_name} must be {what} ({p.allowed}), not {shorten(value)}{_without_percent(p, value)}.",
        field=field_name,
    )
    if isinstance(value, bool):
        raise error
    try:
        if p.type is int and isinstance(value, (int, str)):
            return int(value)  # never by way of a float: that would round a large seed
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise error from None
    if not math.isfinite(number) or (p.type is int and not number.is_integer()):
        raise error
    return int(number) if p.type is int else number


def _without_percent(p: Parameter, value: Any) -> str:
    """How a share in percent is written, to be put behind the error; nothing for what is none."""
    number = value.strip().removesuffix("%").strip() if isinstance(value, str) and value.strip().endswith("%") else ""
    if p.type is not float or not number.replace(".", "", 1).isdecimal():
        return ""
    return f"; write {float(number) / (100 if p.high is not None and p.high <= 1 else 1):g}"


def validate(obj: Any, prefix: str) -> None:
    """Coerce every declared parameter of a frozen dataclass in place; for use in ``__post_init__``."""
    for p in parameters(type(obj)):
        object.__setattr__(obj, p.name, coerce(p, getattr(obj, p.name), f"{prefix}.{p.name}"))


def build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    """``cls(**values)`` that refuses unknown names and names the nearest valid one."""
    names = [f.name for f in fields(cls)]
    for name in values:
        if name not in names:
            raise unknown(f"parameter of {prefix}", name, names or ["none: it takes no parameters"], field=prefix)
    return cls(**values)
