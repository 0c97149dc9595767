"""Alternatives that are types: each has a name, declared parameters, a dict form and a text form.

``name:parameter=value,...`` is the text form. A comma, plus sign or backslash that belongs to a value, e.g. to a path,
has a backslash before it; a plus sign needs one only where entries are joined by plus signs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from spec.errors import SpecError, shorten, unknown
from spec.parameters import build, parameters, validate

_PART = re.compile(r"(?:\\.|[^,])+", re.DOTALL)
_ESCAPED = re.compile(r"\\([\\,+])")
Kind = TypeVar("Kind", bound="Named")


@dataclass(frozen=True)
class Named:
    """Base of all alternatives.

    ``name`` is the word used everywhere, ``summary`` the sentence shown beside it, ``source`` the work it was first
    described in, ``always`` the parameters that the text form shows even at their defaults, in front.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    always: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        validate(self, self.name)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., <parameter>: ...}``, all parameters present."""
        return {"name": self.name} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def __str__(self) -> str:
        """Compact text form: the name, what is always shown, then what differs from its default."""
        parts = [
            f"{p.name}={self._escape(str(_plain(getattr(self, p.name))))}"
            for p in sorted(parameters(type(self)), key=lambda p: p.name not in self.always[:1])
            if p.name in self.always or getattr(self, p.name) != p.default
        ]
        return self.name + (":" + ",".join(parts) if parts else "")

    @staticmethod
    def _escape(value: str) -> str:
        """``value`` as the parser reads it."""
        return value.replace("\\", "\\\\").replace(",", "\\,")


def parse_named(text: str, known: Mapping[str, type[Kind]], what: str) -> Kind:
    """The one of ``known`` that ``name:parameter=value,...`` says; SpecError with the nearest valid word."""
    if not isinstance(text, str) or not text.strip():
        raise SpecError(f"A {what} must be given, one of: {', '.join(known)}.", field=what)
    name, _, rest = text.strip().partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in _PART.findall(rest))):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals or not value:
            comma = r" A comma inside a value is written \,." if values else ""
            raise SpecError(f"Write {what} parameters as name=value, not {shorten(part)}.{comma}", field=what)
        if key in values:
            raise SpecError(f"{what.capitalize()} parameter {key!r} is given twice.", field=what)
        values[key] = _ESCAPED.sub(r"\1", value)
    return named_from_dict({"name": name.strip()} | values, known, what)


def named_from_dict(data: dict[str, Any], known: Mapping[str, type[Kind]], what: str) -> Kind:
    """Inverse of ``to_dict``; strict: unknown names and parameters are errors."""
    if not isinstance(data, dict) or "name" not in data:
        raise SpecError(f"{what} must be an object with a name, not {shorten(data)}.", field=what)
    values = dict(data)
    name = str(values.pop("name"))
    if name not in known:
        raise unknown(what, name, known, field=what)
    made: Kind = build(known[name], values, name)
    return made


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value
