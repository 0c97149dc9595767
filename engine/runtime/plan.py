"""How sequences are laid into batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """``batch_size``: most sequences at once. ``budget``: most tokens in a step, where a prompt can be cut.

    ``static``: a batch is filled once and runs until its last sequence ends. ``kv_cache`` False computes every sequence
    anew for each token.
    """

    batch_size: int
    budget: int
    static: bool = False
    kv_cache: bool = True
