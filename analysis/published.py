"""Figures of other people's papers that a chart can show beside ours, with their source.

They are of other models on another task: the shape of a curve can be held against them, its height cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Wu et al., Inference Scaling Laws, arXiv 2408.00724v3 (ICLR 2025), table 1"
TASK = "MATH500"
ACCOUNTING = "2 N T, the reward model not counted"


@dataclass(frozen=True, slots=True)
class Published:
    """One point of the paper: weighted vote at ``n`` samples, ``flops`` per problem by 2 N T."""

    model: str
    strategy: str
    n: int
    flops: float
    accuracy: float


POINTS = (
    Published("Llemma-7B", "sampling", 256, 10.0e14, 0.455),
    Published("Llemma-7B", "REBASE", 32, 1.48e14, 0.468),
    Published("Llemma-34B", "sampling", 64, 12.1e14, 0.467),
    Published("Llemma-34B", "REBASE", 32, 7.08e14, 0.492),
    Published("Mistral-7B", "sampling", 256, 8.70e14, 0.428),
    Published("Mistral-7B", "REBASE", 32, 1.36e14, 0.450),
)
