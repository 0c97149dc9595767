"""The record of a search: every step that was made, what it was worth, and what became of it."""

from __future__ import annotations

from dataclasses import replace

from engine.decoding.requests import Extension
from spec.choices import Fate
from spec.results import Node


class Tree:
    """Steps in the order they were made, so that parents come before their children.

    >>> tree = Tree()
    >>> first = tree.add(None, Extension("2+3=5", (7, 8), "stop", "\\n", "2+3=5\\n"), "2+3=5\\n", Fate.EXPANDED)
    >>> tree.note(first, "rank 1 of 4")
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []

    def add(self, parent: int | None, made: Extension, text: str, fate: Fate) -> int:
        """Write down a step of ``text`` behind ``parent`` (None: a first step); returns its index."""
        depth = 1 if parent is None else self._nodes[parent].depth + 1
        self._nodes.append(Node(parent, depth, text, len(made.ids), made.seconds, fate=fate))
        return len(self._nodes) - 1

    def score(self, index: int, score: float | None) -> None:
        """What the step was found worth."""
        self._nodes[index] = replace(self._nodes[index], score=score)

    def note(self, index: int, note: str, fate: Fate | None = None) -> None:
        """The figures of a decision on a step, and its fate where that changes."""
        node = self._nodes[index]
        self._nodes[index] = replace(node, note=note, fate=node.fate if fate is None else fate)

    def fate(self, index: int, fate: Fate) -> None:
        """What became of a step."""
        self._nodes[index] = replace(self._nodes[index], fate=fate)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All steps."""
        return tuple(self._nodes)
