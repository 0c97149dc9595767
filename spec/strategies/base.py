"""What all strategies have in common: a name, a summary, a source, and a text form."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from spec.errors import SpecError, shorten
from spec.parameters import parameters, validate

LOGPROB = "logprob"  # the reward that costs nothing: how likely the model itself finds its step
SMALLEST = "lab-xs"


@dataclass(frozen=True)
class Strategy:
    """Base of all strategies.

    ``name`` is the word used everywhere, ``summary`` the sentence shown beside it, ``source`` the work it was first
    described in. ``needs_runtime``: it reaches into the forward pass, which only the own runtime allows.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_runtime: ClassVar[bool] = False
    guesses: ClassVar[bool] = False  # whether tokens are guessed ahead, and verified

    def __post_init__(self) -> None:
        validate(self, self.name)

    @property
    def samples(self) -> int:
        """Most sequences of one problem in flight at once."""
        return int(getattr(self, "n", 1))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models it needs besides the run's own, reward models left out."""
        return ()

    @property
    def draft_name(self) -> str | None:
        """The model that guesses tokens; None where none does."""
        return getattr(self, "draft", None)

    @property
    def reward_name(self) -> str | None:
        """The reward model it needs; None where it needs none."""
        reward = getattr(self, "reward", None)
        return None if reward == LOGPROB else reward

    @property
    def by_logprob(self) -> bool:
        """Whether it scores steps by the model's own log-probabilities, without a reward model."""
        return getattr(self, "reward", None) == LOGPROB

    @property
    def counts_answers(self) -> bool:
        """Whether it asks which answers are the same; one that takes the best candidate does not."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., <parameter>: ...}``, all parameters present."""
        return {"name": self.name} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def __str__(self) -> str:
        """Compact text form: the name, ``n`` and ``temperature``, then what differs from its default."""
        parts = [
            f"{p.name}={_escape(str(_plain(getattr(self, p.name))))}"
            for p in sorted(parameters(type(self)), key=lambda p: p.name != "n")
            if p.name in ("n", "temperature") or getattr(self, p.name) != p.default
        ]
        return self.name + (":" + ",".join(parts) if parts else "")


def listed(text: str, field: str) -> tuple[str, ...]:
    """The entries of a list written with plus signs: ``lab-xs+lab-s``. Raises SpecError where one is empty."""
    entries = tuple(entry.strip() for entry in text.split("+"))
    if not all(entries):
        raise SpecError(f"{field} must be names joined by plus signs, e.g. lab-xs+lab-s, not {shorten(text)}.", field)
    return entries


def needed(text: str, field: str) -> str:
    """``text`` without white space around it. Raises SpecError where nothing is left."""
    if not text.strip():
        raise SpecError(f"{field} must not be empty.", field=field)
    return text.strip()


def _escape(value: str) -> str:
    """``value`` as ``parse_strategy`` reads it."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value
