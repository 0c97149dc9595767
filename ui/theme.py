"""Colours and marks of every chart: the Okabe-Ito palette for categories, and a shape that repeats each colour's job.

A figure names colours by role (``@ink``, ``@c0``); the browser puts in the values of the theme it shows, so that one
figure serves light and dark and follows a change of theme without a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable

INK, MUTED, GRID, PAPER, PALE, GOOD, BAD = "@ink", "@muted", "@grid", "@paper", "@pale", "@good", "@bad"

LIGHT = {
    "ink": "#1B2430",
    "muted": "#55606E",
    "grid": "#E4E8ED",
    "paper": "#FFFFFF",
    "pale": "#AEB7C2",
    "good": "#009E73",
    "bad": "#D55E00",
    "card": "#FFFFFF",
    "c0": "#0072B2",
    "c1": "#D55E00",
    "c2": "#009E73",
    "c3": "#CC79A7",
    "c4": "#E69F00",
    "c5": "#56B4E9",
    "c6": "#1B2430",
}
DARK = {
    "ink": "#E4E9EF",
    "muted": "#9FABB8",
    "grid": "#2A333D",
    "paper": "#11161C",
    "pale": "#5A6673",
    "good": "#2FBF95",
    "bad": "#F0803C",
    "card": "#1A2129",
    "c0": "#56B4E9",
    "c1": "#F0803C",
    "c2": "#2FBF95",
    "c3": "#CC79A7",
    "c4": "#E69F00",
    "c5": "#3D94D1",
    "c6": "#E4E9EF",
}
CATEGORIES = 7

# One symbol for each strategy family; families that are not named here take the spare ones in order of appearance.
SYMBOLS = {
    "greedy": "circle",
    "sample": "diamond",
    "majority": "square",
    "weighted": "triangle-up",
    "best-of-n": "star",
}
SPARE_SYMBOLS = ("pentagon", "hexagon", "cross", "x", "triangle-down", "hourglass", "bowtie")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour role for each name, in sorted order so that a name keeps its colour; muted after the seventh."""
    return {n: f"@c{i}" if i < CATEGORIES else MUTED for i, n in enumerate(sorted(set(names)))}


def symbols(families: Iterable[str]) -> dict[str, str]:
    """A marker symbol for each strategy family."""
    found = sorted(set(families))
    spare = [f for f in found if f not in SYMBOLS]
    return {f: SYMBOLS[f] if f in SYMBOLS else SPARE_SYMBOLS[spare.index(f) % len(SPARE_SYMBOLS)] for f in found}
