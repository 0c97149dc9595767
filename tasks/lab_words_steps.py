"""Solutions of `lab-words` problems, one equation per line, and the exact check of each line.

A quantity may be computed by one of several *plans*: directly, or in parts (``24*13`` as ``24*10``, ``24*3`` and a
sum; ``345+78`` as ``345+70`` and 8 more). Solutions draw order of steps, plan, operand order and wording at random, so
that several samples of one model reach a number by different sums and err in partly independent ways. A vote over
samples lives on that: where there is one way only, the most frequent answer is the greedy one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations

from tasks.lab_words_graph import DIFFERENCE, TOTAL, Graph

Plan = tuple[str, ...]
Key = tuple[str, tuple[int, ...]]

# How the line with the answer begins.
FINAL = "####"
EQUATION = re.compile(r"(?<![\d+\-*/=])(\d+(?:[+\-*/]\d+)+)=(\d+)(?![\d+\-*/=])")
_OWNED = ("{a} has {e} {i}.", "So {a} has {e} {i}.", "{a}'s {i}: {e}.")
_ASKED = {
    TOTAL: ("The total is {e}.", "Total: {e}."),
    DIFFERENCE: ("The difference is {e}.", "Difference: {e}."),
}


def direct(op: str, numbers: tuple[int, ...]) -> str:
    """The one-line form of an operation, without its result: ``48/4*3``."""
    if op == "f":
        x, p, q = numbers
        return f"{x}/{q}*{p}"
    return op.join(map(str, numbers))


def plans(op: str, numbers: tuple[int, ...]) -> Iterator[Plan]:
    """Every way in which a solution may compute an operation: equations in order, the last one gives the value."""
    whole = direct(op, numbers)
    value = evaluate(whole)
    yield (f"{whole}={value}",)
    if op == "f":
        x, p, q = numbers
        yield f"{x}/{q}={x // q}", f"{x // q}*{p}={value}"
    elif op == "*" and len(numbers) == 2:
        for x, y in (numbers, numbers[::-1]):
            for high, low in _digits(y):
                yield f"{x}*{high}={x * high}", f"{x}*{low}={x * low}", f"{x * high}+{x * low}={value}"
    elif op in "+-" and len(numbers) == 2:
        for x, y in (numbers, numbers[::-1]) if op == "+" else (numbers,):
            for high, low in _digits(y):
                between = evaluate_int(op, (x, high))
                yield f"{x}{op}{high}={between}", f"{between}{op}{low}={value}"
    elif op == "+" and len(numbers) == 3:
        for k in range(3):
            a, b = (n for j, n in enumerate(numbers) if j != k)
            yield f"{a}+{b}={a + b}", f"{a + b}+{numbers[k]}={value}"


def _digits(number: int) -> Iterator[tuple[int, int]]:
    """The ways to take a number apart between two of its digits: 345 is 340 and 5, and 300 and 45."""
    for unit in (10, 100, 1000):
        high, low = number // unit * unit, number % unit
        if high and low:
            yield high, low


def evaluate(expression: str) -> Fraction | int | None:
    """The exact value of a chain of ``+ - * /`` on integers; ``None`` for a division by zero."""
    total, sign = Fraction(0), 1
    for part in re.split(r"([+\-])", expression):
        if part in "+-":
            sign = 1 if part == "+" else -1
            continue
        term, *rest = re.split(r"([*/])", part)
        product = Fraction(int(term))
        for symbol, number in zip(rest[::2], rest[1::2], strict=True):
            if symbol == "/" and int(number) == 0:
                return None
            product = product * int(number) if symbol == "*" else product / int(number)
        total += sign * product
    return total.numerator if total.denominator == 1 else total


def key_of(expression: str) -> Key:
    """One key for all spellings of the same computation: ``3*24`` is ``24*3``, ``48*3/4`` is ``48/4*3``."""
    symbols = re.sub(r"\d", "", expression)
    numbers = tuple(map(int, re.findall(r"\d+", expression)))
    if symbols == "*/":
        x, p, q = numbers
        return "f", (x, p, q)
    if symbols == "/*":
        x, q, p = numbers
        return "f", (x, p, q)
    if set(symbols) in ({"+"}, {"*"}):
        return symbols, tuple(sorted(numbers))
    return symbols, numbers


def _share_in_parts(op: str, numbers: tuple[int, ...]) -> float:
    """How often an operation is done in parts: sums half of the time, hard products and fractions mostly."""
    if op in "+-":
        return 0.5
    short = [len(str(n).rstrip("0")) for n in numbers]
    easy = op == "/" or (op == "*" and min(short) == 1 and max(short) <= 2)
    return 0.05 if easy else 0.8


def _choose_plan(op: str, numbers: tuple[int, ...], rng: random.Random) -> Plan:
    """A plan as training solutions use it."""
    if rng.random() < _share_in_parts(op, numbers):
        options = list(plans(op, numbers))
        return rng.choice(options[1:] or options)
    return (f"{direct(op, numbers)}={evaluate_int(op, numbers)}",)


def evaluate_int(op: str, numbers: tuple[int, ...]) -> int:
    """The value of an operation whose result is known to be whole (faster than ``evaluate``)."""
    if op == "+":
        return sum(numbers)
    if op == "-":
        return numbers[0] - numbers[1]
    if op == "*":
        return numbers[0] * numbers[1]
    return numbers[0] // numbers[-1] * (numbers[1] if op == "f" else 1)


def _commute(equation: str, rng: random.Random) -> str:
    left, right = equation.split("=")
    for symbol in "+*":
        if symbol in left and "/" not in left and rng.random() < 0.4:
            parts = left.split(symbol)
            rng.shuffle(parts)
            return f"{symbol.join(parts)}={right}"
    return equation


def write_solution(graph: Graph, rng: random.Random) -> str:
    """A random valid solution of a graph, ending in ``#### answer`` (no newline after it)."""
    waiting = graph.needed()
    unsolved = set(waiting)
    lines: list[str] = []
    while waiting:
        ready = [i for i in waiting if not unsolved.intersection(graph.quantities[i].parents)]
        # Mostly in the order in which the question was made, else in any valid order.
        i = ready[0] if rng.random() < 0.85 else rng.choice(ready)
        quantity = graph.quantities[i]
        *parts, final = [_commute(e, rng) for e in _choose_plan(quantity.op, graph.numbers(i), rng)]
        wording = rng.choice(_OWNED if quantity.owner else _ASKED[quantity.item])
        lines += [*parts, wording.format(a=quantity.owner, i=quantity.item, e=final)]
        waiting.remove(i)
        unsolved.remove(i)
    return "\n".join([*lines, f"{FINAL} {graph.quantities[graph.target].value}"])


