"""Searches over steps against simulations and sums by hand."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import CAP, Random, Script

from engine.decoding.particle import resample
from engine.decoding.rebase import allocate
from engine.decoding.requests import Extend, Path
from engine.sampling import Sampling
from spec.choices import Fate
from spec.strategy import parse_strategy


def by_text(outcome):
    return {n.text: n for n in outcome.tree}


def simulated_beam(toy, n, width):
    """Step beam search in a dozen lines: the texts of all completed solutions."""
    beams, done, stream = [((), "")], [], 0
    while beams:
        grown = []
        for i in range(n):
            ids, text = beams[i % len(beams)]
            made = toy.write(Path(stream, ids), Extend((), CAP, Sampling(0.8), ("\n",)), CAP - len(ids))
            stream += 1
            ids += made.ids
            ended = made.stop is None or len(ids) == CAP
            (done if ended else grown).append((ids, text + made.whole))
        grown.sort(key=lambda beam: -toy.score(beam[1].removesuffix("\n"))[-1])
        beams = grown[: n // width]
    return [text for _, text in done]


@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (4, 2), (6, 3), (6, 6), (5, 1)]))
def test_step_beam_is_what_a_plain_simulation_finds(seed, size):
    n, width = size
    outcome = Random(seed).run(parse_strategy(f"step-beam:n={n},width={width}"))
    assert Counter(c.text for c in outcome.candidates) == Counter(simulated_beam(Random(seed), n, width))


def test_step_beam_keeps_the_best_and_says_the_ranks():
    toy = Script(
        {"": ["a\n", "b\n", "c\n", "=1"], "b\n": ["=2", "=3"], "a\n": ["=4"]},
        {"a": 0.3, "b": 0.9, "c": 0.2, "=1": 0.5, "=2": 0.4, "=3": 0.3},
    )
    outcome = toy.run(parse_strategy("step-beam:n=4,width=4"))
    assert [c.text for c in outcome.candidates] == ["=1", "b\n=2", "b\n=3", "b\n=2", "b\n=3"]
    assert outcome.candidates[outcome.chosen].answer == "2"  # 0.4 + 0.4 against 0.3 + 0.3 and 0.5
    nodes = by_text(outcome)
    assert [nodes[t].note for t in ("a\n", "b\n", "c\n")] == ["rank 2 of 3", "rank 1 of 3", "rank 3 of 3"]
    assert [nodes[t].fate for t in ("a\n", "b\n", "c\n")] == [Fate.PRUNED, Fate.EXPANDED, Fate.PRUNED]
    assert outcome.candidates[1].step_scores == (0.9, 0.4)


def test_a_duplicate_leaves_its_place_to_another_text():
    steps = {"": ["a\n", "a\n", "b\n", "c\n"], "a\n": ["=1"], "b\n": ["=2"]}
    scores = {"a": 0.9, "b": 0.5, "c": 0.1}
    keep = Script(steps, scores).run(parse_strategy("step-beam:n=4,width=2"))
    assert {c.answer for c in keep.candidates} == {"1"}
    drop = Script(steps, scores).run(parse_strategy("step-beam:n=4,width=2,duplicates=drop"))
    assert {c.answer for c in drop.candidates} == {"1", "2"}
    assert [n.fate for n in drop.tree[:4]] == [Fate.EXPANDED, Fate.DUPLICATE, Fate.EXPANDED, Fate.PRUNED]


def test_paths_alive_in_the_last_round_vote_if_they_hold_an_answer():
    toy = Script({"": ["a\n"], "a\n": ["b\n", "=7\n"]}, {"b": 0.9, "=7": 0.2})
    outcome = toy.run(parse_strategy("step-beam:n=2,width=1,max_steps=2"))
    assert [(c.text, c.answer, c.finish) for c in outcome.candidates] == [
        ("a\nb\n", None, "length"),
        ("a\n=7\n", "7", "length"),
    ]
    assert outcome.chosen == 1
    assert [n.fate for n in outcome.tree[2:]] == [Fate.CUT, Fate.CUT]


def test_dvts_follows_the_best_of_each_subtree_and_gives_all_of_its_last_round():
    toy = Script(
        {"": ["b\n", "a\n", "c\n", "d\n"], "a\n": ["=1", "=2"], "c\n": ["x\n", "=3"], "c\nx\n": ["=4", "y\n"]},
        {"a": 0.9, "b": 0.8, "c": 0.3, "d": 0.2, "=1": 0.5, "=2": 0.6, "x": 0.7, "=3": 0.6, "=4": 0.4, "y": 0.1},
    )
    outcome = toy.run(parse_strategy("dvts:n=4,width=2,vote=best"))
    assert [c.text for c in outcome.candidates] == ["a\n=1", "a\n=2", "c\nx\n=4", "c\nx\ny\n"]
    assert outcome.chosen == 1
    nodes = by_text(outcome)
    assert nodes["b\n"].fate == nodes["d\n"].fate == nodes["=3"].fate == Fate.PRUNED
    assert nodes["c\n"].note == "rank 1 of 2 in subtree 2"


@given(st.integers(0, 10**6))
def test_subtrees_of_dvts_share_nothing(seed):
    outcome = Random(seed).run(parse_strategy("dvts:n=6,width=2"))
    assert len(outcome.candidates) == 6
    firsts = []
    for i in range(0, 6, 2):
        nodes = [outcome.tree[c.node] for c in outcome.candidates[i : i + 2]]
        assert nodes[0].parent == nodes[1].parent
        place = outcome.candidates[i].node
        while outcome.tree[place].parent is not None:
            place = outcome.tree[place].parent
        firsts.append(place // 2)  # the first round is asked for subtree by subtree
    assert firsts == [0, 1, 2]


LOOK = (
    {"": ["a\n", "b\n"], "a\n": ["x\n"], "b\n": ["=1", "y\n"], "a\nx\n": ["=2"], "b\ny\n": ["=3"]},
    {"a": 0.9, "b": 0.4, "x": 0.1, "=1": 0.8, "y": 0.3, "=2": 0.2, "=3": 0.7},
)


def test_looking_ahead_changes_the_choice_and_is_paid_for():
    blind, seeing = (Script(*LOOK) for _ in range(2))
    assert {c.answer for c in blind.run(parse_strategy("step-beam:n=2,width=2")).candidates} == {"2"}
    outcome = seeing.run(parse_strategy("lookahead:n=2,width=2"))
    assert {c.answer for c in outcome.candidates} == {"1", "3"}
    assert seeing.texts()[0] == ("a\nx", "b\n=1")
    nodes = by_text(outcome)
    assert (nodes["a\n"].score, nodes["b\n"].score) == (0.1, 0.8)
    assert "x\n" not in nodes
    assert nodes["a\n"].note == "rank 2 of 2, judged 2 tokens ahead"
    assert nodes["b\n"].note == "rank 1 of 2, judged 3 tokens ahead"
    looked = 2 + 3 + 3  # of a, of b, and of the y behind it
    assert seeing.tokens == sum(n.tokens for n in outcome.tree) + looked
    greedy = [r for r in seeing.requests if isinstance(r, Extend) and r.sampling is None]
    assert len(greedy) == 2


def test_what_was_seen_ahead_is_no_part_of_a_solutions_own_scores():
    steps = {"": ["a\n"], "a\n": ["b\n"], "a\nb\n": ["=1"]}
    toy = Script(steps, logprobs={"a\n": 0.9, "b\n": 0.6, "=1": 0.3})
    outcome = toy.run(parse_strategy("lookahead:n=1,width=1,reward=logprob"))
    assert outcome.candidates[0].step_scores == pytest.approx((0.9, 0.6, 0.3))
    assert [n.score for n in outcome.tree] == pytest.approx([0.6, 0.3, 0.3])


def test_looking_further_ahead_stops_where_a_solution_ends():
    toy = Script(*LOOK)
    toy.run(parse_strategy("lookahead:n=2,width=2,steps=2"))
    assert toy.texts()[0] == ("a\nx\n=2", "b\n=1")


def test_mcts_counts_visits_and_values_as_by_hand():
    steps = {
        "": ["a\n", "b\n"],
        "a\n": ["c\n", "=1"],
        "b\n": ["d\n", "e\n"],
        "a\nc\n": ["=2", "f\n"],
        "b\nd\n": ["=3", "g\n"],
    }
    scores = {"a": 0.9, "b": 0.2, "c": 0.4, "=1": 0.8, "d": 0.6, "e": 0.1, "=2": 0.3, "f": 0.5, "=3": 0.9, "g": 0.1}
    outcome = Script(steps, scores).run(parse_strategy("mcts:expansions=6,root_children=2"))
    # root; a (both unvisited, a is better); b (unvisited); a then =1 (1.95 > 1.25, unvisited); a then c (1.68 > 1.38);
    # b then d (0.2 + sqrt(ln 5) = 1.47 > 0.7 + sqrt(ln 5 / 3) = 1.43)
    notes = {n.text.strip(): n.note for n in outcome.tree}
    assert notes["a"] == "visits 3, value 0.70"
    assert notes["b"] == "visits 2, value 0.40"
    assert notes["=1"] == "visits 1, value 0.80"
    assert notes["c"] == "visits 1, value 0.40"
    assert notes["d"] == "visits 1, value 0.60"
    assert notes["e"] == notes["=2"] == notes["=3"] == "visits 0, value 0.00"
    assert [c.answer for c in outcome.candidates] == ["1", "2", "3"]
    assert outcome.candidates[outcome.chosen].answer == "3"
    fates = {n.text.strip(): n.fate for n in outcome.tree}
    assert fates["e"] == fates["f"] == fates["g"] == Fate.PRUNED
    assert fates["a"] == fates["d"] == Fate.EXPANDED


def test_mcts_without_curiosity_follows_the_value():
    steps = {"": ["a\n", "b\n"], "a\n": ["c\n"], "a\nc\n": ["=1"], "b\n": ["d\n"]}
    spec = "mcts:expansions=5,root_children=2,children=1,c=0"
    outcome = Script(steps, {"a": 0.9, "b": 0.2, "c": 0.8, "=1": 0.7, "d": 0.1}).run(parse_strategy(spec))
    assert [c.answer for c in outcome.candidates] == ["1"]


def test_mcts_stops_when_everything_has_ended():
    toy = Script({"": ["=1", "=2"]}, {"=1": 0.1, "=2": 0.9})
    outcome = toy.run(parse_strategy("mcts:root_children=2"))
    assert len(toy.grown) == len(outcome.candidates) == 2
    assert [n.note for n in outcome.tree] == ["visits 0, value 0.00"] * 2


def test_mcts_visits_the_better_of_two_new_steps_first():
    toy = Script({"": ["a\n", "b\n"], "b\n": ["=1"]}, {"a": 0.2, "b": 0.9})
    outcome = toy.run(parse_strategy("mcts:root_children=2,expansions=2"))
    assert [c.text for c in outcome.candidates] == ["b\n=1", "b\n=1"]


@given(st.integers(0, 4096), st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.001, 100))
def test_shares_add_up_and_differ_from_the_exact_ones_by_less_than_one(budget, scores, temperature):
    shares = allocate(budget, scores, temperature)
    weights = [math.exp((s - max(scores)) / temperature) for s in scores]
    quotas = [budget * w / sum(weights) for w in weights]
    assert sum(shares) == budget
    assert all(abs(share - quota) < 1 + 1e-9 for share, quota in zip(shares, quotas, strict=True))
    pairs = itertools.combinations(zip(quotas, shares, strict=True), 2)
    assert all(b >= a for (p, a), (q, b) in pairs if q > p + 1e-6)


def test_rebase_shares_continuations_out_by_score():
    toy = Script(
        {"": ["a\n", "b\n", "=1", "c\n"], "a\n": ["=2", "=3"], "b\n": ["=2"]},
        {"a": 0.9, "b": 0.9, "c": 0.1, "=1": 0.5, "=2": 0.3, "=3": 0.2},
    )
    outcome = toy.run(parse_strategy("rebase:n=4"))
    nodes = by_text(outcome)
    assert nodes["a\n"].note == "2 of 3 continuations"  # 1.4998 each, and the first of equals gets the rest
    assert nodes["b\n"].note == "1 of 3 continuations"
    assert (nodes["c\n"].note, nodes["c\n"].fate) == ("0 of 3 continuations", Fate.PRUNED)
    assert [c.text for c in outcome.candidates] == ["=1", "a\n=2", "a\n=3", "b\n=2"]
    assert outcome.candidates[outcome.chosen].answer == "2"  # 0.3 + 0.3 against 0.5


def test_rebase_lets_paths_alive_at_the_last_round_vote_if_they_hold_an_answer():
    toy = Script({"": ["=1\n", "b\n"], "=1\n": ["x\n"], "b\n": ["y\n"]}, {"x": 0.4, "y": 0.4})
    outcome = toy.run(parse_strategy("rebase:n=2,max_steps=2"))
    assert [c.answer for c in outcome.candidates] == ["1", None]
    assert outcome.chosen == 0


def test_particles_are_drawn_in_proportion_to_their_odds():
    numbers = [(i + 0.5) / 4000 for i in range(4000)]
    counts = Counter(resample([0.5, 0.75, 0.0], numbers))
    assert counts == {0: 1000, 1: 3000}
    assert set(resample([1.0, 0.5], numbers)) == {0}
    assert Counter(resample([0.0, 0.0], numbers)) == {0: 2000, 1: 2000}
    assert resample([0.2, 0.8], [0.0, 1 - 2**-48]) == [0, 1]


def test_particles_that_have_ended_are_drawn_again_too():
    toy = Script({"": ["=1", "a\n"], "a\n": ["=2"]}, {"=1": 1.0, "a": 0.5, "=2": 0.5})
    outcome = toy.run(parse_strategy("particle:n=2"))
    assert [c.text for c in outcome.candidates] == ["=1", "=1"]
    assert {c.node for c in outcome.candidates} == {0}
    assert (outcome.tree[1].note, outcome.tree[1].fate) == ("drawn 0 times of 2", Fate.PRUNED)


def test_the_draws_of_the_particles_follow_the_key_of_the_problem():
    strategy = parse_strategy("particle:n=6")
    found = {tuple(c.text for c in Random(3).run(strategy, key=key).candidates) for key in range(8)}
    assert len(found) > 1


@pytest.mark.parametrize("name", ["step-beam", "dvts", "rebase", "particle"])
def test_steps_are_judged_without_a_reward_model_by_their_own_probability(name):
    toy = Script({"": ["a\n"], "a\n": ["=1"]}, logprobs={"a\n": 0.9, "=1": 0.4})
    outcome = toy.run(parse_strategy(f"{name}:n=4,reward=logprob,aggregate=prod"))
    assert toy.texts() == []
    assert [n.score for n in outcome.tree] == pytest.approx([0.9] * 4 + [0.4] * 4)
    assert outcome.candidates[0].step_scores == pytest.approx((0.9, 0.4))
    assert outcome.candidates[0].score == pytest.approx(0.36)


def test_a_stop_string_that_begins_with_the_end_of_a_step_ends_the_solution():
    toy = Script({"": ["=1\n"], "=1\n": ["Question: what?\n"]})
    outcome = toy.run(parse_strategy("rebase:n=1"), stop=("\nQuestion:",))
    (found,) = outcome.candidates
    assert (found.text, found.answer, found.finish) == ("=1\n", "1", "stop")
    assert [n.fate for n in outcome.tree] == [Fate.EXPANDED, Fate.FINISHED]


def test_a_step_is_cut_at_its_longest_and_goes_on():
    toy = Script({"": ["abcdef\n"], "abcd": ["ef\n"], "abcdef\n": ["=1"]})
    outcome = toy.run(parse_strategy("rebase:n=1,max_step_tokens=4"))
    assert [n.text for n in outcome.tree] == ["abcd", "ef\n", "=1"]
    assert toy.texts() == [("abcd",), ("abcdef",), ("abcdef\n=1",)]


def test_a_full_context_ends_a_path():
    outcome = Script({"": ["abcdef\n"]}, context=4).run(parse_strategy("rebase:n=1"))
    assert [(c.text, c.finish, c.tokens) for c in outcome.candidates] == [("abcd", "length", 4)]


def test_the_longest_answer_bounds_the_last_step():
    toy = Script({"": ["abc\n"], "abc\n": ["defg\n"]})
    outcome = toy.run(parse_strategy("rebase:n=1"), max_new_tokens=6)
    assert [(c.text, c.finish, c.tokens) for c in outcome.candidates] == [("abc\nde", "length", 6)]
    assert [r.paths[0].limit for r in toy.requests if isinstance(r, Extend)] == [None, 2]
