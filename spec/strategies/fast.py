"""Strategies that write one solution with less work per token. They need the own runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.choices import ExitPolicy, ExitRule
from spec.parameters import parameter
from spec.strategies.base import SMALLEST, Strategy, needed
from spec.strategies.sampling import TEMPERATURE, min_p, top_k, top_p


@dataclass(frozen=True)
class Drafted(Strategy):
    """Base of the strategies whose tokens are guessed and then verified; greedy at temperature 0."""

    needs_runtime: ClassVar[bool] = True
    guesses: ClassVar[bool] = True
    temperature: float = parameter(0.0, low=0.0, high=5.0, help=f"{TEMPERATURE} 0 is greedy.")
    top_k: int = top_k()
    top_p: float = top_p()
    min_p: float = min_p()


@dataclass(frozen=True)
class Speculative(Drafted):
    """Speculative decoding: same distribution as the model's own, fewer of its passes."""

    name: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model guesses some tokens ahead, the model checks them in one pass."
    source: ClassVar[str] = "Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318"
    draft: str = parameter(SMALLEST, help="The model that guesses: a name or a folder, with the same vocabulary.")
    tokens: int = parameter(4, low=1, high=64, help="How many tokens are guessed before each check.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "draft", needed(self.draft, f"{self.name}.draft"))

    @property
    def models(self) -> tuple[str, ...]:
        """The draft model."""
        return (self.draft,)


@dataclass(frozen=True)
class Lookup(Drafted):
    """Prompt-lookup decoding: the guesses are copied from the text so far."""

    name: ClassVar[str] = "lookup"
    summary: ClassVar[str] = "Guess what followed the last words where they stood before; the model checks it."
    source: ClassVar[str] = "Saxena 2023, prompt-lookup-decoding"
    tokens: int = parameter(8, low=1, high=64, help="How many tokens are guessed before each check, at most.")
    ngram: int = parameter(3, low=1, high=32, help="How many last tokens are looked up.")


@dataclass(frozen=True)
class EarlyExit(Strategy):
    """Early exit: a token that is clear after some layers skips the others."""

    name: ClassVar[str] = "early-exit"
    summary: ClassVar[str] = "One greedy answer; a token that is clear after some layers skips the rest."
    source: ClassVar[str] = "Schuster et al. 2022, arXiv 2207.07061; bandit: UCB1, Auer et al. 2002"
    needs_runtime: ClassVar[bool] = True
    threshold: float = parameter(0.9, low=0.0, high=1.0, help="What a token must reach to skip the remaining layers.")
    rule: ExitRule = parameter(
        ExitRule.PROBABILITY, help="What is held against the threshold: the top probability, or its lead (margin)."
    )
    first: int = parameter(1, low=1, high=1000, help="No token leaves before so many layers.")
    policy: ExitPolicy = parameter(
        ExitPolicy.FIXED, help="fixed: the threshold above; bandit: thresholds are tried and the best is learned."
    )
    price: float = parameter(
        0.3, low=0.0, high=10.0, help="What all layers cost the bandit, in units of full agreement with full depth."
    )
