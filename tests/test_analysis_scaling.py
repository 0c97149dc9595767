"""Curves from parts of a run: against brute force, with the votes of the engine itself as the reference."""

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import answered

from analysis import scaling
from analysis.lines import Cost, Measured, costs_of, drawn, lines
from analysis.scaling import Sketch, accuracies, growth, interval, share_of_cost, sketch
from engine.decoding import votes
from spec.choices import Vote
from spec.statistics import pass_at_k, wilson
from spec.strategy import STRATEGIES, BestOfN, Greedy, Majority, Mcts, Rebase, Weighted


def made(answers, scores=None, correct=False, **more):
    """A problem whose right answer is ``R``; None gives no answer."""
    names = {}
    kinds = tuple(-1 if a is None else 0 if a == "R" else names.setdefault(a, len(names) + 1) for a in answers)
    scores = tuple(scores or [math.nan] * len(kinds))
    values = {"costs": {"tokens": 10.0 * len(kinds)}, "prompt": 7.0, "once": 7.0} | more
    return Sketch("p", correct, kinds, scores, **values)


def curve(sketches, vote, cost, run_id):
    return scaling.curve(sketches, growth(sketches, vote), cost, run_id)


def reference(answers, scores, vote):
    """What the engine gives for these candidates in this order: whether it is right."""
    same = str.__eq__
    if vote is Vote.MAJORITY:
        at = votes.majority(answers, same)
    elif vote is Vote.WEIGHTED:
        at = votes.weighted(answers, scores, same)
    else:
        at = votes.best(answers, scores)
    return at is not None and answers[at] == "R"


def brute(answers, scores, vote, k):
    """The mean over every ordered choice of k candidates."""
    orders = itertools.permutations(range(len(answers)), k)
    return statistics.fmean(reference([answers[i] for i in o], [scores[i] for i in o], vote) for o in orders)


CASES = st.lists(
    st.tuples(st.sampled_from(["R", "R", "a", "b", None]), st.sampled_from([0.1, 0.25, 0.5, 0.9])),
    min_size=2,
    max_size=5,
)


@settings(max_examples=60)
@given(CASES, st.integers(1, 4))
def test_best_of_n_is_exact(case, k):
    answers, scores = ([c[i] for c in case] for i in (0, 1))
    distinct = [s + i / 1000 for i, s in enumerate(scores)]
    if k < len(case):
        (found,) = accuracies([made(answers, distinct)], Vote.BEST, k)
        assert found == pytest.approx(brute(answers, distinct, Vote.BEST, k))


@settings(max_examples=25)
@given(CASES, st.integers(1, 4), st.sampled_from([Vote.MAJORITY, Vote.WEIGHTED]))
def test_votes_of_random_parts_come_near_all_parts(case, k, vote):
    answers, scores = ([c[i] for c in case] for i in (0, 1))
    if k >= len(case):
        return
    found = [accuracies([made(answers, scores)], vote, k, seed)[0] for seed in range(20)]
    expected = brute(answers, scores, vote, k)
    assert statistics.fmean(found) == pytest.approx(expected, abs=0.06)
    if k == 1:
        assert found == [pytest.approx(expected)] * 20


def test_every_winner_is_the_engines_own():
    rng = np.random.default_rng(0)
    for _ in range(300):
        answers = [["R", "a", "b", "c", None][i] for i in rng.integers(0, 5, 6)]
        scores = rng.choice([0.2, 0.4, 0.7], 6).tolist()
        s = made(answers, scores)
        for vote in (Vote.MAJORITY, Vote.WEIGHTED):
            weights = np.array([s.scores if vote is Vote.WEIGHTED else [1.0] * 6])
            found = scaling._winners(np.array([s.kinds]), weights, np.arange(6)[None])
            assert bool(found[0]) == reference(answers, scores, vote), (answers, scores)


def test_the_last_point_is_what_the_run_gave():
    (found,) = accuracies([made(["a", "a", "R"], correct=True)], Vote.MAJORITY, 3)
    assert found == 1.0


def test_answers_without_votes_are_wrong():
    silent = [made([None, None, None]), made(["R", "R", "R"])]
    assert accuracies(silent, Vote.MAJORITY, 2).tolist() == [0, 1]
    assert accuracies(silent, Vote.WEIGHTED, 2).tolist() == [0, 0], "without a score nobody votes"
    assert accuracies(silent, Vote.BEST, 2).tolist() == [0, 0]


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    some = [made([["R", "a", "b"][i] for i in rng.integers(0, 3, 8)]) for _ in range(50)]
    whole = accuracies(some, Vote.MAJORITY, 4)
    monkeypatch.setattr(scaling, "_CHUNK", 1000)
    assert accuracies(some, Vote.MAJORITY, 4).tolist() == whole.tolist()


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_a_perfect_judge_is_pass_at_k(n, right, k):
    right, k = min(right, n), min(k, n)
    (found,) = accuracies([made(["R"] * right + ["a"] * (n - right))], None, k)
    assert found == pytest.approx(pass_at_k(n, right, k))


