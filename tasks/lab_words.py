"""`lab-words`: generated word problems with exact answers, exact step labels and disjoint splits.

A problem is a small graph of quantities ("Ben's pears"). Some are given in the question, the others follow from
them by one operation each; the level is the number of operations that the answer needs. Everything is a function of
(split, level, index): nothing is stored, and a problem can be rebuilt from its id.

    >>> problem = generate(0, 3, "test")
    >>> is_correct(extract_answer(problem.solution), problem.answer)
    True
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from functools import lru_cache
from pathlib import Path

from tasks.lab_words_graph import Builder, Graph
from tasks.lab_words_steps import first_wrong, label_steps, write_solution
from tasks.problem import Problem

NAME = "lab-words"
LEVELS = tuple(range(1, 9))
SPLITS = ("train", "validation", "test")
TEST_PROBLEMS = 1000
# Buckets (of 100) of the structure hash that belong to the held-out splits; the rest is for training.
_HELD_OUT = {"test": range(5), "validation": range(5, 10)}
# Part of every seed: raise it when a change to the generator must give new problems, or new solutions.
VERSION = 3
_ATTEMPTS = Path(__file__).with_name("lab_words_attempts.json")


@lru_cache(maxsize=1)
def _attempts() -> dict[str, dict[str, list[int]]]:
    """How many draws the held-out problems took, by split, level and index: spares finding out again (seconds)."""
    return json.loads(_ATTEMPTS.read_text()) if _ATTEMPTS.exists() else {}


def write_attempts() -> None:
    """Rewrite that file; needed after a change to the generator."""
    _ATTEMPTS.unlink(missing_ok=True)
    _attempts.cache_clear()
    found: dict[str, dict[str, list[int]]] = {}
    for split in _HELD_OUT:
        last = dict.fromkeys(LEVELS, 0)
        for problem in problems(split):
            last[problem.level or 0] = int(problem.id.rsplit("-", 1)[1])
        found[split] = {str(k): [_locate(i, k, split)[1] % 10**4 for i in range(n + 1)] for k, n in last.items()}
    _ATTEMPTS.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    _attempts.cache_clear()


@lru_cache(maxsize=8192)
def _locate(index: int, level: int, split: str) -> tuple[Graph, int]:
    """The graph of a problem and the seed of its wording; draws again until the structure falls into ``split``."""
    if split not in SPLITS or level not in LEVELS or index < 0:
        raise ValueError(f"no such problem: split {split!r} of {SPLITS}, level {level} of 1..8, index {index}")
    known = _attempts().get(split, {}).get(str(level), [])
    attempt = known[index] if index < len(known) else 0
    while True:
        seed = ((VERSION * 8 + level) * 3 + SPLITS.index(split)) * 10**12 + index * 10**4 + attempt
        graph = Builder(level, random.Random(seed)).build()
        if graph is not None and split_of(graph) == split:
            return graph, seed
        attempt += 1


def split_of(graph: Graph) -> str:
    """The only split that may hold this structure with these numbers."""
    bucket = graph.structure_hash() % 100
    return next((name for name, buckets in _HELD_OUT.items() if bucket in buckets), "train")


def generate(index: int, level: int, split: str) -> Problem:
    """Problem number ``index`` of a level and split, with one reference solution."""
    graph, seed = _locate(index, level, split)
    rng = random.Random(f"{seed} wording")
    sentences = [q.sentence for q in graph.quantities if q.sentence]
    if rng.random() < 0.03:
        rng.shuffle(sentences)
    question = " ".join([*sentences, graph.question])
    solution = write_solution(graph, rng)
    return Problem(f"{split}-{level}-{index}", question, str(graph.quantities[graph.target].value), level, solution)


def graph_of(problem: Problem) -> Graph:
    """The graph behind a problem, rebuilt from its id."""
    split, level, index = problem.id.rsplit("-", 2)
    return _locate(int(index), int(level), split)[0]


@lru_cache(maxsize=4)
def _held_out(split: str) -> tuple[Problem, ...]:
    """The fixed problems of a held-out split, levels interleaved, no structure twice."""
    per_level = TEST_PROBLEMS // len(LEVELS)
    rows: list[list[Problem]] = []
    for level in LEVELS:
        seen: set[int] = set()
        row: list[Problem] = []
        index = 0
        while len(row) < per_level:
            structure = _locate(index, level, split)[0].structure_hash()
            if structure not in seen:
                seen.add(structure)
                row.append(generate(index, level, split))
            index += 1
        rows.append(row)
    return tuple(problem for group in zip(*rows, strict=True) for problem in group)


def problems(split: str, limit: int | None = None) -> list[Problem]:
    """The first ``limit`` problems of a split, balanced over the levels at every length.

    ``test`` and ``validation`` hold 1,000 fixed problems (125 per level); ``train`` has no end and needs a limit.
    """
    if split == "train":
        if limit is None:
            raise ValueError("the train split has no end: give a limit")
        return [generate(i // len(LEVELS), LEVELS[i % len(LEVELS)], split) for i in range(limit)]
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    return list(_held_out(split)[:limit])


def content_hash(split: str = "test") -> str:
    """SHA-256 of all questions, answers, levels and ids of a held-out split; names the data set as a whole."""
    rows = [[p.id, p.question, p.answer, p.level] for p in problems(split)]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def prompt(problem: Problem) -> str:
    """The text a model continues; the solution starts on the line after it."""
    return f"Question: {problem.question}\nAnswer:\n"


def extract_answer(text: str) -> str | None:
    """The integer after the first ``####``, without thousands separators, or ``None``."""
    match = re.search(r"####\s*(-?\d[\d,]*)", text)
    return match.group(1).replace(",", "") if match else None


def is_correct(answer: str | None, reference: str) -> bool:
    """Whether two answers are the same integer; no answer is never correct."""
    try:
        return answer is not None and int(answer) == int(reference)
    except ValueError:
        return False


def step_labels(problem: Problem, solution_text: str) -> list[bool]:
    """Whether each line of a solution is right, exactly; one label per line, a final newline opens no new line.

    A line is right if it holds one equation whose arithmetic is right, the equation is a step (or a part of a step in
    a split form, ``24*10=240``) towards a quantity of the problem, and its operands stand in the question or were
    derived by earlier lines. Numbers alone decide, not the names that a line gives them: a solution that calls Ben's
    pears Ada's and computes on rightly reaches the answer. Steps towards a quantity that the answer does not need are
    right, only useless. The line ``#### N`` is right if N is the answer. Convention: everything after the first wrong
    line is wrong too.
    """
    return label_steps(graph_of(problem), solution_text)


def turns_wrong(problem: Problem, solution_text: str) -> int | None:
    """The character from which on a solution is wrong, whatever might follow; ``None`` if every line is right."""
    return first_wrong(graph_of(problem), solution_text)
