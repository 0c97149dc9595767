"""The graphs behind `lab-words` problems: quantities, the operations that join them, and their sentences."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

LARGEST = 10_000

NAMES = [
    "Ada", "Ali", "Amy", "Ana", "Ben", "Bob", "Cleo", "Cora", "Dan", "Dina", "Eli", "Emma", "Eva", "Finn", "Gus",
    "Hana", "Hugo", "Ian", "Ida", "Ivy", "Jack", "Joy", "Kai", "Kim", "Lea", "Leo", "Liam", "Lucy", "Max", "Mia",
    "Nina", "Noah", "Olga", "Omar", "Otto", "Pia", "Rosa", "Ruth", "Sam", "Sara", "Theo", "Tina", "Tom", "Uma",
    "Vera", "Will", "Yara", "Zoe",
]  # fmt: skip
GOODS = [
    "apples", "pears", "plums", "lemons", "melons", "cherries", "peaches", "grapes", "nuts", "eggs", "cakes", "buns",
    "cookies", "candies", "pens", "pencils", "books", "cards", "coins", "stamps", "marbles", "beads", "buttons",
    "shells", "stones", "toys", "balls", "dolls", "kites", "hats", "shirts", "socks", "roses", "tulips", "stickers",
    "tickets", "bricks", "candles", "cups", "spoons",
]  # fmt: skip
CONTAINERS = {"boxes": "box", "bags": "bag", "baskets": "basket", "crates": "crate", "jars": "jar", "trays": "tray"}
MONEY = "dollars"
FRACTIONS = {
    (1, 2): "half", (1, 3): "a third", (1, 4): "a quarter", (1, 5): "a fifth", (1, 6): "a sixth", (1, 8): "an eighth",
    (1, 10): "a tenth", (2, 3): "two thirds", (3, 4): "three quarters", (2, 5): "two fifths", (3, 5): "three fifths",
    (4, 5): "four fifths", (5, 6): "five sixths", (3, 8): "three eighths", (3, 10): "three tenths",
}  # fmt: skip
TOTAL, DIFFERENCE = "total", "difference"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of a problem: a given one, or the result of one operation.

    Attributes:
        owner: whose it is; empty for a total or difference that only the closing question names.
        item: what is counted (``pears``), or ``total`` / ``difference`` where ``owner`` is empty.
        value: the number itself, 1..10,000.
        op: one of ``+ - * /``; ``f`` for a fraction (operands x, p, q mean x/q*p); empty where the value is given.
        operands: ``n >= 0`` is a number written in the question, ``~i < 0`` is the quantity with index ``i``.
        sentence: what the question says about it; empty where the closing question says it.
    """

    owner: str
    item: str
    value: int
    op: str = ""
    operands: tuple[int, ...] = ()
    sentence: str = ""

    @property
    def parents(self) -> tuple[int, ...]:
        """Indices of the quantities that this one is computed from."""
        return tuple(~x for x in self.operands if x < 0)


@dataclass(slots=True)
class Graph:
    """The quantities behind one problem, parents before children, and the index that is asked for."""

    quantities: list[Quantity] = field(default_factory=list)
    target: int = -1
    question: str = ""

    def needed(self) -> list[int]:
        """Indices of the computed quantities that the answer depends on, in ascending order."""
        wanted = {self.target}
        for i in range(self.target, -1, -1):
            if i in wanted:
                wanted.update(self.quantities[i].parents)
        return [i for i in sorted(wanted) if self.quantities[i].op]

    def numbers(self, i: int) -> tuple[int, ...]:
        """The operands of quantity ``i`` as plain numbers."""
        return tuple(x if x >= 0 else self.quantities[~x].value for x in self.quantities[i].operands)

    def structure_hash(self) -> int:
        """A 64-bit hash of operations and numbers that the answer needs; names, items and wording play no part."""
        digests: dict[int, str] = {}
        for i in self.needed():
            op = self.quantities[i].op
            parts = [digests.get(~x, str(self.quantities[~x].value)) if x < 0 else str(x)
                     for x in self.quantities[i].operands]  # fmt: skip
            text = op + ",".join(sorted(parts) if op in "+*" else parts)
            digests[i] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return int(digests[self.target], 16)


