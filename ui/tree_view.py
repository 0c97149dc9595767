"""What the page Tree shows, as a value that fits in a link: a problem of a run, a step of its tree, and a second run.

>>> TreeView.from_params({"run": ["0123456789ab"], "problem": ["test-3"], "node": ["7"]})[0].node
7
"""

from __future__ import annotations

from dataclasses import dataclass

from spec.errors import shorten
from ui.view import RUN_ID, Params, one_param

MAX_NODE = 10_000_000


@dataclass(frozen=True, slots=True)
class TreeView:
    """``run``, ``problem`` and ``repeat`` name the answer, ``node`` the step that is read; None chooses by itself.

    ``other`` is a second run that was asked the same, ``other_node`` the step that is read there.
    """

    run: str | None = None
    problem: str | None = None
    repeat: int = 0
    node: int | None = None
    other: str | None = None
    other_node: int | None = None

    def to_params(self) -> dict[str, list[str]]:
        """The query parameters that bring this view back."""
        named = {
            "run": self.run,
            "problem": self.problem,
            "repeat": self.repeat or None,
            "node": self.node,
            "with": self.other,
            "node2": self.other_node,
        }
        return {name: [str(value)] for name, value in named.items() if value is not None}

    @classmethod
    def from_params(cls, params: Params) -> tuple[TreeView, list[str]]:
        """The view of a link, and a sentence for each part of it that makes no sense."""
        complaints: list[str] = []

        def number(name: str) -> int | None:
            text = one_param(params, name)
            if text is None or (text.isdecimal() and int(text) <= MAX_NODE):
                return None if text is None else int(text)
            complaints.append(f"The link's {name} is {shorten(text)}, which is no number of one.")
            return None

        def run(name: str) -> str | None:
            text = one_param(params, name)
            if text is None or RUN_ID.fullmatch(text):
                return text
            complaints.append(f"{shorten(text)} is no run: a run's id has twelve hexadecimal digits.")
            return None

        view = cls(
            run("run"),
            one_param(params, "problem"),
            number("repeat") or 0,
            number("node"),
            run("with"),
            number("node2"),
        )
        return view, complaints
