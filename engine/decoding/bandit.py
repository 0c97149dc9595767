"""UCB1 (Auer, Cesa-Bianchi and Fischer 2002, "Finite-time analysis of the multiarmed bandit problem")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Arm:
    """One choice: how often it was pulled, how many rewards came back, and their mean."""

    value: float
    pulls: int = 0
    rewards: int = 0
    mean: float = 0.0


class Bandit:
    """Learns which of some values earns the most.

    Many problems are on their way at once, so an arm may be pulled again before its last reward is known: a pull counts
    from the start, the mean is that of the rewards so far. What it learns depends on the order in which problems end.

    >>> bandit = Bandit((0.5, 0.9))
    >>> arm = bandit.pull()
    >>> bandit.reward(arm, 0.7)
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.arms = [Arm(value) for value in values]

    def pull(self) -> Arm:
        """The arm with the highest upper confidence bound; each one once before any is pulled again."""
        total = sum(arm.pulls for arm in self.arms)
        arm = max(self.arms, key=lambda a: _bound(a, total))
        arm.pulls += 1
        return arm

    def reward(self, arm: Arm, reward: float) -> None:
        """What a pull of the arm earned."""
        arm.rewards += 1
        arm.mean += (reward - arm.mean) / arm.rewards


def _bound(arm: Arm, total: int) -> float:
    return arm.mean + math.sqrt(2 * math.log(total) / arm.pulls) if arm.pulls else math.inf
