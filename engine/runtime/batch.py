"""One step's work as flat arrays: every token of every sequence is one row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from engine.runtime.blocks import BLOCK
from engine.runtime.forest import Forest


@dataclass(frozen=True, eq=False)
class Batch:
    """``m`` tokens of the sequences in the batch, int32 throughout.

    Attributes:
        tokens, positions: [m].
        slots: [m], each token's row of the ``tables`` [slots, width], which name the blocks of its sequence.
        wanted: rows whose output is asked for, ascending.
    """

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    tables: np.ndarray
    wanted: np.ndarray

    @property
    def m(self) -> int:
        """How many tokens."""
        return len(self.tokens)

    def on(self, device: torch.device) -> Ragged:
        """The same for a model that runs through PyTorch."""
        return Ragged.of(self, device)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tokens of a step that one kernel of Triton attends, int32.

    Attributes:
        rows: of the step.
        tables: [sequences, width]; lengths: [sequences], with the new tokens.
        starts: [sequences + 1] of each one's tokens, counted from the first of ``rows``; None where all have as many.
        new: how many each has, where all have as many, else 0.
        forest: where sequences read keys together, for one new token each.
    """

    rows: slice
    tables: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor | None = None
    new: int = 0
    forest: Forest | None = None


class Ragged:
    """A batch as tensors on the device, made once for all layers of a step.

    ``query`` [sequences, most tokens of one] is the row of each sequence's tokens, the last one repeated to fill up;
    ``back`` [m] finds each row again in that layout, flattened. The first ``singles`` sequences feed one token each;
    ``forest``: where those read keys together.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        slots, first, counts = np.unique(batch.slots, return_index=True, return_counts=True)
        # Rows of one sequence stand together, in order.
        order = np.argsort(first, kind="stable")
        slots, first, counts = slots[order], first[order], counts[order]
        most = int(counts.max())
        steps = np.minimum(np.arange(most)[None, :], counts[:, None] - 1)
        query = first[:, None] + steps
        back = np.empty(batch.m, dtype=np.int64)
        inside = np.arange(most)[None, :] < counts[:, None]
        back[query[inside]] = np.flatnonzero(inside)
        length = int(batch.positions.max()) + 1
        tables = batch.tables[slots, : -(-length // BLOCK)]
        own = batch.tables[batch.slots, batch.positions // BLOCK]
        self.query = _tensor(query, device)
        self.back = _tensor(back, device)
        self.positions = _tensor(batch.positions, device)
        self.query_positions = self.positions[self.query]
        self.tables = _tensor(tables, device)
        self.blocks = _tensor(own, device)
        self.places = _tensor(batch.positions % BLOCK, device)
        self._counts = counts
        self.singles = int(np.argmax(np.append(counts, 2) > 1))
        self.forest: Forest | None = None
        self._tiles: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Ragged:
        """From a batch."""
        return cls(batch, device)

    @cached_property
    def pieces(self) -> tuple[Pieces, ...]:
        """The same for the Triton kernels: sequences that write stand first and are attended as in a step of their own.

        Their keys are then split over the GPU, and those that are shared are read once. In tiles of the kernel for
        prompts one program would read all keys of such a sequence, for a single row.
        """
        tables = self.tables.int()
        lengths = self.query_positions.max(1).values.int() + 1
        n, found = self.singles, list[Pieces]()
        if n:
            found.append(Pieces(slice(0, n), tables[:n], lengths[:n], new=1, forest=self.forest))
        if n < len(tables):
            counts = self._counts[n:]
            starts = _tensor(np.concatenate([[0], np.cumsum(counts)]), tables.device).int()
            rows = slice(n, n + int(counts.sum()))
            found.append(Pieces(rows, tables[n:], lengths[n:], starts))
        return tuple(found)

    def tiles(self, group: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """How ``kernels.prefill`` cuts the last of the ``pieces``, for so many query heads to a key/value head."""
        from kernels.prefill.triton import tiles

        key = group, rows
        if key not in self._tiles:
            device = self.tables.device
            made = tiles(self._counts[self.singles :].tolist(), group, rows)
            self._tiles[key] = tuple(torch.from_numpy(a).to(device, non_blocking=True) for a in made)  # type: ignore[assignment]
        return self._tiles[key]

    @cached_property
    def key_positions(self) -> torch.Tensor:
        """[positions] of the gathered tables."""
        return torch.arange(self.tables.shape[1] * BLOCK, device=self.tables.device)


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)
