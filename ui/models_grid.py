"""What a record says of each matrix, as a grid: kinds of matrix down, the parent's layers across."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.artifacts import Artifact
from ui.models_rows import number

HEAD = "head"
ERROR, AT_4, AT_8, BITS, ZEROS, RANK = "Error", "Loss at 4 bits", "Loss at 8 bits", "Bits", "Zeros", "Rank"
_LAYER = re.compile(r"(?:^|.*?\.)(\d+)\.(.+)", re.DOTALL)
_NUMBER = re.compile(r"\d+")
# The last word of a module's name -> how people call the matrix.
SHORT = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "qkv_proj": "q, k, v",
    "out_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate, up",
    "query_key_value": "q, k, v",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
    "c_attn": "q, k, v",
    "fc1": "up",
    "fc2": "down",
    "c_fc": "up",
    "gate": "router",
}
ORDER = ("q, k, v", "q", "k", "v", "o", "gate, up", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Grid:
    """Values of matrices: ``cells[kind][column]``, None where the record has none; ``head`` of the output layer.

    ``layers``: the parent's number of each column. ``changed``: cells of matrices whose size changed.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    cells: tuple[tuple[float | None, ...], ...]
    changed: tuple[tuple[bool, ...], ...]
    head: float | None

    @property
    def values(self) -> list[float]:
        """All numbers in it."""
        return [v for row in self.cells for v in row if v is not None] + ([] if self.head is None else [self.head])


def grids(artifact: Artifact) -> dict[str, Grid]:
    """Every grid that applies, the one that says most first."""
    facts, found = artifact.facts, {}
    sensitivity = _mapping(facts.get("sensitivity"))
    by_bits = {b: {name: number(v, b) for name, v in sensitivity.items()} for b in ("4", "8")}
    errors = _mapping(artifact.errors.get("matrices"))
    sources: dict[str, Mapping[str, Any]] = {
        BITS: _mapping(facts.get("bits")),
        AT_4: by_bits["4"],
        AT_8: by_bits["8"],
        ZEROS: _mapping(facts.get("zeros")),
        RANK: _mapping(facts.get("ranks")),
        ERROR: errors,
    }
    kept = kept_layers(artifact)
    for name, values in sources.items():
        grid = _grid({k: number(values, k) for k in values}, kept)
        useful = bool(grid.values) and (name != ERROR or max(grid.values) > 0 or any(map(any, grid.changed)))
        if useful:
            found[name] = grid
    return found


def kept_layers(artifact: Artifact) -> tuple[int, ...]:
    """The parent's layer that each layer was; empty where the record does not say."""
    kept = artifact.facts.get("kept")
    whole = isinstance(kept, list) and all(isinstance(i, int) and 0 <= i < 100_000 for i in kept)
    return tuple(kept) if whole and kept else ()


def place(name: str) -> tuple[int | None, str]:
    """Layer and kind of a matrix: ``model.layers.3.self_attn.q_proj`` is (3, q); outside the layers it is the head.

    >>> place("model.layers.3.self_attn.q_proj"), place("head"), place("0.mlp.experts.7.up_proj")
    ((3, 'q'), (None, 'head'), (0, 'experts up'))
    """
    found = _LAYER.fullmatch(name)
    if found is None:
        return None, HEAD
    parts = found[2].split(".")
    last = SHORT.get(parts[-1])
    if parts[-1] in ("c_proj", "dense", "proj"):  # a name that both halves of a layer have
        last = "down" if "mlp" in parts else "o"
    word = last or " ".join(p for p in parts[-2:] if not _NUMBER.fullmatch(p))
    return int(found[1]), f"experts {word}" if "experts" in parts else word


def _grid(values: Mapping[str, float | None], kept: Sequence[int]) -> Grid:
    """Several matrices of one kind in a layer (experts) are one cell, their mean."""
    cells: dict[tuple[str, int], list[float | None]] = {}
    head: float | None = None
    for name, value in values.items():
        layer, kind = place(name)
        if layer is None:
            head = value
        else:
            cells.setdefault((kind, layer), []).append(value)
    seen = sorted({layer for _, layer in cells})
    kinds = sorted({kind for kind, _ in cells}, key=lambda k: (_rank(k), k))
    rows, changed = [], []
    for kind in kinds:
        some = [cells.get((kind, layer)) for layer in seen]
        there = [[v for v in one or [] if v is not None] for one in some]
        rows.append(tuple(sum(v) / len(v) if v else None for v in there))
        changed.append(tuple(one is not None and not v for one, v in zip(some, there, strict=True)))
    layers = tuple(kept[i] if i < len(kept) else i for i in seen)
    return Grid(tuple(kinds), layers, tuple(rows), tuple(changed), head)


def _rank(kind: str) -> int:
    word = kind.removeprefix("experts ")
    return ORDER.index(word) if word in ORDER else len(ORDER)


def _mapping(value: Any) -> Mapping[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}
