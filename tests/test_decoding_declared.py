"""What strategies declare about themselves: limits, models, the reward, and their text form."""

import pytest

from spec.errors import SpecError
from spec.parameters import parameters
from spec.strategy import STRATEGIES, Drafted, Sample, parse_strategy, strategy_from_dict


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_survives_its_text_and_its_json_form(name):
    strategy = STRATEGIES[name]()
    assert parse_strategy(str(strategy)) == strategy
    assert strategy_from_dict(strategy.to_dict()) == strategy
    assert strategy.samples >= 1
    assert strategy.summary.endswith(".")
    assert all(p.help.endswith(".") for p in parameters(type(strategy)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_samples_takes_all_sampling_parameters(name):
    kind = STRATEGIES[name]
    names = {p.name for p in parameters(kind)} & {"temperature", "top_k", "top_p", "min_p"}
    assert len(names) == (4 if issubclass(kind, (Sample, Drafted)) else 0)


@pytest.mark.parametrize("name", ["step-beam", "dvts", "lookahead"])
def test_the_width_divides_n(name):
    with pytest.raises(SpecError, match=f"{name}.n must be a multiple of {name}.width") as error:
        parse_strategy(f"{name}:n=6,width=4")
    assert error.value.field == f"{name}.n"


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("majority", ()),
        ("speculative:draft=/models/a b", ("/models/a b",)),
        ("cascade:small=lab-xs + lab-s", ("lab-xs", "lab-s")),
        ("ensemble", ("lab-xs",)),
        ("lookup", ()),
    ],
)
def test_further_models_are_named(text, models):
    assert parse_strategy(text).models == models


@pytest.mark.parametrize(
    ("name", "field", "text"),
    [
        ("cascade", "small", "a++b"),
        ("ensemble", "others", ""),
        ("ensemble", "others", "+"),
        ("speculative", "draft", " "),
    ],
)
def test_a_model_without_a_name_is_refused(name, field, text):
    with pytest.raises(SpecError) as error:
        strategy_from_dict({"name": name, field: text})
    assert error.value.field == f"{name}.{field}"


@pytest.mark.parametrize("weight", ["1", "1+2+3", "1+x", "0+1", "-1+1", "nan+1", "inf+1", "+"])
def test_an_ensemble_needs_one_weight_per_model(weight):
    with pytest.raises(SpecError, match=r"ensemble\.weight must be 2 numbers above 0"):
        parse_strategy(f"ensemble:weight={weight}")


def test_weights_are_numbers_or_all_equal():
    assert parse_strategy("ensemble:weight=2+0.5").weights == (2.0, 0.5)
    assert parse_strategy("ensemble:others=a+b").weights == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "reward", "by_logprob"),
    [
        ("weighted", "lab-prm", False),
        ("weighted:reward=logprob", None, True),
        ("rebase:reward=/models/x", "/models/x", False),
        ("mcts:reward=logprob", None, True),
        ("majority", None, False),
    ],
)
def test_the_reward_that_costs_nothing_is_no_model(text, reward, by_logprob):
    strategy = parse_strategy(text)
    assert (strategy.reward_name, strategy.by_logprob) == (reward, by_logprob)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("greedy", False),
        ("majority", True),
        ("best-of-n", False),
        ("adaptive", True),
        ("rebase", True),
        ("rebase:vote=best", False),
        ("particle:vote=majority", True),
        ("cascade", True),
        ("ensemble", True),
        ("beam", False),
    ],
)
def test_who_asks_which_answers_are_the_same(text, counts):
    assert parse_strategy(text).counts_answers is counts


@pytest.mark.parametrize(
    ("text", "samples"),
    [("mcts:root_children=3,children=5", 5), ("beam:width=7", 7), ("cascade:k=9,n=2", 9), ("ensemble:n=3", 3)],
)
def test_how_many_sequences_are_in_flight(text, samples):
    assert parse_strategy(text).samples == samples


def test_what_reaches_into_the_forward_pass_says_so():
    assert {n for n, s in STRATEGIES.items() if s.needs_runtime} == {"speculative", "lookup", "early-exit"}
