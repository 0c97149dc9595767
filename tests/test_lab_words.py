"""The generated task: exact solutions, exact labels, disjoint splits, a test split that never changes."""

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import lab_words
from tasks.lab_words_steps import evaluate, key_of, plans, write_solution

CONTENT_HASH = "3da88e2d3221a2d05e831267ae293314934d473d5d6f35b9d5ae1acd8b01b81c"

levels = st.sampled_from(lab_words.LEVELS)
splits = st.sampled_from(lab_words.SPLITS)
indices = st.integers(0, 5000)


@settings(max_examples=150, deadline=None)
@given(index=indices, level=levels, split=splits)
def test_every_solution_is_exact_and_every_step_counts_as_right(index, level, split):
    problem = lab_words.generate(index, level, split)
    for expression, result in re.findall(r"([\d+\-*/]+)=(\d+)", problem.solution):
        assert evaluate(expression) == int(result)
    assert 0 <= int(problem.answer) <= 10_000
    assert lab_words.extract_answer(problem.solution) == problem.answer
    assert all(lab_words.step_labels(problem, problem.solution))
    assert len(lab_words.step_labels(problem, problem.solution + "\n")) == problem.solution.count("\n") + 1


@settings(max_examples=100, deadline=None)
@given(index=indices, level=levels, seed=st.integers(0, 10**6))
def test_level_is_the_number_of_steps_and_any_drawn_solution_is_right(index, level, seed):
    problem = lab_words.generate(index, level, "train")
    graph = lab_words.graph_of(problem)
    assert problem.level == level == len(graph.needed())
    text = write_solution(graph, random.Random(seed))
    assert all(lab_words.step_labels(problem, text))
    assert text.count("\n") >= level


@settings(max_examples=150, deadline=None)
@given(index=indices, level=levels, data=st.data())
def test_a_corrupted_number_makes_its_line_and_all_later_ones_wrong(index, level, data):
    problem = lab_words.generate(index, level, "train")
    lines = problem.solution.split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    # A result (or the final answer) off by some amount: never what the line computes.
    lines[at] = re.sub(r"\d+(?=\D*$)", lambda m: str(int(m.group()) + data.draw(st.integers(1, 99))), lines[at])
    labels = lab_words.step_labels(problem, "\n".join(lines))
    assert labels == [True] * at + [False] * (len(lines) - at)


def a_problem():
    """Two steps, with a product that may be split and two owners."""
    for index in range(2000):
        problem = lab_words.generate(index, 2, "train")
        graph = lab_words.graph_of(problem)
        first, last = (graph.quantities[i] for i in graph.needed())
        if first.op == "*" and min(graph.numbers(graph.needed()[0])) > 10 and last.op == "+" and last.owner:
            return problem, graph, first, last
    raise AssertionError("no such problem")


def test_labels_take_split_products_and_refuse_strange_steps():
    problem, graph, first, last = a_problem()
    x, y = graph.numbers(graph.needed()[0])
    tens, ones = y // 10 * 10, y % 10 or 1
    assert lab_words.step_labels(problem, f"{y}*{x}={x * y}") == [True]
    if y % 10:
        split = f"{x}*{tens}={x * tens}\n{ones}*{x}={x * ones}\n{x * tens}+{x * ones}={x * y}"
        assert lab_words.step_labels(problem, split) == [True] * 3
        assert lab_words.step_labels(problem, split.split("\n", 1)[1])[-1] is False
    assert lab_words.step_labels(problem, "1+1=2") == [False]
    assert lab_words.step_labels(problem, "no equation here") == [False]
    assert lab_words.step_labels(problem, f"{x}*{y}={x * y} and {x}*{y}={x * y}") == [False]
    a, b = graph.numbers(graph.needed()[1])
    assert lab_words.step_labels(problem, f"{a}+{b}={a + b}") == [False], "its operand is not derived yet"
    assert lab_words.step_labels(problem, f"{first.owner} has {x}*{y}={x * y}.") == [True]
    other = next(q.owner for q in graph.quantities if q.owner and q.owner != first.owner)
    renamed = problem.solution.replace(first.owner, other)
    assert all(lab_words.step_labels(problem, renamed)), "numbers decide, not whose they are said to be"
    assert lab_words.step_labels(problem, f"#### {last.value}") == [True]
    assert lab_words.step_labels(problem, "") == [False]
    assert lab_words.step_labels(problem, f"{x}/0=0") == [False]


