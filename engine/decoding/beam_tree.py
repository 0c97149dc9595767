"""The tree of a token beam search, with one step for each stretch of tokens that no other beam leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from spec.choices import Fate
from spec.results import Node


class Recorded(Protocol):
    """What is recorded: a dataclass with its tokens, and the record of the token before the last one."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens, the newest last."""
        ...

    @property
    def record(self) -> int | None:
        """Index of a record; None at the root."""
        ...


B = TypeVar("B", bound=Recorded)


@dataclass(frozen=True, slots=True)
class End:
    """What the tree says of a beam that ended a solution: the whole text, its fate and figures."""

    text: str
    fate: Fate
    note: str


class BeamTree:
    """Every token that was ever in a beam.

    >>> tree = BeamTree()
    >>> beam = tree.record(beam)  # now its record is that of its last token
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._children: list[list[int]] = []
        self._roots: list[int] = []

    def record(self, beam: B) -> B:
        """``beam`` with its last token recorded behind the record that it had."""
        siblings = self._roots if beam.record is None else self._children[beam.record]
        siblings.append(len(self._tokens))
        self._tokens.append(beam.ids[-1])
        self._children.append([])
        return replace(beam, record=siblings[-1])  # type: ignore[type-var]

    def nodes(
        self, decode: Callable[[tuple[int, ...]], str], ends: Mapping[int | None, End]
    ) -> tuple[tuple[Node, ...], dict[int | None, int]]:
        """The steps, and the step in which each record of ``ends`` lies; a stretch that leads nowhere is pruned."""
        nodes: list[Node] = []
        places: dict[int | None, int] = {}
        todo: list[tuple[int, int | None, tuple[int, ...], str]] = [(r, None, (), "") for r in reversed(self._roots)]
        while todo:
            first, parent, ids, before = todo.pop()
            last, tokens = self._stretch(first)
            ids += tokens
            fate = Fate.EXPANDED if self._children[last] else Fate.PRUNED
            end = ends.get(last) or End(decode(ids), fate, "")
            depth = 1 if parent is None else nodes[parent].depth + 1
            text = end.text[len(before) :]
            nodes.append(Node(parent, depth, text, len(tokens), 0.0, fate=end.fate, note=end.note))
            places[last] = len(nodes) - 1
            todo += [(child, len(nodes) - 1, ids, before + text) for child in reversed(self._children[last])]
        return tuple(nodes), places

    def _stretch(self, first: int) -> tuple[int, tuple[int, ...]]:
        """The records from ``first`` to the next fork or end: the last of them, and their tokens."""
        last, tokens = first, [self._tokens[first]]
        while len(self._children[last]) == 1:
            last = self._children[last][0]
            tokens.append(self._tokens[last])
        return last, tuple(tokens)
