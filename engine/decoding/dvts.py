"""Diverse verifier tree search (Beeching, Tunstall and Rush 2024): independent subtrees instead of one beam.

One beam tends to fill with the children of a single step. Here n / width subtrees each follow their own best step.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.decoding.requests import Question, Search
from engine.decoding.steps import Branch, StepTree, worth
from spec.strategy import Dvts


def dvts(question: Question, strategy: Dvts) -> Search:
    """Each subtree ends with its best step's solution, and then gives all ``width`` steps of its last round."""
    search = StepTree(question, strategy)
    leaders = [Branch()] * (strategy.n // strategy.width)
    groups: list[Sequence[Branch]] = [()] * len(leaders)
    for left in reversed(range(strategy.max_steps)):
        live = [i for i, leader in enumerate(leaders) if not leader.finish]
        if not live:
            break
        grown = yield from search.grow([leaders[i] for i in live for _ in range(strategy.width)])
        for place, i in enumerate(live):
            groups[i] = grown[place * strategy.width : (place + 1) * strategy.width]
            leaders[i] = max(groups[i], key=worth)
            _note(search, groups[i], i, ends=bool(leaders[i].finish) or not left)
    return search.outcome([branch for group in groups for branch in group])


def _note(search: StepTree, group: Sequence[Branch], subtree: int, ends: bool) -> None:
    """Ranks in the tree; those behind the first are dropped, unless the subtree ends here."""
    ranked = sorted(group, key=worth, reverse=True)
    for rank, branch in enumerate(ranked, start=1):
        words = f"rank {rank} of {len(ranked)} in subtree {subtree + 1}"
        if rank > 1 and not ends:
            search.prune([branch], words)
        else:
            search.tree.note(branch.place, words)