class Builder:
    """Grows one random graph; ``None`` from a method means that its draw came out impossible."""

    def __init__(self, level: int, rng: random.Random) -> None:
        self.rng, self.level, self.graph = rng, level, Graph()
        self.owners = rng.sample(NAMES, min(9, level + rng.randint(2, 4)))
        containers = rng.sample(list(CONTAINERS), 1 + (level > 3))
        self.items = rng.sample(GOODS, 2 + (level > 2) + (level > 5)) + containers + [MONEY]
        self.taken: set[tuple[str, str]] = set()

    def add(self, owner: str, item: str, value: int, op: str, operands: tuple[int, ...], sentence: str) -> int | None:
        """Record a quantity and return its index; ``None`` if it is out of range or its name is taken."""
        if not 1 <= value <= LARGEST or (owner and (owner, item) in self.taken):
            return None
        self.taken.add((owner, item))
        self.graph.quantities.append(Quantity(owner, item, value, op, operands, sentence))
        return len(self.graph.quantities) - 1

    def free_pair(self, near: Quantity | None = None) -> tuple[str, str]:
        """An (owner, item) not used yet, mostly with the same item as ``near`` so that comparisons read naturally."""
        rng, main = self.rng, near.item if near else self.items[0]
        for _ in range(12):
            item = main if rng.random() < 0.85 else rng.choice(self.items)
            owner = near.owner if near and rng.random() < 0.05 else rng.choice(self.owners)
            if (owner, item) not in self.taken:
                return owner, item
        self.owners.append(rng.choice([name for name in NAMES if name not in self.owners]))
        return self.owners[-1], item

    def size(self) -> int:
        """A number as questions give them: mostly two digits, sometimes one or three."""
        low, high = self.rng.choices(((3, 20), (12, 80), (60, 400)), (18, 46, 36))[0]
        return self.rng.randint(low, high)

    def rate(self) -> int:
        """A number per piece: mostly one digit."""
        return self.rng.randint(2, 9) if self.rng.random() < 0.7 else self.rng.randint(11, 25)

    def given(self, multiple_of: int = 1, item: str | None = None, largest: int = LARGEST) -> int | None:
        """A quantity that the question states."""
        owner, drawn = self.free_pair()
        item = item or drawn
        value = max(1, min(self.size(), largest) // multiple_of) * multiple_of
        verb = self.rng.choice(("has", "owns"))
        return self.add(owner, item, value, "", (), f"{owner} {verb} {value} {item}.")

    def from_two_numbers(self) -> int | None:
        """A quantity computed from two numbers of its own sentence."""
        rng = self.rng
        owner, item = self.free_pair()
        kind = rng.randrange(3)
        if kind == 0:
            x, y = self.size(), self.size()
            verb = rng.choice(("found", "bought", "got"))
            return self.add(owner, item, x + y, "+", (x, y), f"{owner} had {x} {item} and then {verb} {y} more.")
        if kind == 1:
            x, y = sorted((self.size(), self.size()), reverse=True)
            verb = rng.choice(("lost", "sold", "gave away"))
            return self.add(owner, item, x - y, "-", (x, y), f"{owner} had {x} {item} and then {verb} {y} of them.")
        x, y = rng.randint(3, 20), rng.randint(3, 60)
        box = rng.choice([name for name in CONTAINERS if name != item])
        return self.add(owner, item, x * y, "*", (x, y), f"{owner} keeps {item} in {x} {box} of {y} each.")

    def compare(self, i: int) -> int | None:
        """A quantity of another owner or item compared with quantity ``i``."""
        rng, source = self.rng, self.graph.quantities[i]
        owner, item = self.free_pair(source)
        value = source.value
        if item == source.item:
            other = rng.choice((source.owner, f"{source.owner} does"))
        else:
            other = source.item if owner == source.owner else f"{source.owner} has {source.item}"
        verb = rng.choice(("has", "owns"))
        kind = rng.choices(("times", "more", "fewer", "fraction"), (30, 24, 24, 22))[0]
        if kind == "times":
            k = rng.choice((2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9)) if rng.random() < 0.8 else rng.randint(11, 25)
            word = "twice" if k == 2 else f"{k} times"
            return self.add(owner, item, value * k, "*", (~i, k), f"{owner} {verb} {word} as many {item} as {other}.")
        if kind == "fraction":
            options = [f for f in FRACTIONS if value % f[1] == 0]
            if not options:
                return None
            p, q = rng.choice(options)
            word = FRACTIONS[p, q] if rng.random() < 0.6 else f"{p}/{q}"
            text = f"{owner} {verb} {word} as many {item} as {other}."
            op, operands = ("/", (~i, q)) if p == 1 else ("f", (~i, p, q))
            return self.add(owner, item, value // q * p, op, operands, text)
        d = self.size() if kind == "more" else min(self.size(), max(1, value - 1))
        op, result = ("+", value + d) if kind == "more" else ("-", value - d)
        return self.add(owner, item, result, op, (~i, d), f"{owner} {verb} {d} {kind} {item} than {other}.")

    def convert(self, i: int) -> int | None:
        """What the same owner gets out of quantity ``i`` at a rate: contents, packs, money or goods."""
        rng, source = self.rng, self.graph.quantities[i]
        owner, value = source.owner, source.value
        if source.item in CONTAINERS:
            item = rng.choice([x for x in self.items if x not in CONTAINERS and x != MONEY])
            r = self.rate()
            text = rng.choice(("Each {box} of {a} holds {r} {i}.", "{a} puts {r} {i} into each {box}."))
            text = text.format(a=owner, r=r, i=item, box=CONTAINERS[source.item])
            return self.add(owner, item, value * r, "*", (~i, r), text)
        divisors = [r for r in range(2, 16) if value % r == 0 and value > r]
        if source.item == MONEY:
            item = rng.choice(self.items[:2])
            if not divisors:
                return None
            r = rng.choice(divisors)
            text = f"{owner} spends all the {MONEY} on {item} at {r} {MONEY} each."
            return self.add(owner, item, value // r, "/", (~i, r), text)
        if divisors and rng.random() < 0.5:
            r, box = rng.choice(divisors), rng.choice([x for x in self.items if x in CONTAINERS])
            return self.add(owner, box, value // r, "/", (~i, r), f"{owner} packs the {source.item} into {box} of {r}.")
        r = self.rate()
        text = f"{owner} sells the {source.item} for {r} {MONEY} each."
        return self.add(owner, MONEY, value * r, "*", (~i, r), text)

    def combine(self, parts: list[int], last: bool) -> int | None:
        """Sum, difference or product of computed quantities; the last one may be left to the closing question."""
        rng, all_q = self.rng, self.graph.quantities
        ask = last and rng.random() < 0.7
        owner, item = ("", TOTAL) if ask else self.free_pair(all_q[parts[0]])
        names = [f"{all_q[i].owner}'s {all_q[i].item}" for i in parts]
        first, second = parts[0], parts[1]
        difference = abs(all_q[first].value - all_q[second].value)
        if len(parts) == 2 and difference and rng.random() < 0.4:
            if all_q[first].value < all_q[second].value:
                first, second = second, first
            what, op, value = f"the difference between {names[0]} and {names[1]}", "-", difference
            operands = (~first, ~second)
            item = DIFFERENCE if ask else item
        else:
            joined = f"{', '.join(names[:-1])} and {names[-1]}"
            what, op, value = f"the total of {joined}", "+", sum(all_q[i].value for i in parts)
            operands = tuple(~i for i in parts)
        sentence = "" if ask else f"{owner} has as many {item} as {what}."
        if ask:
            self.graph.question = f"What is {what}?"
        return self.add(owner, item, value, op, operands, sentence)

    def step(self, sinks: list[int], left: int) -> int | None:
        """One more operation; keeps ``sinks`` (results nobody uses yet) few enough for ``left`` steps to join."""
        rng = self.rng
        used = [i for i, q in enumerate(self.graph.quantities) if i not in sinks]
        must_join = len(sinks) > left + 1
        draw = rng.random()
        if not sinks or (not must_join and len(sinks) <= left and draw < 0.02):
            parents: list[int] = []
            if rng.random() < 0.3:
                new = self.from_two_numbers()
            else:
                item = rng.choice([None, None, self.items[-2]])
                start = self.given(rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 10, 12)), item)
                new = None if start is None else self.derive(start)
        elif must_join or (len(sinks) > 1 and draw < 0.2):
            parents = rng.sample(sinks, 3 if len(sinks) > 2 and rng.random() < 0.3 else 2)
            new = self.combine(parents, left == 0)
        elif used and draw < 0.04:
            parents = [rng.choice(sinks)]
            new = self.combine([*parents, rng.choice(used)], left == 0)
        else:
            parents = [rng.choice(sinks)]
            new = self.derive(parents[0])
        if new is not None:
            sinks[:] = [i for i in sinks if i not in parents] + [new]
        return new

    def derive(self, i: int) -> int | None:
        """A quantity computed from quantity ``i`` alone."""
        return self.compare(i) if self.rng.random() < 0.75 else self.convert(i)

    def distract(self) -> None:
        """Up to three sentences that the answer does not need: other quantities or idle numbers."""
        rng = self.rng
        for _ in range(rng.choices((0, 1, 2, 3), (60, 30, 9, 1))[0]):
            count = len(self.graph.quantities)
            if rng.random() < 0.05 and self.graph.quantities[pick := rng.randrange(count)].owner:
                self.compare(pick)
            else:
                self.given()

    def build(self) -> Graph | None:
        """The finished graph, or ``None`` where a draw came out impossible."""
        sinks: list[int] = []
        for left in range(self.level - 1, -1, -1):
            if self.step(sinks, left) is None:
                return None
        graph = self.graph
        graph.target = sinks[0]
        asked = graph.quantities[graph.target]
        if len(sinks) != 1 or len(graph.needed()) != self.level:
            return None
        if not graph.question:
            graph.question = f"How many {asked.item} does {asked.owner} have?"
        self.distract()
        return graph
