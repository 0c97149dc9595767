"""Votes of one model and of several: adaptive stopping, weights without a reward model, cascades and ensembles."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import Script, question

from engine.decoding import votes
from engine.decoding.adaptive import posterior, settled
from engine.decoding.candidates import confidence
from engine.decoding.requests import Extend, Extension, Score
from spec.choices import StopRule
from spec.strategy import parse_strategy

SAME = question().equivalent


def written(answers):
    """A script whose samples have these answers; None is a sample without one."""
    return Script({"": ["no" if a is None else f"={a}" for a in answers]})


@pytest.mark.parametrize("wave", [1, 2, 3, 5])
def test_certainty_never_changes_the_winner(wave):
    strategy = parse_strategy(f"adaptive:n=5,wave={wave},rule=certain")
    for answers in itertools.product(["a", "b", "c", None], repeat=5):
        outcome = written(answers).run(strategy)
        assert outcome.chosen == votes.majority(answers, SAME), answers


def test_certainty_stops_as_soon_as_nothing_can_change():
    strategy = parse_strategy("adaptive:n=5,wave=1,rule=certain")
    letters = ["a", "b", "c", None]
    for answers in itertools.product(["a", "b", None], repeat=5):
        drawn = len(written(answers).run(strategy).candidates)
        fixed = [
            len({votes.majority((*answers[:k], *rest), SAME) for rest in itertools.product(letters, repeat=5 - k)}) == 1
            for k in range(1, 6)
        ]
        assert drawn == fixed.index(True) + 1, answers


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_posterior_is_the_area_of_the_beta_density_above_a_half(first, second):
    cells = [(i + 0.5) / 4000 for i in range(4000)]
    density = [p**first * (1 - p) ** second for p in cells]
    assert posterior(first, second) == pytest.approx(sum(density[2000:]) / sum(density), abs=1e-3)


def test_the_posterior_stops_when_it_is_confident_enough():
    strategy = parse_strategy("adaptive:n=12,wave=2,confidence=0.95")
    assert len(written("aaaaaaaaaaaa").run(strategy).candidates) == 4  # 31 / 32
    assert len(written("abaaaaaaaaaa").run(strategy).candidates) == 8  # 6:1 has 0.965, 5:1 has 0.938
    assert len(written("abababababab").run(strategy).candidates) == 12
    assert not settled([0], 3, StopRule.POSTERIOR, 0.5)


def test_waves_are_asked_together_and_never_beyond_n():
    toy = written("ab")
    toy.run(parse_strategy("adaptive:n=7,wave=3"))
    assert [len(r.paths) for r in toy.requests] == [3, 3, 1]
    assert [p.stream for r in toy.requests for p in r.paths] == list(range(7))


@pytest.mark.parametrize("name", ["weighted", "best-of-n"])
def test_a_vote_without_a_reward_model_weighs_by_the_geometric_mean_of_the_probabilities(name):
    toy = Script({"": ["=1", "=2"]}, logprobs={"=1": 0.25, "=2": 0.75})
    outcome = toy.run(parse_strategy(f"{name}:n=2,reward=logprob"))
    assert [c.score for c in outcome.candidates] == pytest.approx([0.25, 0.75])
    assert outcome.chosen == 1
    assert not any(isinstance(r, Score) for r in toy.requests)


def test_nothing_drawn_has_no_confidence():
    assert confidence(Extension("", (), "length")) == ()


def test_a_cascade_takes_the_small_model_where_it_agrees_with_itself():
    steps = {("lab-xs", ""): ["=1", "=2", "=1"], ("lab-s", ""): ["=3"], "": ["=4"]}
    spec = "cascade:k=3,n=2,small=lab-xs+lab-s,agreement="
    outcome = Script(steps).run(parse_strategy(f"{spec}0.6"))
    assert [(c.answer, c.model) for c in outcome.candidates] == [("1", "lab-xs"), ("2", "lab-xs"), ("1", "lab-xs")]
    assert outcome.chosen == 0
    outcome = Script(steps).run(parse_strategy(f"{spec}0.7"))
    assert [c.model for c in outcome.candidates] == ["lab-xs"] * 3 + ["lab-s"] * 3
    assert outcome.chosen == 3


def test_a_cascade_ends_with_the_model_of_the_run():
    steps = {("lab-xs", ""): ["=1", "no", "=2"], "": ["no", "=4"]}
    toy = Script(steps)
    outcome = toy.run(parse_strategy("cascade:k=3,n=2,agreement=0.5"))
    assert [c.model for c in outcome.candidates] == ["lab-xs"] * 3 + [None] * 2
    assert outcome.candidates[outcome.chosen].answer == "4"
    assert [p.stream for r in toy.requests for p in r.paths] == list(range(5))


def test_agreement_counts_the_samples_without_an_answer():
    steps = {("lab-xs", ""): ["=1", "no", "no", "no"], "": ["=2"]}
    outcome = Script(steps).run(parse_strategy("cascade:k=4,n=1,agreement=0.25"))
    assert outcome.chosen == 0
    outcome = Script(steps).run(parse_strategy("cascade:k=4,n=1,agreement=0.26"))
    assert outcome.candidates[outcome.chosen].answer == "2"
    none = Script({("lab-xs", ""): ["no"], "": ["no"]}).run(parse_strategy("cascade:agreement=0"))
    assert none.chosen is None


@pytest.mark.parametrize(
    ("weight", "answer"),
    [("", "2"), ("1.4+1+1", "2"), ("1.5+1+1", "1"), ("2+1+1", "1"), ("1+1+0.1", "2"), ("1.9+1.5+0.4", "1")],
)
def test_an_ensemble_adds_the_weights_of_its_models(weight, answer):
    # own model: 1, 1; the second: 2, 2; the third: 2, 3; so 2a against 2b + c, and the first of equals wins
    steps = {"": ["=1"], ("lab-xs", ""): ["=2"], ("lab-m", ""): ["=2", "=3"]}
    strategy = parse_strategy("ensemble:n=2,others=lab-xs+lab-m" + (f",weight={weight}" if weight else ""))
    toy = Script(steps)
    outcome = toy.run(strategy)
    assert [c.model for c in outcome.candidates] == [None] * 2 + ["lab-xs"] * 2 + ["lab-m"] * 2
    assert outcome.candidates[outcome.chosen].answer == answer
    assert [r.model for r in toy.requests if isinstance(r, Extend)] == [None, "lab-xs", "lab-m"]
