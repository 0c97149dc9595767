"""Monte Carlo tree search over steps, after the appendix of Wu et al. 2024 (arXiv 2408.00724).

Selection walks from the root to the child of highest UCT = Q + c sqrt(ln N(parent) / N), infinite where N = 0, until a
step that was never continued. It is continued by new children, each valued by the reward model without a roll-out;
then, for it and all steps above it, N += 1 and Q = ((N - 1) Q + V) / N with V its own value. The paper leaves open
which of several unvisited children comes first (ours: the one of highest value) and what choosing an ended solution
does (ours: it counts as a visit, and as one of the ``expansions``, and costs nothing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.decoding.requests import Question, Search
from engine.decoding.steps import Branch, StepTree
from spec.choices import Fate
from spec.strategy import Mcts


@dataclass(eq=False)
class Place:
    """A step of the search with its visits N and mean value Q."""

    branch: Branch
    parent: Place | None = None
    children: list[Place] = field(default_factory=list)
    visits: int = 0
    mean: float = 0.0

    def uct(self, c: float) -> tuple[float, float]:
        """What selection ranks it by; the second number breaks ties."""
        if not self.visits:
            return math.inf, self.branch.newest
        assert self.parent is not None
        return self.mean + c * math.sqrt(math.log(self.parent.visits) / self.visits), 0.0

    def back_propagate(self, value: float) -> None:
        """One more visit for it and all above it."""
        place: Place | None = self
        while place is not None:
            place.visits += 1
            place.mean += (value - place.mean) / place.visits
            place = place.parent


def mcts(question: Question, strategy: Mcts) -> Search:
    """The ended solutions among the leaves vote."""
    search = StepTree(question, strategy)
    root = Place(Branch())
    places: list[Place] = []
    for _ in range(strategy.expansions):
        leaf = _select(root, strategy.c)
        if not leaf.branch.finish:
            count = strategy.children if leaf.parent else strategy.root_children
            grown = yield from search.grow([leaf.branch] * count)
            leaf.children = [Place(branch, leaf) for branch in grown]
            places += leaf.children
        leaf.back_propagate(leaf.branch.newest)
        if all(p.branch.finish or p.children for p in places):
            break
    _note(search, places)
    return search.outcome([p.branch for p in places if p.branch.finish])


def _select(root: Place, c: float) -> Place:
    """The leaf that UCT leads to."""
    place = root
    while place.children:
        place = max(place.children, key=lambda child: child.uct(c))
    return place


def _note(search: StepTree, places: list[Place]) -> None:
    """Visits and values in the tree; what was neither continued nor ended was left behind."""
    for place in places:
        left_behind = not place.children and not place.branch.finish
        words = f"visits {place.visits}, value {place.mean:.2f}"
        search.tree.note(place.branch.place, words, Fate.PRUNED if left_behind else None)
