"""Voting rules, against plain definitions."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decoding import votes
from spec.choices import Aggregate


def same(a: str, b: str) -> bool:
    return a.lower() == b.lower()


answers_lists = st.lists(st.sampled_from(["a", "A", "b", "B", "c", None]), max_size=12)


@given(answers_lists)
def test_majority_is_the_class_that_reached_the_top_count_first(answers):
    chosen = votes.majority(answers, same)
    counts = Counter()
    best = None
    for answer in answers:
        if answer is not None:
            counts[answer.lower()] += 1
    if counts:
        top = max(counts.values())
        running = Counter()
        for answer in answers:
            if answer is not None:
                running[answer.lower()] += 1
                if running[answer.lower()] == top:
                    best = answer.lower()
                    break
    assert (answers[chosen].lower() if chosen is not None else None) == best
    if chosen is not None:
        assert [a.lower() if a else None for a in answers].index(best) == chosen


@given(answers_lists)
def test_equal_weights_give_the_majority(answers):
    chosen = votes.weighted(answers, [0.5] * len(answers), same)
    assert chosen == votes.majority(answers, same)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 8)), max_size=12))
def test_weighted_takes_the_largest_sum(pairs):
    answers, weights = [a for a, _ in pairs], [w / 8 for _, w in pairs]
    chosen = votes.weighted(answers, weights, same)
    sums = Counter()
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            sums[answer] += weight
    if not sums:
        assert chosen is None
        return
    assert sums[answers[chosen]] == max(sums.values())
    assert weights[chosen] == max(w for a, w in zip(answers, weights, strict=True) if a == answers[chosen])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(0, 1)), max_size=10))
def test_best_is_the_highest_score_with_an_answer(pairs):
    answers, scores = [a for a, _ in pairs], [s for _, s in pairs]
    chosen = votes.best(answers, scores)
    valid = [s for a, s in pairs if a is not None]
    assert (chosen is None) == (not valid)
    if chosen is not None:
        assert answers[chosen] is not None
        assert scores[chosen] == max(valid)


def test_a_candidate_without_an_answer_or_score_never_votes():
    assert votes.majority([None, None, "a", None], same) == 2
    assert votes.weighted([None, "a", "b"], [9.0, None, 0.1], same) == 2
    assert votes.best([None, "a"], [0.9, 0.1]) == 1
    assert votes.best(["a"], [None]) is None


def test_ties_go_to_the_class_that_got_there_first():
    assert votes.majority(["a", "b", "b", "a"], same) == 1
    assert votes.weighted(["a", "b"], [0.5, 0.5], same) == 0


def test_the_task_decides_what_is_the_same_and_is_asked_once_per_text():
    asked = []

    def equal(a, b):
        asked.append((a, b))
        return float(a) == float(b)

    assert votes.classes(["4", "4.0", "5", "4.0", "4", "5"], equal) == [[0, 1, 3, 4], [2, 5]]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("how", "value"), [(Aggregate.LAST, 0.5), (Aggregate.MIN, 0.2), (Aggregate.PROD, 0.08), (Aggregate.MEAN, 0.5)]
)
def test_aggregates(how, value):
    assert math.isclose(votes.aggregate((0.8, 0.2, 0.5), how), value)
    assert votes.aggregate((), how) is None