# --- costs


def cost(prompt, once, **costs):
    values = {"tokens": 40.0, "flops_generated": 400.0, "flops_total": 1000.0, "flops_no_reuse": 1600.0} | costs
    return made(["a"] * 4, costs=values, prompt=prompt, once=once)


def test_a_shared_prompt_is_charged_once_and_a_private_one_each_time():
    shared, private = cost(prompt=20.0, once=20.0), cost(prompt=80.0, once=20.0, flops_total=1600.0)
    assert share_of_cost(shared, "tokens", 1) == 10
    assert share_of_cost(shared, "flops_generated", 2) == 200
    # 10 operations per token: the prompt costs 200, and the four samples share the other 800.
    assert [share_of_cost(shared, "flops_total", k) for k in (1, 2, 4)] == [400, 600, 1000]
    assert [share_of_cost(private, "flops_total", k) for k in (1, 2, 4)] == [400, 800, 1600]
    assert [share_of_cost(shared, "flops_no_reuse", k) for k in (1, 2, 4)] == [400, 800, 1600]


def test_a_prompt_that_another_problem_had_computed_is_charged_as_read():
    found = cost(prompt=5.0, once=20.0)
    assert [share_of_cost(found, "flops_total", k) for k in (1, 2, 4)] == [287.5, 525, 1000]


def test_an_unknown_cost_has_no_share_and_no_curve():
    known = cost(20.0, 20.0)
    unknown = dataclasses.replace(known, costs={"tokens": 40.0})
    assert share_of_cost(unknown, "flops_total", 1) is None
    assert curve([known, unknown], Vote.MAJORITY, "flops_total", "r") == []
    assert len(curve([known, unknown], Vote.MAJORITY, "tokens", "r")) == 3


def test_nothing_written_costs_nothing_per_token():
    idle = cost(20.0, 20.0, tokens=0.0, flops_generated=0.0)
    assert share_of_cost(idle, "flops_total", 2) == 500


# --- curves and intervals


def test_a_curve_rises_with_its_cost_and_its_last_point_is_the_run():
    answers = [sketch(a) for a in answered(Majority(n=16), 120, share=0.6)]
    found = curve(answers, Vote.MAJORITY, "flops_total", "r")
    assert [p.n for p in found] == [1, 2, 4, 8, 16]
    assert [p.is_part for p in found] == [True] * 4 + [False]
    assert all(a.x < b.x for a, b in itertools.pairwise(found))
    assert found[-1].accuracy > found[0].accuracy + 0.1
    assert found[-1].accuracy == statistics.fmean(a.correct for a in answers)
    for point in found:
        assert point.low < point.accuracy < point.high
        assert (point.problems, point.run_id) == (120, "r")
    assert curve(answers, Vote.MAJORITY, "flops_total", "r") == found, "the same every time"


def test_repeats_are_no_new_problems():
    once = [sketch(a) for a in answered(Majority(n=4), 30)]
    thrice = once * 3
    (a, b) = (curve(some, Vote.MAJORITY, "tokens", "r")[-1] for some in (once, thrice))
    assert (a.problems, a.accuracy, a.low, a.high) == (b.problems, pytest.approx(b.accuracy), b.low, b.high)


def test_an_interval_without_spread_is_wilsons():
    assert interval(np.ones(20)) == wilson(20, 20)
    low, high = interval(np.array([0.0, 1.0] * 50))
    assert (low, high) == (pytest.approx(wilson(50, 100)[0], abs=0.03), pytest.approx(wilson(50, 100)[1], abs=0.03))
    with pytest.raises(ValueError, match="at least one"):
        interval(np.array([]))


@pytest.mark.parametrize("change", [{"error": "x"}, {"correct": None}, {"candidates": ()}])
def test_what_was_not_checked_is_left_out(change):
    (answer,) = answered(Majority(n=4), 1)
    assert sketch(dataclasses.replace(answer, **change)) is None
    assert curve([], Vote.MAJORITY, "tokens", "r") == []


def test_two_ways_to_write_the_right_answer_are_one_class():
    (answer,) = answered(Majority(n=3), 1)
    texts = [("18", True), ("18.0", True), ("7", False)]
    same = [
        dataclasses.replace(c, answer=t, correct=right) for c, (t, right) in zip(answer.candidates, texts, strict=True)
    ]
    assert list(sketch(dataclasses.replace(answer, candidates=tuple(same))).kinds) == [0, 0, 1]


# --- lines


