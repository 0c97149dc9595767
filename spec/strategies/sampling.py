"""Strategies that write whole solutions with the run's model, one after the other or side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from spec.choices import Aggregate, StopRule
from spec.parameters import parameter
from spec.strategies.base import LOGPROB, Strategy, needed

TEMPERATURE = "Spread of the sampling: below 1 sharpens, above 1 flattens."
REWARD = f"Reward model that scores the candidates: a name or a folder; {LOGPROB} takes the model's own probabilities."


def temperature(default: float) -> Any:
    """The parameter ``temperature`` of a strategy that always samples."""
    return parameter(default, low=0.01, high=5.0, help=TEMPERATURE)


def top_k() -> Any:
    """The parameter ``top_k``."""
    return parameter(0, low=0, high=1_000_000, help="Keep only the k most likely tokens; 0 keeps all.")


def top_p() -> Any:
    """The parameter ``top_p``."""
    words = "Keep the smallest set of tokens whose probability reaches p; 1 keeps all."
    return parameter(1.0, low=0.01, high=1.0, help=words)


def min_p() -> Any:
    """The parameter ``min_p``."""
    words = "Drop tokens less likely than min_p times the most likely one; 0 keeps all."
    return parameter(0.0, low=0.0, high=1.0, help=words)


def reward() -> Any:
    """The parameter ``reward``."""
    return parameter("lab-prm", help=REWARD)


@dataclass(frozen=True)
class Greedy(Strategy):
    """Argmax at every token."""

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "One answer, always the most likely token. The cheapest, and the same every time."


@dataclass(frozen=True)
class Beam(Strategy):
    """Beam search over tokens, as transformers 5 does it with ``early_stopping=False``."""

    name: ClassVar[str] = "beam"
    summary: ClassVar[str] = "Keep the most likely hypotheses, token by token, and answer with the best finished one."
    asks_tokens: ClassVar[bool] = True
    source: ClassVar[str] = "Sutskever et al. 2014, arXiv 1409.3215; length penalty: Wu et al. 2016, arXiv 1609.08144"
    width: int = parameter(4, low=1, high=64, help="How many hypotheses are kept.")
    length_penalty: float = parameter(
        1.0, low=-2.0, high=5.0, help="A finished one is ranked by its log-probability over length to this power."
    )

    @property
    def samples(self) -> int:
        """The beams."""
        return self.width


@dataclass(frozen=True)
class Sample(Strategy):
    """One sampled path."""

    name: ClassVar[str] = "sample"
    summary: ClassVar[str] = "One answer drawn at random; shows what a single path is worth at this temperature."
    temperature: float = temperature(0.8)
    top_k: int = top_k()
    top_p: float = top_p()
    min_p: float = min_p()
    repetition_penalty: float = parameter(
        1.0,
        low=0.1,
        high=10.0,
        help="Divides the scores of tokens that occurred before (Keskar et al. 2019); 1 does not.",
    )


@dataclass(frozen=True)
class Majority(Sample):
    """Self-consistency: sample n paths, the most frequent answer wins."""

    name: ClassVar[str] = "majority"
    summary: ClassVar[str] = "Sample n answers, the most frequent one wins (self-consistency)."
    source: ClassVar[str] = "Wang et al. 2022, arXiv 2203.11171"
    n: int = parameter(8, low=1, high=4096, help="How many samples are drawn for each problem.")

    @property
    def counts_answers(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class Adaptive(Majority):
    """Majority vote that stops to draw once its outcome is settled."""

    name: ClassVar[str] = "adaptive"
    summary: ClassVar[str] = "Majority vote that draws in waves and stops as soon as the winner is settled."
    source: ClassVar[str] = "Aggarwal et al. 2023, arXiv 2305.11860"
    n: int = parameter(16, low=1, high=4096, help="Most samples drawn for each problem.")
    wave: int = parameter(4, low=1, high=4096, help="How many samples are drawn at once, before looking again.")
    rule: StopRule = parameter(
        StopRule.POSTERIOR,
        help="certain: stop when the leader cannot be overtaken; posterior: when it probably leads for good.",
    )
    confidence: float = parameter(
        0.95, low=0.5, high=0.999999, help="How probable the lead must be under posterior (Beta posterior)."
    )


@dataclass(frozen=True)
class Weighted(Majority):
    """Majority vote in which each candidate votes with its reward-model score."""

    name: ClassVar[str] = "weighted"
    summary: ClassVar[str] = "Sample n answers, each votes with the score a reward model gives it."
    source: ClassVar[str] = "Li et al. 2022, arXiv 2206.02336"
    reward: str = reward()
    aggregate: Aggregate = parameter(
        Aggregate.LAST, help="How the scores of a candidate's steps become one: last, min, prod or mean."
    )


@dataclass(frozen=True)
class BestOfN(Weighted):
    """The single candidate with the highest reward-model score."""

    name: ClassVar[str] = "best-of-n"
    summary: ClassVar[str] = "Sample n answers, keep the one a reward model scores highest."
    source: ClassVar[str] = "Cobbe et al. 2021, arXiv 2110.14168"

    @property
    def counts_answers(self) -> bool:
        """No: the best score wins, whatever the others say."""
        return False


@dataclass(frozen=True)
class Budget(Strategy):
    """Budget forcing: thinking is cut at a cap, and made to go on below a floor."""

    name: ClassVar[str] = "budget"
    summary: ClassVar[str] = "One greedy answer whose thinking is cut at a cap and prolonged up to a floor."
    continues: ClassVar[bool] = True
    source: ClassVar[str] = "Muennighoff et al. 2025, arXiv 2501.19393"
    max_tokens: int = parameter(256, low=1, high=131_072, help="Most tokens of thinking; then the answer is forced.")
    min_tokens: int = parameter(0, low=0, high=131_072, help="Thinking that ends before so many tokens must go on.")
    waits: int = parameter(2, low=0, high=64, help="How often it may be made to go on.")
    wait: str = parameter("Wait", help="What is written in place of an ending that came too early.")
    end: str = parameter("####", help="What ends the thinking, written by the model or forced; the answer follows it.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("wait", "end"):
            object.__setattr__(self, name, needed(getattr(self, name), f"{self.name}.{name}"))
