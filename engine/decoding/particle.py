"""Particle filtering (Puri et al. 2025, arXiv 2502.01618; code: its_hub).

A path is a particle and its newest step's score the probability that it is right; after each step n particles are
drawn again in proportion to the odds s / (1 - s), those that have ended included. Unlike a beam, which always follows
the reward model, a bad score only makes a path less likely to survive. The paper's code answers with the best particle
(``vote=best``); ours lets the last particles vote, copies as often as they were drawn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from engine.decoding.requests import Question, Search
from engine.decoding.steps import Branch, StepTree
from engine.sampling import uniforms
from spec.choices import Fate
from spec.strategy import Particle

CLIP = 1e-7


def particle(question: Question, strategy: Particle) -> Search:
    """n particles, moved and redrawn until all have ended."""
    search = StepTree(question, strategy)
    swarm = [Branch()] * strategy.n
    for round_ in range(strategy.max_steps):
        grown = iter((yield from search.grow([b for b in swarm if not b.finish])))
        swarm = [b if b.finish else next(grown) for b in swarm]
        if all(b.finish for b in swarm) or round_ + 1 == strategy.max_steps:
            break
        numbers = uniforms([question.key], [round_ * strategy.n], strategy.n)[0].tolist()
        drawn = resample([b.newest for b in swarm], numbers)
        _note(search, swarm, drawn)
        swarm = [swarm[i] for i in drawn]
        if all(b.finish for b in swarm):
            break
    return search.outcome(swarm)


def resample(scores: Sequence[float], numbers: Sequence[float]) -> list[int]:
    """One index per number in [0, 1), drawn in proportion to the odds of the scores (multinomial).

    >>> resample([0.5, 0.75], [0.1, 0.3, 0.9])
    [0, 1, 1]
    """
    clipped = [min(max(score, CLIP), 1 - CLIP) for score in scores]
    sums = list(accumulate(score / (1 - score) for score in clipped))
    return [bisect_right(sums, number * sums[-1], hi=len(sums) - 1) for number in numbers]


def _note(search: StepTree, swarm: Sequence[Branch], drawn: Sequence[int]) -> None:
    """How often each path was drawn; copies of one path share their step."""
    times = Counter(swarm[i].place for i in drawn)
    for place in {branch.place for branch in swarm}:
        words = f"drawn {times[place]} times of {len(drawn)}"
        search.tree.note(place, words, None if times[place] else Fate.PRUNED)
