"""Practice beside the whole problems: bare sums, and stories that reach back.

A drill shows one skill over and over, so a small model learns it from far fewer tokens than ordinary problems need.
In sums the loss falls on results only (`lab.data.Examples.targets`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from tasks import lab_words
from tasks.lab_words_graph import Builder, Graph
from tasks.lab_words_steps import write_solution
from tasks.problem import Problem

# Drills come from problems far beyond those that are shown whole.
FIRST_INDEX = 2_000_000
_EQUATION = re.compile(r"\d[\d+\-*/]*=\d+")
_SUMS_PER_ROW = 12
_BRANCHES = 0.35


def problems(chunk: int, size: int) -> list[Problem]:
    """The problems behind one chunk of drills; easy ones have no sums worth a drill."""
    levels = lab_words.LEVELS[3:]
    numbers = range(FIRST_INDEX + chunk * size, FIRST_INDEX + (chunk + 1) * size)
    return [lab_words.generate(i // len(levels), levels[i % len(levels)], "train") for i in numbers]


def sums(examples: Iterable[Problem], rng: random.Random) -> list[str]:
    """Rows of equations from all the solutions, shuffled: `24*3=72` and a newline each."""
    found = [e for p in examples for e in _EQUATION.findall(p.solution)]
    rng.shuffle(found)
    return ["\n".join(found[i : i + _SUMS_PER_ROW]) + "\n" for i in range(0, len(found), _SUMS_PER_ROW)]


class Reaching(Builder):
    """Problems in which nearly every step needs a number that is not the one just found."""

    def step(self, sinks: list[int], left: int) -> int | None:
        """A sum or difference with any earlier quantity, or a branch from one that the next step joins."""
        used = [i for i in range(len(self.graph.quantities)) if i not in sinks]
        if not sinks or (not used and len(sinks) == 1):
            return super().step(sinks, left)
        if len(sinks) > 1:
            parents = sinks[:2]
            new = self.combine(self.rng.sample(parents, 2), left == 0)
        elif left and self.rng.random() < _BRANCHES:
            parents, new = [], self.derive(self.rng.choice(used))
        else:
            parents = sinks[:1]
            new = self.combine([*parents, self.rng.choice(used)], left == 0)
        if new is not None:
            sinks[:] = [i for i in sinks if i not in parents] + [new]
        return new


def reaching(rows: int, rng: random.Random) -> list[tuple[str, str]]:
    """Prompts and solutions of such problems, of 3 to 7 steps; none has the structure of a held-out problem."""
    made: list[tuple[str, str]] = []
    while len(made) < rows:
        graph = Reaching(rng.randint(3, 7), rng).build()
        if graph is not None and lab_words.split_of(graph) == "train":
            made.append((_prompt(graph), write_solution(graph, rng)))
    return made


def _prompt(graph: Graph) -> str:
    question = " ".join([*(q.sentence for q in graph.quantities if q.sentence), graph.question])
    return lab_words.prompt(Problem("", question, None, None, None))
