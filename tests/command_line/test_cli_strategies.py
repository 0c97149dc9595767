"""The verb ``strategies``, and strategies with several models on the command line."""

import json

from commands.options import check, make_spec
from spec.strategy import STRATEGIES


def test_all_strategies_with_their_parameters_and_sources(isoquant):
    code, out, err = isoquant("strategies")
    assert (code, err) == (0, "")
    for name, strategy in STRATEGIES.items():
        assert f"{name}: {strategy.summary}" in out
        assert strategy.source in out


def test_one_strategy(isoquant):
    code, out, _ = isoquant("strategies", "rebase")
    assert code == 0
    assert out.startswith("rebase: ")
    assert "arXiv 2408.00724" in out
    assert "balance" in out
    assert "majority:" not in out
    (found,) = json.loads(isoquant("strategies", "lookup", "--json")[1])
    assert (found["name"], found["needs_runtime"]) == ("lookup", True)
    assert found["parameters"][-1]["name"] == "ngram"


def test_an_unknown_strategy_is_named_with_the_nearest(isoquant):
    assert isoquant("strategies", "rebas") == (2, "", "error: Unknown strategy 'rebas'; did you mean 'rebase'?\n")


def test_folders_of_further_models_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("small", "mine", "logprob"):
        (tmp_path / folder).mkdir()
    spec = make_spec("lab-s", "cascade:small=lab-xs+./small")
    assert spec.strategy.models == ("lab-xs", str(tmp_path / "small"))
    assert make_spec("lab-s", "speculative:draft=./mine").strategy.models == (str(tmp_path / "mine"),)
    assert make_spec("lab-s", "rebase:reward=logprob").strategy.by_logprob


def test_further_models_and_reward_models_are_looked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("engine.catalog.resolve", lambda name: asked.append(name))
    monkeypatch.setattr("engine.catalog.resolve_reward", lambda name: asked.append(name))
    for text in ("ensemble:others=a+b", "mcts:reward=logprob", "mcts:reward=r"):
        check(make_spec("lab-s", text))
    assert asked == ["lab-s", "a", "b", "lab-s", "lab-s", "r"]
