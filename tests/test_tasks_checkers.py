"""Finding the final answer, and telling when two answers are the same."""

import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.choices import Checker
from tasks.checkers import RULES, as_number, last_number, marked
from tasks.math_check import ROOT, MathChecker

EXACT, NUMBER, MATH, CONTAINS = (RULES[c] for c in (Checker.EXACT, Checker.NUMBER, Checker.MATH, Checker.CONTAINS))


def test_every_checker_has_a_rule():
    assert set(RULES) == set(Checker)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 3 * 4 = 12.\n#### 12", "12"),
        ("#### 12\n\nQuestion: more?\n#### 13", "12"),
        ("####12", "12"),
        ("#### ", None),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{unfinished", None),
        ("The answer is 42.\nBye", "42."),
        ("The answer is 18. She started with 24 eggs.", "18"),
        ("The answer is 18. No, the answer is 20. Done.", "20"),
        ("The answer is: 3.5 times", "3.5 times"),
        ("Answer: J. R. R. Tolkien", "J. R. R. Tolkien"),
        ("The answer is B. Because it fits.", "B"),
        ("Answer: Paris. It is in France", "Paris"),
        ("Answer: Paris", "Paris"),
        ("nothing marked, 7", None),
        ("", None),
    ],
)
def test_marked_answers(text, answer):
    assert marked(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 5 apples and 1,234.50 pears.", "1234.50"),
        ("10-3=7.", "7"),
        ("it falls to -3", "-3"),
        ("3/4 of it", "3/4"),
        ("$5/hour", "5"),
        ("costs $.50", ".50"),
        ("version 1.2.3", None),
        ("on 12/25/2020", None),
        ("no number", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [("$1,200.50", 1200.5), (r"\$18", 18), ("50%", 50), ("3/4", 0.75), ("7.", 7), ("-2", -2), (" 8 ", 8)],
)
def test_numbers_are_read_exactly(text, value):
    assert as_number(text) == value


@pytest.mark.parametrize("text", ["", "1/0", "1,2", "five", "1e9", "2x", "9" * 5000, "٣" * 2 + "x"])
def test_what_is_no_number(text):
    assert as_number(text) is None


@given(st.integers(-(10**12), 10**12))
def test_a_number_equals_itself_however_it_is_written(n):
    assert NUMBER.equivalent(f"{n:,}", str(n))
    assert NUMBER.equivalent(f"${n}.00", str(n))
    assert not NUMBER.equivalent(str(n + 1), str(n))
    assert NUMBER.extract(f"The total comes to {n:,} dollars.") == str(n)


@given(st.text(max_size=200))
def test_no_text_breaks_a_rule(text):
    for rule in (EXACT, NUMBER, CONTAINS):
        answer = rule.extract(text)
        assert answer is None or answer.strip()
        if answer is not None:
            rule.equivalent(answer, text)


def test_exact_ignores_only_white_space_quotes_and_a_full_stop():
    assert EXACT.extract("Thinking.\n\n  Paris. \n") == "Paris."
    assert EXACT.equivalent(' "Paris". ', "Paris")
    assert EXACT.equivalent("New  York", "New York")
    assert not EXACT.equivalent("paris", "Paris")


def test_contains_wants_whole_words():
    assert CONTAINS.equivalent("I think it is the Blue Whale.", "blue whale")
    assert not CONTAINS.equivalent("It is 142.", "42")
    assert not CONTAINS.equivalent("It is 421.", "42")
    assert not CONTAINS.equivalent("anything", "  ")
    assert CONTAINS.equivalent("costs $5 (five)", "$5")


def test_number_rule_takes_the_number_out_of_the_marked_line():
    assert NUMBER.extract("7 8 9\n#### 12 apples") == "12"
    assert NUMBER.extract("7 8 9\n#### none") is None
    assert NUMBER.extract("Answer: 3/4 of 8 = 6") == "6"
    assert NUMBER.extract("Answer: 3 * 4 = 12 = 24 / 2") == "3"


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("18 dollars", "18", True),
        ("Paris", "London", False),
        (r"\frac{1}{3}", "0.5", False),
        ("}{\\", "1", False),
        ("Paris", "Pairs", False),
        (r"\text{Paris}", "Paris", True),
        (r"\text{Paris}", "Pairs", False),
        ("(1, 2)", "(1,2)", True),
        ("(1, 2)", "(2, 1)", False),
        ("listen", "silent", False),
        ("BA", "AB", False),
        ("2020-05-01", "2014", False),
        ("Not 5", "5", False),
        ("5", "Not 5", False),
        ("12 apples", "12 pears", False),
        (r"12\text{ apples}", "12 pears", False),
        (r"12\text{ apples}", "12 apples", True),
        ("12", "12 apples", True),
        ("2ab+b", "b+2ba", True),
        (r"\frac{1}{2} dollars", r"\frac{2}{4}", True),
        ("x = 5", "5", True),
        ("5 = x", "5", True),
        ("3/4 of 8 = 6", "6", True),
        ("5 apples and 3 pears", "5", True),
        ("5 apples and 3 pears", "3", False),
        ("24 a day, not 18", "18", False),
    ],
)
def test_mathematical_equality(answer, reference, same):
    assert MATH.equivalent(answer, reference) is same


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("The answer is 18. She started with 24 eggs.", "18", "24"),
        ("So the answer is $18 per day, not $20.", "18", "20"),
        ("The answer is 5 apples and 3 pears.", "5", "3"),
        ("Answer: 3/4 of 8 = 6", "6", "8"),
    ],
)
def test_an_answer_in_words_counts_by_the_number_it_states(text, right, wrong):
    assert MATH.equivalent(MATH.extract(text), right)
    assert not MATH.equivalent(MATH.extract(text), wrong)
    assert NUMBER.equivalent(NUMBER.extract(text), right)


def test_numbers_need_no_helper_process(monkeypatch):
    monkeypatch.setattr("tasks.checkers.math_equal", lambda a, b: pytest.fail("the helper was asked"))
    assert MATH.equivalent("$1,000.0", "1000")
    assert not MATH.equivalent("999", "1000")


@pytest.mark.slow
def test_endless_expression_is_given_up_and_the_next_one_is_answered():
    checker = MathChecker(cpu_limit_s=1.0)
    assert not checker.equal("9^{9^{9^{9^9}}}", "3")
    assert checker.equal(r"\frac{2}{4}", "0.5")
    checker.close()


def test_helper_ends_itself_by_processor_time():
    done = subprocess.run(
        [sys.executable, "-m", "tasks.math_worker", "0.5"],
        input=b'["9^{9^{9^{9^9}}}", "3"]\n',
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGPROF


def test_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(MATH.equivalent(r"\frac{1}{4}", "0.25")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.slow
def test_a_killed_helper_is_started_again():
    checker = MathChecker()
    assert checker.equal(r"\frac{1}{2}", "0.5")
    checker._process.kill()
    checker._process.wait()
    assert checker.equal(r"\frac{1}{2}", "0.5")
    checker.close()
    assert checker._process is None