def run(strategy, created=0.0, model="lab-s", weights="bf16", run_id="r", **costs):
    known = {Cost.TOKENS: 10.0 * strategy.samples, Cost.SECONDS: 1.0, **{Cost(k): v for k, v in costs.items()}}
    return Measured(run_id, model, weights, strategy, created, 100, 0.5, 0.4, 0.6, known)


def test_runs_that_differ_in_their_budget_lie_on_one_line():
    some = [run(Majority(n=n), created=n) for n in (4, 16, 8)] + [run(Mcts(expansions=e)) for e in (32, 8)]
    majority, mcts = lines(some)
    assert [r.strategy.n for r in majority.runs] == [4, 8, 16]
    assert majority.source is majority.runs[-1]
    assert [r.strategy.expansions for r in mcts.runs] == [8, 32]
    assert mcts.source is None
    assert (majority.name, mcts.name) == ("lab-s · majority", "lab-s · mcts")


def test_what_differs_otherwise_makes_lines_of_their_own_named_by_the_difference():
    some = [run(Majority(n=4)), run(Majority(n=4, temperature=1.2)), run(Majority(n=4), weights="fp32"), run(Greedy())]
    names = [line.name for line in lines(some)]
    assert names == [
        "lab-s · greedy",
        "lab-s · majority · bf16, temperature=0.8",
        "lab-s · majority · bf16, temperature=1.2",
        "lab-s · majority · fp32, temperature=0.8",
    ]


def test_ways_that_change_answers_or_costs_are_told_apart():
    zero, few, half = (
        dataclasses.replace(run(Greedy()), ways=ways)
        for ways in (("isoquant", "zero-shot"), ("isoquant", "few-shot"), ("transformers", "few-shot"))
    )
    assert [line.name for line in lines([zero, few, half])] == [
        "lab-s · greedy · isoquant, few-shot",
        "lab-s · greedy · isoquant, zero-shot",
        "lab-s · greedy · transformers, few-shot",
    ]
    assert [line.name for line in lines([zero])] == ["lab-s · greedy"]


def test_of_equal_runs_the_newest_of_the_largest_stands_for_all():
    some = [run(Rebase(n=8), created=c, run_id=f"r{c}") for c in (1, 3, 2)]
    assert [r.run_id for r in lines(some)[0].runs] == ["r3"]
    small = dataclasses.replace(run(Rebase(n=8), created=9, run_id="small"), problems=5)
    assert [r.run_id for r in lines([*some, small])[0].runs] == ["r3"]


def test_parts_of_a_run_have_no_time_of_their_own():
    sketches = [sketch(a) for a in answered(Weighted(n=8), 20)]
    (line,) = lines([run(Weighted(n=n), run_id=f"r{n}", created=n) for n in (2, 8)])
    grown = growth(sketches, Vote.WEIGHTED)
    assert [p.n for p in drawn(line, Cost.TOKENS, sketches, grown)] == [1, 2, 4, 8]
    assert [(p.n, p.run_id, p.is_part) for p in drawn(line, Cost.SECONDS, sketches, grown)] == [
        (2, "r2", False),
        (8, "r8", False),
    ]
    assert [p.n for p in drawn(line, Cost.TOKENS)] == [2, 8]
    assert drawn(line, Cost.JOULES, sketches, grown) == ()


def test_the_cheapest_point_comes_first():
    (line,) = lines([run(BestOfN(n=2), tokens=50.0, created=1), run(BestOfN(n=4), tokens=30.0)])
    assert [p.x for p in drawn(line, Cost.TOKENS)] == [30, 50]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_place_on_a_line(name):
    strategy = STRATEGIES[name]()
    (line,) = lines([run(strategy)])
    assert line.strategy == name
    assert len(drawn(line, Cost.TOKENS)) == 1


ROW = {
    "n_problems": 10,
    "repeats": 2,
    "n_failed": 5,
    "tokens_per_problem": 90.0,
    "flops_generated": 2500.0,
    "flops_per_problem": 300.0,
    "flops_no_reuse": None,
    "latency_mean_s": 0.5,
    "j_per_problem": 4.0,
    "energy_valid": 1,
}


def test_costs_of_a_run_are_per_problem_and_never_made_up():
    found = costs_of(ROW)
    assert found == {
        Cost.TOKENS: 90,
        Cost.FLOPS_GENERATED: 100,
        Cost.FLOPS_TOTAL: 300,
        Cost.SECONDS: 0.5,
        Cost.JOULES: 4,
    }
    assert Cost.JOULES not in costs_of(ROW | {"energy_valid": 0})
    assert costs_of(dict.fromkeys(ROW)) == {}


def test_each_cost_says_what_it_is():
    for cost in Cost:
        assert cost.measure.name == cost
        assert cost.measure.formula