@settings(max_examples=150, deadline=None)
@given(index=indices, level=levels, data=st.data())
def test_a_solution_turns_wrong_at_the_first_character_that_no_right_one_shares(index, level, data):
    problem = lab_words.generate(index, level, "train")
    assert lab_words.turns_wrong(problem, problem.solution) is None
    digits = [m.start() for m in re.finditer(r"(?<==)\d|(?<=#### )\d", problem.solution)]
    at = data.draw(st.sampled_from(digits))
    other = data.draw(st.sampled_from([d for d in "123456789" if d != problem.solution[at]]))
    text = problem.solution[:at] + other + problem.solution[at + 1 :]
    assert lab_words.turns_wrong(problem, text) == at
    assert lab_words.step_labels(problem, text).index(False) == text[:at].count("\n")


def test_operands_turn_a_solution_wrong_before_its_results_do():
    problem, graph, first, _ = a_problem()
    (x, y), (a, b) = (graph.numbers(i) for i in graph.needed())

    def turns(text: str) -> str | None:
        at = lab_words.turns_wrong(problem, text)
        return None if at is None else text[:at]

    assert turns(f"{first.owner} has {x}*{y}={x * y}.") is None
    assert turns(f"{first.owner} has {x}*0=0.") == f"{first.owner} has {x}*"
    assert turns(f"{y}*{x}={x * y}0") == f"{y}*{x}={x * y}", "a digit too many"
    assert turns(f"{y}*{x}={str(x * y)[:-1]}") == f"{y}*{x}={str(x * y)[:-1]}", "a digit too few: the end tells"
    assert turns("no equation here") == "no equation here"
    assert turns(f"{x}*{y}={x * y}\n{x}*{y}") == f"{x}*{y}={x * y}\n{x}*{y}", "unfinished"
    solved = f"{x}*{y}={x * y}\n{a}+{b}={a + b}\n#### "
    assert turns(f"{solved}0") == solved
    assert turns(f"{a}+{b}={a + b}") is not None, "its operand is not derived yet"
    *parts, whole = next(way for way in plans("*", (x, y)) if len(way) == 3)
    early = turns(whole)
    assert early is not None
    assert "=" not in early, "its parts were not computed yet"
    assert turns("\n".join([*parts, whole])) is None


@given(st.lists(st.integers(1, 99), min_size=2, max_size=3), st.sampled_from("+*"))
def test_plans_reach_the_value_and_operand_order_does_not_matter(numbers, op):
    for plan in plans(op, tuple(numbers)):
        for equation in plan:
            left, right = equation.split("=")
            assert evaluate(left) == int(right)
        assert int(plan[-1].split("=")[1]) == evaluate(op.join(map(str, numbers)))
    assert key_of(op.join(map(str, numbers))) == key_of(op.join(map(str, numbers[::-1])))


def test_sums_and_differences_may_be_reached_digit_by_digit():
    assert ("345+70=415", "415+8=423") in plans("+", (345, 78))
    assert ("78+300=378", "378+45=423") in plans("+", (345, 78))
    assert ("345-70=275", "275-8=267") in plans("-", (345, 78))
    assert list(plans("-", (345, 70))) == [("345-70=275",)]
    assert not any("78-" in plan[0] for plan in plans("-", (345, 78)))
    found = (lab_words.generate(i, 1, "train") for i in range(500))
    graphs = ((p, lab_words.graph_of(p)) for p in found)
    problem, x, y = next(
        (p, *g.numbers(g.target))
        for p, g in graphs
        if g.quantities[g.target].op == "-" and g.numbers(g.target)[1] % 10 and g.numbers(g.target)[1] > 10
    )
    high, low = y // 10 * 10, y % 10
    in_parts = f"{x}-{high}={x - high}\n{x - high}-{low}={x - y}\n#### {x - y}"
    assert lab_words.step_labels(problem, in_parts) == [True] * 3
    assert lab_words.step_labels(problem, in_parts.split("\n", 1)[1])[0] is False, "its first part is missing"


