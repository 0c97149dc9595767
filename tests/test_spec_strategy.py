"""The text form of a strategy is read back as it was written, whatever a path contains."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.run_spec import RunSpec
from spec.strategy import BestOfN, Weighted, parse_strategy

paths = st.text(st.sampled_from("ab,=\\\\:;/ .'\"é"), min_size=1).filter(lambda p: p == p.strip())


@given(paths)
def test_any_path_of_a_reward_model_survives_the_text_form(path):
    strategy = BestOfN(n=4, reward=path)
    assert parse_strategy(str(strategy)) == strategy


@pytest.mark.parametrize(
    "path", ["/models/a,b", "/models/n=8,temperature=1", "/models/a=b", "C:\\\\models\\\\x", "a\\\\"]
)
def test_a_folder_with_a_comma_is_one_value(path):
    strategy = Weighted(reward=path, aggregate="min")
    assert parse_strategy(str(strategy)) == strategy
    assert strategy.reward == path


def test_a_backslash_before_anything_else_is_a_backslash():
    assert parse_strategy(r"weighted:reward=C:\models\x,n=2") == Weighted(n=2, reward=r"C:\models\x")


def test_the_shell_leaves_the_escapes_alone():
    spec = RunSpec("lab-s", strategy=Weighted(reward="/a, b"))
    assert parse_strategy(shlex.split(shlex.join([str(spec.strategy)]))[0]) == spec.strategy
