"""What all strategies have in common: a name, a summary, a source, and a text form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.errors import SpecError, shorten
from spec.named import Named

LOGPROB = "logprob"  # the reward that costs nothing: how likely the model itself finds its step
SMALLEST = "lab-xs"


@dataclass(frozen=True)
class Strategy(Named):
    """Base of all strategies.

    ``needs_runtime``: it reaches into the forward pass, which only our runtime allows. ``asks_tokens``: it asks for the
    likely next tokens and puts whole texts together from them. ``continues``: it goes on from a text that it cut.
    """

    always: ClassVar[tuple[str, ...]] = ("n", "temperature")
    needs_runtime: ClassVar[bool] = False
    asks_tokens: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    guesses: ClassVar[bool] = False  # whether tokens are guessed ahead, and verified

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
