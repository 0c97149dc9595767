"""Beam search over steps (Snell et al. 2024, arXiv 2408.03314), as in Hugging Face's search-and-learn.

Where that code differs, ours is this: completed solutions are all kept and all vote, however many there are; paths that
are still alive in the last round end as they are, and vote if they hold an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.decoding.requests import Question, Search
from engine.decoding.steps import Branch, StepTree, worth
from spec.choices import Duplicates, Fate
from spec.strategy import StepBeam


def step_beam(question: Question, strategy: StepBeam) -> Search:
    """n steps in each round, of which the n / width best unfinished ones are continued."""
    return (yield from search_beams(question, strategy, 0))


def search_beams(question: Question, strategy: StepBeam, ahead: int) -> Search:
    """Step beam search that judges unfinished steps ``ahead`` further steps later."""
    search = StepTree(question, strategy)
    active, ended = [Branch()], list[Branch]()
    for left in reversed(range(strategy.max_steps)):
        parents = [active[i % len(active)] for i in range(strategy.n)]
        grown = yield from search.grow(parents, ahead if left else 0)  # what is cut next is judged as it is
        ended += [b for b in grown if b.finish]
        active = [b for b in grown if not b.finish]
        if not active or not left:
            break
        if strategy.duplicates is Duplicates.DROP:
            active = _distinct(search, active)
        active = _best(search, active, strategy.n // strategy.width)
    return search.outcome(ended + active)


def _distinct(search: StepTree, active: Sequence[Branch]) -> list[Branch]:
    """The first path of each text; the others are marked in the tree."""
    first: dict[str, Branch] = {}
    for branch in active:
        if first.setdefault(branch.text, branch) is not branch:
            search.tree.note(branch.place, "", Fate.DUPLICATE)
    return list(first.values())


def _best(search: StepTree, active: Sequence[Branch], keep: int) -> list[Branch]:
    """The ``keep`` best paths, the best first; of equals the earlier one."""
    ranked = sorted(active, key=worth, reverse=True)
    for rank, branch in enumerate(ranked, start=1):
        words = f"rank {rank} of {len(ranked)}" + (f", judged {branch.ahead} tokens ahead" if branch.ahead else "")
        search.tree.note(branch.place, words, None if rank <= keep else Fate.PRUNED)
    return ranked[:keep]
