"""One problem's search as places on a plane: steps by depth from left to right, each above or below its siblings.

Siblings are samples of the same beginning, so their order means nothing: the way to the answer comes first, then the
steps that lived on, the better ones before the others, and at last those that were dropped, closer together.
A strategy that does not search step by step has no tree; its candidates are then the branches, each one step long,
those that gave the same answer side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from spec.choices import Fate
from spec.results import Answer, Candidate

DROPPED = (Fate.PRUNED, Fate.DUPLICATE)
CLOSE = 0.4  # room of a dropped leaf; others have 1


@dataclass(frozen=True, slots=True)
class Step:
    """A step with all that is shown of it; ``candidate`` is the index of the solution that ends with it.

    ``votes``: of a candidate without a tree, how many gave its answer. ``y``: its place across the tree in rooms of a
    leaf; the step lies at ``depth`` along it.
    """

    index: int
    parent: int | None
    depth: int
    text: str
    tokens: int
    seconds: float | None
    score: float | None
    fate: Fate
    note: str
    votes: int = 0
    y: float = 0.0
    candidate: int | None = None
    is_chosen: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """The steps of one problem, parents first, and how wide the tree is in rooms of a leaf.

    ``has_steps``: the strategy searched; else these are its candidates.
    """

    steps: tuple[Step, ...]
    width: float
    depth: int
    has_steps: bool

    @property
    def root_y(self) -> float:
        """Where the question lies."""
        return _middle([s.y for s in self.steps if s.parent is None])

    def path(self, index: int) -> list[Step]:
        """The steps from the first one to this one."""
        found: list[Step] = []
        at: int | None = index
        while at is not None:
            found.append(self.steps[at])
            at = self.steps[at].parent
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Level:
    """All steps of one depth, added up. ``slowest_s`` is that of the slowest step: steps of a depth run together."""

    depth: int
    steps: int
    continued: int
    finished: int
    dropped: int
    cut: int
    tokens: int
    score: float | None
    slowest_s: float | None


def tree(answer: Answer) -> Tree:
    """The tree of an answer."""
    steps = _searched(answer) if answer.tree else _candidates(answer)
    at = next((s.index for s in steps if s.candidate is not None and s.candidate == answer.chosen), None)
    while at is not None:
        steps[at] = replace(steps[at], is_chosen=True)
        at = steps[at].parent
    order = _by_worth if answer.tree else _by_answer(answer)
    places, width = _places(steps, order)
    placed = tuple(replace(s, y=places[s.index]) for s in steps)
    return Tree(placed, width, max((s.depth for s in steps), default=0), bool(answer.tree))


def _searched(answer: Answer) -> list[Step]:
    ends = {c.node: i for i, c in enumerate(answer.candidates) if c.node is not None}
    if answer.chosen is not None and (node := answer.candidates[answer.chosen].node) is not None:
        ends[node] = answer.chosen  # several paths may end in one step
    steps: list[Step] = []
    for i, n in enumerate(answer.tree):
        parent = n.parent if n.parent is not None and 0 <= n.parent < i else None
        depth = steps[parent].depth + 1 if parent is not None else 1
        seconds = n.seconds if n.seconds > 0 else None
        fate = Fate(n.fate) if n.fate in list(Fate) else Fate.EXPANDED
        steps.append(Step(i, parent, depth, n.text, n.tokens, seconds, n.score, fate, n.note, candidate=ends.get(i)))
    return steps


def _candidates(answer: Answer) -> list[Step]:
    given = Counter(c.answer for c in answer.candidates if c.answer is not None)
    return [_candidate(i, c, given[c.answer]) for i, c in enumerate(answer.candidates)]


def _candidate(i: int, c: Candidate, votes: int) -> Step:
    fate = Fate.CUT if c.finish == "length" else Fate.FINISHED
    return Step(i, None, 1, c.text, c.tokens, None, c.score, fate, c.model or "", votes, candidate=i)


def _by_worth(s: Step) -> tuple[Any, ...]:
    """The way to the answer, then what lived on, then what was dropped."""
    return not s.is_chosen, s.fate in DROPPED, -(s.score or 0.0), s.index


def _by_answer(answer: Answer) -> Callable[[Step], tuple[Any, ...]]:
    """Candidates that gave the same answer side by side, the answer that was given first, then by their votes."""

    def order(s: Step) -> tuple[Any, ...]:
        text = answer.candidates[s.index].answer
        return text is None, text != answer.answer, -s.votes, str(text), not s.is_chosen, -(s.score or 0.0), s.index

    return order


def _places(steps: Sequence[Step], order: Callable[[Step], tuple[Any, ...]]) -> tuple[list[float], float]:
    """A place across the tree for each step, and its whole width: leaves one after the other, others amid theirs."""
    children: dict[int | None, list[int]] = {}
    for s in steps:
        children.setdefault(s.parent, []).append(s.index)
    for some in children.values():
        some.sort(key=lambda i: order(steps[i]))
    places, width = [0.0] * len(steps), 0.0
    waiting = children.get(None, [])[::-1]
    while waiting:  # depth first; a chain can be longer than Python's stack
        i = waiting.pop()
        if i in children:
            waiting += children[i][::-1]
            continue
        room = CLOSE if steps[i].fate in DROPPED and not steps[i].is_chosen else 1.0
        places[i], width = width + room / 2, width + room
    for i in reversed(range(len(steps))):  # children come after their parents
        if i in children:
            places[i] = _middle([places[c] for c in children[i]])
    return places, width


def _middle(values: Sequence[float]) -> float:
    return (min(values) + max(values)) / 2 if values else 0.0


def levels(found: Tree) -> list[Level]:
    """The sums of each depth, the first steps first."""
    made = []
    for depth in range(1, found.depth + 1):
        some = [s for s in found.steps if s.depth == depth]
        scores = [s.score for s in some if s.score is not None]
        times = [s.seconds for s in some if s.seconds is not None]
        kinds = ((Fate.EXPANDED,), (Fate.FINISHED,), DROPPED, (Fate.CUT,))
        counts = [sum(s.fate in fates for s in some) for fates in kinds]
        tokens, score = sum(s.tokens for s in some), fmean(scores) if scores else None
        made.append(Level(depth, len(some), *counts, tokens, score, max(times, default=None)))
    return made
