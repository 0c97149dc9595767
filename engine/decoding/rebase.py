"""REBASE, reward-balanced search (Wu et al. 2024, arXiv 2408.00724).

Two things are ours. Shares are rounded by largest remainder: rounding each for itself, as in the paper, misses the
budget in about two of five cases, and the released code's upward rounding overshoots it in some. And a path that is
still alive in the last round votes with its score if it holds an answer, while one without an answer never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.decoding.requests import Question, Search
from engine.decoding.steps import Branch, StepTree
from spec.choices import Fate
from spec.strategy import Rebase


def rebase(question: Question, strategy: Rebase) -> Search:
    """n paths, shared out anew at each depth by the softmax of the newest steps' scores."""
    search = StepTree(question, strategy)
    parents, ended = [Branch()] * strategy.n, list[Branch]()
    for left in reversed(range(strategy.max_steps)):
        grown = yield from search.grow(parents)
        ended += [b for b in grown if b.finish]
        active = [b for b in grown if not b.finish]
        budget = strategy.n - len(ended)
        if not active or not left:
            ended += active
            break
        shares = allocate(budget, [b.newest for b in active], strategy.balance)
        for branch, share in zip(active, shares, strict=True):
            search.tree.note(branch.place, f"{share} of {budget} continuations", None if share else Fate.PRUNED)
        parents = [b for b, share in zip(active, shares, strict=True) for _ in range(share)]
    return search.outcome(ended)


def allocate(budget: int, scores: Sequence[float], temperature: float) -> list[int]:
    """``budget`` shared out by softmax(scores / temperature) in whole numbers that add up to it (largest remainder).

    >>> allocate(10, [0.9, 0.9, 0.1], 0.1)
    [5, 5, 0]
    """
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    total = math.fsum(weights)
    quotas = [budget * weight / total for weight in weights]
    shares = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(scores)), key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares
