"""Strategies that only say how the runtime should write, and the bandit that learns an exit threshold."""

import math

import pytest
from toy import Random, Script

from engine.decoding import shared_state
from engine.decoding.bandit import Bandit
from engine.decoding.early_exit import THRESHOLDS, used
from engine.decoding.requests import Draft, Exit, Extension, Replay
from engine.sampling import Sampling
from spec.choices import Fate
from spec.strategy import parse_strategy


@pytest.mark.parametrize(
    ("spec", "draft", "sampling"),
    [
        ("speculative", Draft("lab-xs", 4), None),
        ("speculative:draft=x,tokens=2,temperature=0.5,top_k=9", Draft("x", 2), Sampling(0.5, 9)),
        ("lookup:tokens=6,ngram=2", Draft(None, 6, 2), None),
        ("lookup:temperature=1,min_p=0.1", Draft(None, 8, 3), Sampling(1.0, min_p=0.1)),
    ],
)
def test_a_drafted_solution_is_one_request(spec, draft, sampling):
    toy = Random()
    outcome = toy.run(parse_strategy(spec))
    (request,) = toy.requests
    assert (request.draft, request.sampling, len(request.paths)) == (draft, sampling, 1)
    assert len(outcome.candidates) == 1


def test_a_fixed_exit_is_one_request():
    toy = Script({"": ["=1"]})
    outcome = toy.run(parse_strategy("early-exit:threshold=0.6,rule=margin,first=3"))
    (request,) = toy.requests
    assert request.exit == Exit(0.6, margin=True, first=3)
    assert request.sampling is None
    assert (outcome.chosen, outcome.tree) == (0, ())


def test_a_pull_earns_its_agreement_with_the_full_depth_less_the_price_of_its_layers():
    toy = Random(seed=4)
    strategy = parse_strategy("early-exit:policy=bandit,price=0.4")
    bandit = shared_state(strategy)
    outcome = toy.run(strategy, shared=bandit)
    (made,) = toy.grown
    assert toy.requests[0].exit == Exit(THRESHOLDS[0])
    assert toy.requests[1] == Replay(made.ids)
    layers = sum(1 + i % 4 for i in range(len(made.ids))) / (4 * len(made.ids))
    # the toy writes what its full depth would write
    assert bandit.arms[0].mean == pytest.approx(1 - 0.4 * layers)
    assert (bandit.arms[0].pulls, bandit.arms[0].rewards) == (1, 1)
    assert outcome.candidates[0].node == 0
    assert outcome.tree[0].note.startswith("threshold 0.5 chosen by the bandit: agreement 1.00, earned")
    assert outcome.tree[0].fate in (Fate.FINISHED, Fate.CUT)
    toy.run(strategy, shared=bandit)
    assert toy.requests[0].exit == Exit(THRESHOLDS[1])


def test_a_token_that_differs_from_the_full_depth_costs_agreement():
    class Other(Random):
        def answer(self, request):
            found = super().answer(request)
            return (-1, *found[1:]) if isinstance(request, Replay) else found

    toy, strategy = Other(seed=4), parse_strategy("early-exit:policy=bandit,price=0")
    bandit = shared_state(strategy)
    toy.run(strategy, shared=bandit)
    assert bandit.arms[0].mean == pytest.approx(1 - 1 / len(toy.grown[0].ids))


def test_layers_that_are_not_known_count_as_all():
    assert used(Extension("ab", (1, 2), "stop", exits=(1, 3)), 4) == 0.5
    assert used(Extension("ab", (1, 2), "stop", exits=(1, 3)), None) == 1.0
    assert used(Extension("", (), "length"), 4) == 1.0


def test_only_the_bandit_shares_anything():
    assert shared_state(parse_strategy("early-exit")) is None
    assert shared_state(parse_strategy("majority")) is None


def test_ucb1_by_hand():
    bandit = Bandit((1, 2))
    first, second = bandit.pull(), bandit.pull()
    assert (first.value, second.value) == (1, 2)
    bandit.reward(first, 0.9)
    bandit.reward(second, 0.5)
    assert bandit.pull() is first  # 0.9 + sqrt(2 ln 2) against 0.5 + sqrt(2 ln 2)
    bandit.reward(first, 0.1)
    assert first.mean == pytest.approx(0.5)
    assert bandit.pull() is second  # 0.5 + sqrt(ln 3) against 0.5 + sqrt(2 ln 3)
    assert math.isclose(second.mean, 0.5)


def test_the_bound_is_that_of_ucb1():
    bandit = Bandit((1, 2))
    bandit.arms[0].pulls, bandit.arms[0].mean = 3, 0.9
    bandit.arms[1].pulls, bandit.arms[1].mean = 1, 0.3
    assert bandit.pull().value == 2  # 0.3 + sqrt(2 ln 4) = 1.97 against 0.9 + sqrt(2 ln 4 / 3) = 1.86


def test_the_bandit_settles_on_the_best_arm():
    bandit = Bandit(THRESHOLDS)
    worth = dict(zip(THRESHOLDS, (0.2, 0.3, 0.8, 0.4, 0.3, 0.1), strict=True))
    for _ in range(2000):
        arm = bandit.pull()
        bandit.reward(arm, worth[arm.value])
    assert max(bandit.arms, key=lambda a: a.pulls).value == 0.8
    assert sum(a.pulls for a in bandit.arms if a.value != 0.8) < 500