def test_test_split_is_fixed_balanced_and_pinned():
    problems = lab_words.problems("test")
    assert len(problems) == 1000
    assert len({p.id for p in problems}) == 1000
    for prefix in (8, 80, 1000):
        counts = [sum(p.level == level for p in problems[:prefix]) for level in lab_words.LEVELS]
        assert set(counts) == {prefix // 8}
    assert lab_words.content_hash("test") == CONTENT_HASH
    assert lab_words.problems("test", 16) == problems[:16]


def test_splits_share_no_structure_with_the_same_numbers():
    held_out = {
        split: {lab_words.graph_of(p).structure_hash() for p in lab_words.problems(split)}
        for split in ("test", "validation")
    }
    assert all(len(hashes) == 1000 for hashes in held_out.values())
    assert not held_out["test"] & held_out["validation"]
    for problem in lab_words.problems("train", 2000):
        assert lab_words.split_of(lab_words.graph_of(problem)) == "train"


@pytest.mark.slow
def test_the_stored_numbers_of_draws_are_what_drawing_gives(monkeypatch):
    stored = lab_words._attempts()
    hashes = {split: lab_words.content_hash(split) for split in stored}
    monkeypatch.setattr(lab_words, "_attempts", dict)
    lab_words._locate.cache_clear()
    lab_words._held_out.cache_clear()
    assert {split: lab_words.content_hash(split) for split in stored} == hashes


@pytest.mark.slow
def test_twenty_thousand_training_problems_share_no_structure_with_the_held_out_ones():
    train = {lab_words.graph_of(p).structure_hash() for p in lab_words.problems("train", 20_000)}
    for split in ("test", "validation"):
        assert not train & {lab_words.graph_of(p).structure_hash() for p in lab_words.problems(split)}


def test_problems_are_hard_in_the_ways_that_they_should_be():
    problems = lab_words.problems("test", 400)
    text = " ".join(p.question for p in problems)
    for words in (" times as many ", " fewer ", " more ", "half as many", " each", "the difference between"):
        assert words in text
    distracted = sum(
        any(i not in needed and q.owner for i, q in enumerate(graph.quantities))
        for graph in map(lab_words.graph_of, problems)
        for needed in [{*graph.needed(), *(p for i in graph.needed() for p in graph.quantities[i].parents)}]
    )
    assert distracted > 130, "many problems hold quantities that the answer does not need"


@pytest.mark.parametrize(
    ("text", "answer"),
    [("x\n#### 96", "96"), ("####1,234 ", "1234"), ("#### 7\n#### 8", "7"), ("no", None), ("#### x", None)],
)
def test_extract_answer(text, answer):
    assert lab_words.extract_answer(text) == answer


def test_is_correct_compares_integers():
    assert lab_words.is_correct("096", "96")
    assert not lab_words.is_correct(None, "96")
    assert not lab_words.is_correct("9.6", "96")


def test_unknown_splits_and_levels_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        lab_words.problems("dev")
    with pytest.raises(ValueError, match="limit"):
        lab_words.problems("train")
    with pytest.raises(ValueError, match="no such problem"):
        lab_words.generate(0, 9, "test")


def test_same_id_same_problem_whatever_was_made_before():
    first = lab_words.generate(17, 5, "train")
    lab_words._locate.cache_clear()
    assert lab_words.generate(17, 5, "train") == first


def test_generation_is_fast():
    begin = time.perf_counter()
    for index in range(200):
        lab_words.generate(900_000 + index, 8, "train")
    assert time.perf_counter() - begin < 2.0
