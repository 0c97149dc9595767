"""From the answers of several candidates to one. A candidate without an answer never votes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from spec.choices import Aggregate, Vote
from spec.results import Candidate

Equivalent = Callable[[str, str], bool]


def classes(answers: Sequence[str | None], equivalent: Equivalent) -> list[list[int]]:
    """Indices of the answers grouped by equivalence to the first of each group, in order of appearance."""
    groups: list[list[int]] = []
    group_of: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        group = group_of.get(answer)
        if group is None:
            group = next((g for g in groups if equivalent(answer, _text(answers, g[0]))), None)
            if group is None:
                group = []
                groups.append(group)
            group_of[answer] = group
        group.append(index)
    return groups


def majority(answers: Sequence[str | None], equivalent: Equivalent) -> int | None:
    """Index of the first candidate of the largest class; of equal classes the one that reached its count first."""
    groups = classes(answers, equivalent)
    return max(groups, key=lambda g: (len(g), -g[-1]))[0] if groups else None


def weighted(answers: Sequence[str | None], weights: Sequence[float | None], equivalent: Equivalent) -> int | None:
    """Index of the heaviest candidate of the class with the largest sum of weights.

    Of classes with equal sums, the one that reached it first wins. A candidate without a weight does not vote.
    """
    voting = [a if w is not None else None for a, w in zip(answers, weights, strict=True)]
    groups = classes(voting, equivalent)
    if not groups:
        return None
    winner = max(groups, key=lambda g: _total_and_haste(g, weights))
    return max(winner, key=lambda i: (_weight(weights, i), -i))


def best(answers: Sequence[str | None], scores: Sequence[float | None]) -> int | None:
    """Index of the candidate with the highest score among those with an answer; the first of equals."""
    voting = [i for i, (a, s) in enumerate(zip(answers, scores, strict=True)) if a is not None and s is not None]
    return max(voting, key=lambda i: (_weight(scores, i), -i), default=None)


def elect(candidates: Sequence[Candidate], vote: Vote, equivalent: Equivalent) -> int | None:
    """Index of the candidate whose answer is given; None where none has one."""
    answers, scores = [c.answer for c in candidates], [c.score for c in candidates]
    match vote:
        case Vote.WEIGHTED:
            return weighted(answers, scores, equivalent)
        case Vote.MAJORITY:
            return majority(answers, equivalent)
        case Vote.BEST:
            return best(answers, scores)


def aggregate(steps: Sequence[float], how: Aggregate) -> float | None:
    """One score of a candidate's step scores; None where there is none."""
    if not steps:
        return None
    match how:
        case Aggregate.LAST:
            return steps[-1]
        case Aggregate.MIN:
            return min(steps)
        case Aggregate.PROD:
            return math.prod(steps)
        case Aggregate.MEAN:
            return math.fsum(steps) / len(steps)


def _total_and_haste(group: list[int], weights: Sequence[float | None]) -> tuple[float, int]:
    """A class's sum and minus the index at which it was reached."""
    sums = list(accumulate(_weight(weights, i) for i in group))
    return sums[-1], -group[sums.index(sums[-1])]


def _weight(weights: Sequence[float | None], index: int) -> float:
    weight = weights[index]
    assert weight is not None
    return weight


def _text(answers: Sequence[str | None], index: int) -> str:
    answer = answers[index]
    assert answer is not None
    return answer
