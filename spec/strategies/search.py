"""Strategies that search step by step, led by the scores of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.choices import Aggregate, Duplicates, Vote
from spec.errors import SpecError
from spec.parameters import parameter
from spec.strategies.sampling import Sample, reward, temperature

_SCALING_LAWS = "Wu et al. 2024, arXiv 2408.00724"
_TEST_TIME = "Snell et al. 2024, arXiv 2408.03314"


@dataclass(frozen=True)
class StepSearch(Sample):
    """Base of the searches: how a step is drawn and scored, and how the ended solutions vote."""

    continues: ClassVar[bool] = True
    max_step_tokens: int = parameter(
        256, low=1, high=131_072, help="Longest step in tokens; one that is cut goes on as the next step."
    )
    reward: str = reward()
    aggregate: Aggregate = parameter(
        Aggregate.LAST, help="How the scores of a solution's steps become one: last, min, prod or mean."
    )
    vote: Vote = parameter(
        Vote.WEIGHTED,
        help="How the ended solutions give one answer: weighted by their scores, by majority, or the best one alone.",
    )

    @property
    def counts_answers(self) -> bool:
        """Unless the best solution wins alone."""
        return self.vote is not Vote.BEST


@dataclass(frozen=True)
class RoundSearch(StepSearch):
    """Base of the searches that take all their paths one step further in each round."""

    n: int = parameter(16, low=1, high=1024, help="How many paths are continued at once.")
    max_steps: int = parameter(40, low=1, high=1000, help="Most rounds; paths still alive then end as they are.")


@dataclass(frozen=True)
class _Grouped(RoundSearch):
    """Base of the searches in which ``width`` divides ``n``."""

    width: int = parameter(4, low=1, high=1024, help="How many steps are tried for each path that is kept; divides n.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n % self.width:
            raise SpecError(
                f"{self.name}.n must be a multiple of {self.name}.width, and {self.n} is none of {self.width}.",
                field=f"{self.name}.n",
            )


@dataclass(frozen=True)
class StepBeam(_Grouped):
    """Beam search over steps, as in search-and-learn."""

    name: ClassVar[str] = "step-beam"
    summary: ClassVar[str] = "Draw n next steps, keep the n/width best by a reward model, and repeat."
    source: ClassVar[str] = _TEST_TIME
    duplicates: Duplicates = parameter(
        Duplicates.KEEP, help="Whether unfinished paths with the same text are all kept in the running."
    )


@dataclass(frozen=True)
class Lookahead(StepBeam):
    """Step beam search in which a step is judged by where it leads."""

    name: ClassVar[str] = "lookahead"
    summary: ClassVar[str] = "Step beam search that judges each step by a greedy look a few steps ahead."
    steps: int = parameter(1, low=1, high=20, help="How many steps the look ahead takes; they are paid for.")


@dataclass(frozen=True)
class Dvts(_Grouped):
    """Diverse verifier tree search: independent subtrees, each of which follows its best step."""

    name: ClassVar[str] = "dvts"
    summary: ClassVar[str] = "n/width independent searches, each of which tries width next steps and follows the best."
    source: ClassVar[str] = "Beeching, Tunstall and Rush 2024, Scaling test-time compute with open models"


@dataclass(frozen=True)
class Mcts(StepSearch):
    """Monte Carlo tree search over steps, valued by the reward model without roll-outs."""

    name: ClassVar[str] = "mcts"
    summary: ClassVar[str] = "Grow a tree where value and curiosity (UCT) say so; the finished leaves vote."
    source: ClassVar[str] = _SCALING_LAWS
    temperature: float = temperature(1.0)
    expansions: int = parameter(32, low=1, high=4096, help="How often a leaf is chosen and continued.")
    root_children: int = parameter(4, low=1, high=256, help="How many first steps are drawn.")
    children: int = parameter(2, low=1, high=256, help="How many continuations of any other step are drawn.")
    c: float = parameter(1.0, low=0.0, high=100.0, help="Weight of curiosity against value.")

    @property
    def samples(self) -> int:
        """The children of one step."""
        return max(self.root_children, self.children)


@dataclass(frozen=True)
class Rebase(RoundSearch):
    """Reward-balanced search."""

    name: ClassVar[str] = "rebase"
    summary: ClassVar[str] = "Share n continuations out among the steps of each depth, the better ones get more."
    source: ClassVar[str] = _SCALING_LAWS
    temperature: float = temperature(1.0)
    balance: float = parameter(
        0.1, low=0.001, high=100.0, help="Softmax temperature of the sharing out: low gives nearly all to the best."
    )


@dataclass(frozen=True)
class Particle(RoundSearch):
    """Particle filtering."""

    name: ClassVar[str] = "particle"
    summary: ClassVar[str] = "n paths; after each step they are redrawn at random in proportion to their odds."
    source: ClassVar[str] = "Puri et al. 2025, arXiv 2502.01618"
