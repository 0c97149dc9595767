"""Who voted for what: answers of one problem, taken together as the engine took them, by the rule of the task.

``18`` and ``18.00`` are one answer with two votes where the rule compares numbers. The engine's own counting lies
beside its samplers, which import torch; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from spec.choices import Checker
from spec.choices import Vote as Rule
from spec.errors import IsoquantError
from spec.results import Answer
from spec.run_spec import TaskSpec
from spec.strategy import Ensemble, StepSearch, Strategy
from tasks import gsm8k, jsonl, lab_words
from tasks.checkers import RULES

DEFAULTS = {"gsm8k": gsm8k.DEFAULT_CHECKER, "jsonl": jsonl.DEFAULT_CHECKER}
COMPARED = 100_000


@dataclass(frozen=True, slots=True)
class Vote:
    """An answer and all that count as the same: how often it was given, and what it weighs, None for nothing."""

    answer: str
    correct: bool | None
    given: int
    weight: float | None


def rule_of(strategy: Strategy) -> Rule:
    """How a strategy makes one answer of several."""
    if isinstance(strategy, StepSearch):
        return strategy.vote
    return {"weighted": Rule.WEIGHTED, "best-of-n": Rule.BEST, "beam": Rule.BEST}.get(strategy.name, Rule.MAJORITY)


def votes(answer: Answer, strategy: Strategy, task: TaskSpec) -> list[Vote]:
    """The different answers of a problem, the strongest first; candidates without an answer do not vote.

    What an answer weighs is its votes, or where scores decide their sum or the best of them (``rule_of``). In an
    ensemble each model's votes have its weight.
    """
    rule, worth = rule_of(strategy), dict[str | None, float]()
    if isinstance(strategy, Ensemble):
        worth = dict(zip((None, *strategy.models), strategy.weights, strict=True))
    found = [_vote(answer, group, rule, worth) for group in classes(answer, task)]
    return sorted(found, key=lambda v: (v.weight is None, -(v.weight or 0.0), v.answer != answer.answer))


def classes(answer: Answer, task: TaskSpec) -> list[list[int]]:
    """Indices of the candidates, grouped by what their answers are to the first of each group."""
    groups: list[list[int]] = []
    group_of: dict[str, list[int]] = {}
    for index, candidate in enumerate(answer.candidates):
        if (given := candidate.answer) is None:
            continue
        if given not in group_of:
            alike = (g for g in groups if same(task.kind, task.checker, given, str(answer.candidates[g[0]].answer)))
            if (group := next(alike, None)) is None:
                groups.append(group := [])
            group_of[given] = group
        group_of[given].append(index)
    return groups


@lru_cache(maxsize=COMPARED)
def same(kind: str, checker: Checker | None, a: str, b: str) -> bool:
    """Whether the task takes two answers for one. As in a run, what its rule chokes on equals nothing."""
    equivalent: Callable[[str, str], bool] = lab_words.is_correct
    if checker or kind in DEFAULTS:
        equivalent = RULES[checker or DEFAULTS[kind]].equivalent
    try:
        return equivalent(a, b)
    except (IsoquantError, MemoryError):
        raise
    except Exception:
        return False


def _vote(answer: Answer, group: list[int], rule: Rule, worth: dict[str | None, float]) -> Vote:
    shown = answer.candidates[answer.chosen if answer.chosen in group else group[0]]
    scores = [s for i in group if (s := answer.candidates[i].score) is not None]
    weight: float | None = sum(worth.get(answer.candidates[i].model, 1) for i in group)
    if rule is Rule.WEIGHTED:
        weight = sum(scores) if scores else None
    elif rule is Rule.BEST:
        weight = max(scores, default=None)
    return Vote(str(shown.answer), shown.correct, len(group), weight)
