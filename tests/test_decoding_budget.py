"""Budget forcing at its borders: the cap, the floor, and how often it waits."""

import pytest
from toy import Script, question

from engine.decoding.budget import _kept
from engine.decoding.requests import Extension
from spec.errors import SpecError
from spec.strategy import Budget, parse_strategy

LONG = 200


def run(steps, spec, **changes):
    """The only candidate, and the toy."""
    toy = Script(steps)
    outcome = toy.run(parse_strategy(spec), **({"max_new_tokens": LONG} | changes))
    (found,) = outcome.candidates
    assert outcome.chosen == (None if found.answer is None else 0)
    return found, toy


def test_thinking_is_cut_at_the_cap_and_the_answer_forced():
    found, toy = run({"": ["thinking"], "think=": ["4"]}, "budget:max_tokens=5,end==")
    assert (found.text, found.answer, found.finish) == ("think=4", "4", "stop")
    assert found.tokens == 5 + 2  # what was forced was not generated; the answer has its end token
    assert [r.max_new_tokens for r in toy.requests] == [5, 32]


def test_an_ending_in_the_last_token_of_the_cap_is_the_models_own():
    steps = {"": ["abc="], "abc=": ["7"]}
    for cap in (4, 3):
        found, _ = run(steps, f"budget:max_tokens={cap},end==")
        assert (found.text, found.tokens) == ("abc=7", cap + 2)


def test_thinking_that_ends_too_early_goes_on_with_the_word():
    steps = {"": ["ab="], "abWait": ["cd="], "abWaitcdWait": ["e="], "abWaitcdWaite=": ["9"]}
    found, _ = run(steps, "budget:min_tokens=100,end==")
    assert (found.text, found.answer) == ("abWaitcdWaite=9", "9")
    assert found.tokens == 3 + 3 + 2 + 2


@pytest.mark.parametrize(("floor", "waits"), [(0, 0), (3, 0), (4, 1), (6, 1), (7, 2), (99, 2)])
def test_it_waits_only_below_the_floor(floor, waits):
    steps = {"": ["ab="], "abWait": ["cd="], "abWaitcdWait": ["e="]}
    steps |= {"ab=": ["9"], "abWaitcd=": ["9"], "abWaitcdWaite=": ["9"]}
    found, _ = run(steps, f"budget:min_tokens={floor},end==")
    assert found.text.count("Wait") == waits


def test_it_waits_as_often_as_it_may():
    steps = {"": ["ab="], "ab=": ["9"], "abHm": ["c="], "abHmc=": ["8"]}
    assert run(steps, "budget:min_tokens=99,waits=0,end==")[0].text == "ab=9"
    assert run(steps, "budget:min_tokens=99,waits=1,wait=Hm,end==")[0].text == "abHmc=8"


def test_the_models_own_end_is_taken_away_too():
    steps = {"": ["=1"], "=1Wait": ["=2"]}
    found, _ = run(steps, "budget:min_tokens=4,waits=1,end=####")
    assert found.text == "=1Wait=2"
    assert found.tokens == 3 + 3


def test_a_solution_that_ends_without_the_end_text_is_complete():
    found, toy = run({"": ["=1"]}, "budget")
    assert (found.text, found.answer, len(toy.requests)) == ("=1", "1", 1)


def test_the_cap_is_stronger_than_the_floor():
    found, _ = run({"": ["ab="], "ab=": ["9"]}, "budget:max_tokens=3,min_tokens=50,end==")
    assert found.text == "ab=9"


def test_thinking_and_answer_stay_within_the_longest_answer():
    found, toy = run({"": ["thinking"], "thin=": ["4567890"]}, "budget:max_tokens=100,end==", max_new_tokens=8)
    assert (found.text, found.tokens, found.finish) == ("thin=4567", 8, "length")
    assert [r.max_new_tokens for r in toy.requests] == [4, 4]


def test_a_token_that_holds_text_and_ending_is_replaced_by_one_of_the_text():
    words = {1: "two ", 2: "pears", 3: "\n####", 4: "\n", 9: ""}
    asked = question(
        decode=lambda ids: "".join(words[i] for i in ids),
        encode=lambda text: {"": (), "\n": (4,)}[text],
        is_end=lambda token: token == 9,
    )
    straddling = Extension("two pears\n", (1, 2, 3), "stop", "####", "two pears\n####")
    assert _kept(asked, straddling) == (1, 2, 4)
    assert _kept(asked, Extension("two pears", (1, 2, 9), "stop")) == (1, 2)
    assert _kept(asked, Extension("", (3,), "stop", "\n####", "\n####")) == ()


@pytest.mark.parametrize("field", ["wait", "end"])
def test_the_words_that_are_forced_may_not_be_empty(field):
    with pytest.raises(SpecError, match=f"budget.{field} must not be empty"):
        Budget(**{field: " "})