class Check:
    """Follows a solution line by line: what is established, and which equations may come next."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known = {i for i, q in enumerate(graph.quantities) if not q.op}
        self._plans = {
            i: [(plan, [_left(equation) for equation in plan]) for plan in plans(q.op, graph.numbers(i))]
            for i, q in enumerate(graph.quantities)
            if q.op
        }
        self._seen: dict[int, set[Key]] = {i: set() for i in self._plans}

    def take(self, line: str) -> bool:
        """Whether a line is right given what earlier lines established; adds what it establishes."""
        if line.startswith(FINAL):
            return line[len(FINAL) :].strip() == str(self.graph.quantities[self.graph.target].value)
        found = EQUATION.findall(line)
        if len(found) != 1 or evaluate(found[0][0]) != int(found[0][1]):
            return False
        key = key_of(found[0][0])
        right = False
        for i, _, keys in self._open():
            if key in keys[:-1]:
                # The parts of a plan use numbers of the quantity itself only, so their order is free.
                self._seen[i].add(key)
                right = True
            elif key == keys[-1] and self._seen[i].issuperset(keys[:-1]):
                self._known.add(i)
                right = True
        return right

    def turn(self, line: str) -> int:
        """At which character of a wrong line no right one can follow any more; its length if only the end tells."""
        if line.startswith(FINAL):
            start, text = 0, line
            wanted = {f"{FINAL} {self.graph.quantities[self.graph.target].value}"}
        else:
            match = EQUATION.search(line)
            if not match:
                return len(line)
            start, text, wanted = match.start(), match[0], set(self._next())
        end = next((k for k in range(1, len(text) + 1) if not any(w.startswith(text[:k]) for w in wanted)), None)
        return start + (len(text) if end is None else end - 1)

    def _open(self) -> Iterator[tuple[int, Plan, list[Key]]]:
        """The plans for the quantities whose operands are known: index, equations, the keys of their left sides."""
        for i, ways in self._plans.items():
            if self._known.issuperset(self.graph.quantities[i].parents):
                yield from ((i, plan, keys) for plan, keys in ways)

    def _next(self) -> Iterator[str]:
        """Every spelling of every equation that would be right now."""
        for i, plan, keys in self._open():
            for equation in plan if self._seen[i].issuperset(keys[:-1]) else plan[:-1]:
                yield from _spellings(equation)


def _left(equation: str) -> Key:
    return key_of(equation.split("=")[0])


def _spellings(equation: str) -> Iterator[str]:
    """An equation with its operands in every order that means the same."""
    left, right = equation.split("=")
    symbols = re.sub(r"\d", "", left)
    numbers = re.findall(r"\d+", left)
    if set(symbols) in ({"+"}, {"*"}):
        yield from (f"{symbols[0].join(order)}={right}" for order in permutations(numbers))
        return
    yield equation
    if symbols == "/*":
        x, q, p = numbers
        yield f"{x}*{p}/{q}={right}"


def label_steps(graph: Graph, solution: str) -> list[bool]:
    """Exact labels of the lines of a solution; see ``tasks.lab_words.step_labels`` for the convention."""
    check = Check(graph)
    labels: list[bool] = []
    for line in solution.removesuffix("\n").split("\n"):
        labels.append(all(labels[-1:]) and check.take(line))
    return labels


def first_wrong(graph: Graph, solution: str) -> int | None:
    """The character of a solution from which on it is wrong, whatever might follow; None if it is right throughout.

    ``24*13=412`` turns wrong at the 4, ``25*13=`` (where 24 pears were meant) at the 5.
    """
    check, start = Check(graph), 0
    for line in solution.removesuffix("\n").split("\n"):
        if not check.take(line):
            return start + check.turn(line)
        start += len(line) + 1
    return None
