"""Strategies that ask several models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from spec.errors import SpecError, shorten
from spec.parameters import parameter
from spec.strategies.base import SMALLEST, listed
from spec.strategies.sampling import Sample


@dataclass(frozen=True)
class Cascade(Sample):
    """Ask small models first; go on to the next one where their samples disagree."""

    name: ClassVar[str] = "cascade"
    summary: ClassVar[str] = "Ask a small model first, and the larger one only where the small one's samples disagree."
    source: ClassVar[str] = "Yue et al. 2023, arXiv 2310.03094"
    small: str = parameter(SMALLEST, help="Models to ask first, from small to large, joined by plus signs.")
    k: int = parameter(8, low=1, high=4096, help="How many samples each of them draws.")
    agreement: float = parameter(
        0.7, low=0.0, high=1.0, help="Share of equal answers from which a small model's majority is taken."
    )
    n: int = parameter(8, low=1, high=4096, help="How many samples the run's own model draws where it is asked.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "small", "+".join(listed(self.small, f"{self.name}.small")))

    @property
    def models(self) -> tuple[str, ...]:
        """The small models."""
        return tuple(self.small.split("+"))

    @property
    def samples(self) -> int:
        """The samples of one model."""
        return max(self.k, self.n)

    @property
    def counts_answers(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class Ensemble(Sample):
    """Several models vote together."""

    name: ClassVar[str] = "ensemble"
    summary: ClassVar[str] = "Several models each draw n answers, and all of them vote together."
    source: ClassVar[str] = "Dietterich 2000, Ensemble methods in machine learning"
    others: str = parameter(SMALLEST, help="The models that vote beside the run's own, joined by plus signs.")
    n: int = parameter(4, low=1, high=4096, help="How many samples each model draws.")
    weight: str = parameter(
        "", help="Weight of each model's votes joined by plus signs, the run's own first, e.g. 2+1; empty: all equal."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "others", "+".join(listed(self.others, f"{self.name}.others")))
        object.__setattr__(self, "weight", self.weight.strip())
        numbers = self.weights
        if len(numbers) != len(self.models) + 1 or not all(0 < w < math.inf for w in numbers):
            raise _bad_weight(self.weight, len(self.models) + 1)

    @property
    def models(self) -> tuple[str, ...]:
        """The models beside the run's own."""
        return tuple(self.others.split("+"))

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of one vote of each model, the run's own first."""
        if not self.weight:
            return (1.0,) * (len(self.models) + 1)
        try:
            return tuple(float(part) for part in self.weight.split("+"))
        except ValueError:
            raise _bad_weight(self.weight, len(self.models) + 1) from None

    @property
    def counts_answers(self) -> bool:
        """Yes."""
        return True


def _bad_weight(text: str, wanted: int) -> SpecError:
    field = "ensemble.weight"
    return SpecError(f"{field} must be {wanted} numbers above 0 joined by plus signs, not {shorten(text)}.", field)
