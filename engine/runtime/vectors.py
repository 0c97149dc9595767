"""Which product with a single row is the fastest on this GPU: PyTorch's, or our kernel with one of its tiles.

A sequence that writes alone makes each layer multiply a vector, which is a matter of the weight's bytes. How near a
kernel comes to the rate of the memory differs between GPUs, libraries and shapes of matrices, so it is measured, on
the model's own weights: those of all layers in turn, lest they lie in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from engine.measure.timing import time_calls

BUDGET_S = 0.02  # for each way and shape
FASTER = 0.97  # of PyTorch's time, from which on ours is taken


class Plain(Protocol):
    """A product with a weight in half precision; ``rows``: of the weight to a program of our kernel, 0 for PyTorch."""

    rows: int

    @property
    def weight(self) -> torch.Tensor:
        """[n, k]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [m, k] -> [m, n]."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was found: for each shape of a weight the rows, 0 for PyTorch, and its seconds as a share of PyTorch's."""

    rows: dict[tuple[int, int], int] = field(default_factory=dict)
    shares: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def ours(self) -> int:
        """For how many shapes our kernel runs."""
        return sum(rows > 0 for rows in self.rows.values())

    def __str__(self) -> str:
        ours = ", ".join(f"{n} x {k} by {rows}" for (n, k), rows in self.rows.items() if rows)
        return f"single rows by our kernel ({ours})" if ours else "single rows by PyTorch"


def choose(products: Sequence[Plain], device: torch.device) -> Chosen:
    """Time the ways on a GPU and set ``rows`` of all products. What cannot run there is no way."""
    from kernels.linear.dense import ROWS

    chosen, shapes = Chosen(), dict[tuple[int, int], list[Plain]]()
    for product in products:
        shapes.setdefault((product.weight.shape[0], product.weight.shape[1]), []).append(product)
    for shape, alike in shapes.items():
        x = torch.ones(1, shape[1], dtype=alike[0].weight.dtype, device=device)
        calls = [functools.partial(product, x) for product in alike]
        seconds = {}
        for rows in (0, *ROWS):
            _set(alike, rows)
            try:
                seconds[rows] = time_calls(calls, device, BUDGET_S).median_s
            except Exception:
                if rows == 0:
                    raise
                continue  # PyTorch's product serves, whatever Triton, its compiler or the memory lack
        best = min(seconds, key=lambda rows: seconds[rows])
        _set(alike, best if seconds[best] < FASTER * seconds[0] else 0)
        chosen.rows[shape], chosen.shares[shape] = alike[0].rows, seconds[alike[0].rows] / seconds[0]
    return chosen


def _set(products: Sequence[Plain], rows: int) -> None:
    for product in products:
        product.rows = rows
