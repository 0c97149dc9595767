"""Practice rows beside the whole problems: bare sums, and looking up who had how many of what.

A drill shows one skill with nothing around it, so a small model learns it from far fewer tokens than stories need.
The loss falls on results only (`lab.data.Examples.targets`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from tasks import lab_words
from tasks.lab_words_graph import GOODS, NAMES
from tasks.problem import Problem

# Drills come from problems far beyond those that are shown whole.
FIRST_INDEX = 2_000_000
_EQUATION = re.compile(r"\d[\d+\-*/]*=\d+")
_LINE = re.compile(r"(?:has|:) (\d[\d+\-*/]*=\d+)")
_GIVEN = re.compile(r" (?:has|owns) (\d+) \w+\.")
_STEPS = ("{a} has {e} {i}.", "So {a} has {e} {i}.", "{a}'s {i}: {e}.")
_SUMS_PER_ROW = 12
_OWNERS, _ITEMS, _GIVENS, _LINES, _QUERIES = 4, 3, 4, 5, 8


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


def lookups(examples: list[Problem], rows: int, rng: random.Random) -> list[str]:
    """Facts as questions and as solutions tell them, then `Ben's pears=72` for most of them; numbers from `examples`.

    Few owners and few items make each of them occur several times, so that neither alone finds the number.
    """
    givens = [number for p in examples for number in _GIVEN.findall(p.question)]
    lines = [equation for p in examples for equation in _LINE.findall(p.solution)]
    return [_lookup_row(rng.sample(givens, _GIVENS), rng.sample(lines, _LINES), rng) for _ in range(rows)]


def _lookup_row(givens: list[str], lines: list[str], rng: random.Random) -> str:
    items = rng.sample(GOODS, _ITEMS)
    pairs = [(owner, item) for owner in rng.sample(NAMES, _OWNERS) for item in items]
    named = list(zip(rng.sample(pairs, _GIVENS + _LINES), [*givens, *lines], strict=True))
    facts = [f"{owner} {rng.choice(('has', 'owns'))} {number} {item}." for (owner, item), number in named[:_GIVENS]]
    steps = [
        rng.choice(_STEPS).format(a=owner, i=item, e=equation) + "\n" for (owner, item), equation in named[_GIVENS:]
    ]
    asked = [f"{owner}'s {item}={e.rsplit('=')[-1]}\n" for (owner, item), e in rng.sample(named, _QUERIES)]
    return " ".join(facts) + "\n" + "".join(steps + asked)
