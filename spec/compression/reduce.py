"""Fewer weights."""

from __future__ import annotations

from dataclasses import dataclass

from spec.compression.base import MAX_STEPS, Step
from spec.compression.choices import Criterion, Scaling, Scope, Stage, Structure
from spec.errors import SpecError
from spec.parameters import parameter

MAX_LEVEL = 0.9
RULES = {  # what may choose; the first does where nobody says
    Structure.WEIGHTS: (Criterion.MAGNITUDE, Criterion.WANDA),
    Structure.TWO_OF_FOUR: (Criterion.MAGNITUDE, Criterion.WANDA),
    Structure.NEURONS: (Criterion.MAGNITUDE, Criterion.ACTIVATION, Criterion.TAYLOR),
    Structure.HEADS: (Criterion.MAGNITUDE, Criterion.ACTIVATION, Criterion.TAYLOR),
    Structure.LAYERS: (Criterion.ACTIVATION, Criterion.TAYLOR),
}


@dataclass(frozen=True)
class Prune(Step):
    """Takes weights, heads, neurons or layers out."""

    name = "prune"
    stage = Stage.REDUCE
    summary = "Takes out single weights, or whole neurons, heads or layers, so that the tensors really shrink."
    source = "Sun et al. 2023, Wanda, arXiv 2306.11695; Ma et al. 2023, LLM-Pruner, arXiv 2305.11627"
    always = ("structure", "method", "level")

    structure: Structure = parameter(
        Structure.WEIGHTS,
        help="weights: single ones become zero; 2:4: two of each four; neurons of the MLP, heads and layers are "
        "removed, which makes the model smaller and faster.",
    )
    method: Criterion = parameter(
        None,
        kind=Criterion,
        optional=True,
        help="What goes first: magnitude, the smallest; wanda, the smallest times its input; activation, what changes "
        "the hidden state least; taylor, what changes the loss least by its gradient. Where none is named: magnitude, "
        "for layers activation.",
    )
    level: float = parameter(
        0.5, low=0.0, high=1.0, words=f"above 0, {MAX_LEVEL} at most", help="Share that is taken out, up to 0.9."
    )
    scope: Scope = parameter(
        Scope.AUTO,
        help="output: the same share of the weights of each output; layer: of each matrix or layer; global: the least "
        "important anywhere; auto: output for wanda, as it was published, layer for the others.",
    )
    rounds: int = parameter(1, low=1, high=100, help="In how many equal shares it is taken out.")
    recover: int = parameter(
        0, low=0, high=MAX_STEPS, help="Steps of fine-tuning after each round; what was taken out stays out."
    )
    rate: float = parameter(1e-4, low=1e-8, high=1.0, help="Highest learning rate of that fine-tuning.")
    batch: int = parameter(16, low=1, high=4096, help="Texts in a step of that fine-tuning.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is None:
            object.__setattr__(self, "method", RULES[self.structure][0])
        if not 0 < self.level <= MAX_LEVEL:
            raise SpecError(
                f"prune.level must lie above 0 and be {MAX_LEVEL} at most, not {self.level:g}: it is the share that is "
                "taken out.",
                field="compression.prune.level",
            )
        allowed = RULES[self.structure]
        if self.method not in allowed:
            raise SpecError(
                f"{self.structure} are not chosen by {self.method}; choose {' or '.join(allowed)}.",
                field="compression.prune.method",
            )
        if self.structure is Structure.TWO_OF_FOUR and (self.level != 0.5 or self.scope is not Scope.AUTO):
            raise SpecError(
                "2:4 takes out two of each four weights, everywhere: level 0.5, scope auto.",
                field="compression.prune.level",
            )
        if self.scope is Scope.OUTPUT and self.structure is not Structure.WEIGHTS:
            raise SpecError(
                f"{self.structure} are not chosen among the weights of an output; choose scope layer or global.",
                field="compression.prune.scope",
            )
        if self.structure is Structure.TWO_OF_FOUR and self.rounds > 1:
            raise SpecError("2:4 is done in one round.", field="compression.prune.rounds")

    @property
    def among(self) -> Scope:
        """Among what is chosen, ``auto`` said in full."""
        if self.scope is not Scope.AUTO:
            return self.scope
        return Scope.OUTPUT if self.method is Criterion.WANDA else Scope.LAYER

    @property
    def needs_data(self) -> bool:
        """See Step."""
        return self.method is not Criterion.MAGNITUDE or self.recover > 0

    @property
    def shrinks(self) -> bool:
        """Whether tensors get smaller; else weights become zero where they are."""
        return self.structure in (Structure.NEURONS, Structure.HEADS, Structure.LAYERS)


@dataclass(frozen=True)
class LowRank(Step):
    """Writes a matrix as a product of two thin ones."""

    name = "lowrank"
    stage = Stage.FACTORIZE
    summary = "Writes each matrix as a product of two thin ones, where these have fewer numbers together."
    source = "Yuan et al. 2023, ASVD, arXiv 2312.05821; Wang et al. 2024, SVD-LLM, arXiv 2403.07378"
    always = ("ratio",)

    ratio: float = parameter(
        0.5, low=0.0, high=1.0, words="above 0, below 1", help="Rank that is kept, as a share of the full rank."
    )
    scaling: Scaling = parameter(
        Scaling.ACTIVATION, help="activation: what the matrix does to real activations is kept best; none: its numbers."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise SpecError(
                f"lowrank.ratio must lie between 0 and 1, not {self.ratio:g}: a rank of 0 leaves nothing, the full "
                "rank saves nothing.",
                field="compression.lowrank.ratio",
            )

    @property
    def needs_data(self) -> bool:
        """See Step."""
        return self.scaling is Scaling.ACTIVATION
