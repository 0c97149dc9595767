"""What holds for every strategy on any model: it ends, keeps its limits, and leaves a tree that is in order."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import CAP, Random

from engine.decoding import SEARCHES
from spec.choices import Fate
from spec.strategy import STRATEGIES, StepSearch, parse_strategy

SPECS = [
    "greedy",
    "sample",
    "majority:n=3",
    "weighted:n=3",
    "best-of-n:n=3",
    "adaptive:n=7,wave=3",
    "adaptive:n=7,wave=2,rule=certain",
    "beam:width=1",
    "beam:width=3,length_penalty=0.3",
    "step-beam:n=6,width=3,max_steps=5,max_step_tokens=4",
    "step-beam:n=6,width=2,duplicates=drop,vote=majority,reward=logprob",
    "lookahead:n=4,width=2,steps=2,max_step_tokens=5",
    "lookahead:n=4,width=2,reward=logprob,aggregate=mean",
    "dvts:n=6,width=3,max_steps=4,max_step_tokens=6",
    "dvts:n=4,width=1,vote=best",
    "mcts:expansions=9,root_children=3,max_step_tokens=5",
    "mcts:expansions=5,children=3,aggregate=prod",
    "rebase:n=7,balance=0.3,max_step_tokens=4",
    "rebase:n=4,max_steps=3,reward=logprob",
    "particle:n=5,max_step_tokens=6",
    "particle:n=4,max_steps=2,vote=best,aggregate=min",
    "speculative",
    "lookup:temperature=1",
    "early-exit",
    "early-exit:policy=bandit",
    "budget:max_tokens=6",
    "budget:max_tokens=9,min_tokens=8,end==",
    "cascade:k=3,n=4",
    "ensemble:n=3,weight=2+1",
]
SEARCHING = [s for s in SPECS if isinstance(parse_strategy(s), StepSearch)]
toys = st.builds(Random, st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 2.0]), st.sampled_from([None, 15]))
caps = st.sampled_from([1, 2, 7, CAP])


def test_every_strategy_is_here_and_has_its_search():
    assert {parse_strategy(s).name for s in SPECS} == set(STRATEGIES)
    assert set(SEARCHES) == set(STRATEGIES.values())


@pytest.mark.parametrize("text", SPECS)
@settings(max_examples=25)
@given(toy=toys, cap=caps)
@example(toy=Random(1, ending=1e-9), cap=CAP)
def test_it_ends_within_its_limits_and_chooses_an_answer_if_there_is_one(text, toy, cap):
    strategy = parse_strategy(text)
    outcome = toy.run(strategy, max_new_tokens=cap)
    assert outcome.candidates or strategy.name == "mcts"  # where it reached no end
    assert toy.most <= strategy.samples
    forced = 1 + 4 * strategy.waits if strategy.name == "budget" else 0
    for candidate in outcome.candidates:
        assert candidate.tokens <= cap
        assert len(candidate.text) <= candidate.tokens + forced
        assert candidate.finish in ("stop", "length")
        assert candidate.score is None or 0 <= candidate.score <= 1
    answers = [c.answer for c in outcome.candidates]
    if outcome.chosen is None:
        assert not any(answers) or text.startswith("cascade")
    else:
        assert answers[outcome.chosen] is not None


@pytest.mark.parametrize("text", [s for s in SPECS if s.startswith("beam")] + SEARCHING)
@settings(max_examples=25)
@given(toy=toys, cap=caps)
def test_the_tree_is_in_order(text, toy, cap):
    outcome = toy.run(parse_strategy(text), max_new_tokens=cap)
    tree = outcome.tree
    for index, node in enumerate(tree):
        assert node.parent is None or node.parent < index
        assert node.depth == (1 if node.parent is None else tree[node.parent].depth + 1)
        assert node.fate in set(Fate)
    parents = {node.parent for node in tree}
    for index, node in enumerate(tree):
        assert (node.fate == Fate.EXPANDED) == (index in parents), (index, node)
    for candidate in outcome.candidates:
        assert "".join(tree[i].text for i in chain(tree, candidate.node)) == candidate.text
        assert sum(tree[i].tokens for i in chain(tree, candidate.node)) == candidate.tokens
        assert tree[candidate.node].fate == (Fate.FINISHED if candidate.finish == "stop" else Fate.CUT)


@pytest.mark.parametrize("text", [s for s in SEARCHING if not s.startswith("lookahead")])
@given(toy=toys)
def test_every_token_that_was_paid_for_stands_in_the_tree_once(text, toy):
    outcome = toy.run(parse_strategy(text))
    assert sum(node.tokens for node in outcome.tree) == toy.tokens


@pytest.mark.parametrize("text", SPECS)
def test_the_same_seed_gives_the_same_outcome(text):
    strategy = parse_strategy(text)
    for seed in range(5):
        assert Random(seed).run(strategy, key=9) == Random(seed).run(strategy, key=9)


def chain(tree, index):
    """From the first step to this one."""
    path = []
    while index is not None:
        path.append(index)
        index = tree[index].parent
    return reversed(path)
