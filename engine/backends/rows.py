"""What goes into a batch and what comes out: shared by all back ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.decoding.requests import Extension
from engine.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to continue.

    Attributes:
        context: the tokens it reads: prompt and what was generated before.
        limit: most tokens to generate.
        sampling: None for greedy.
        key: of its stream of random numbers, read from position ``start`` on.
        stop: strings that end it.
    """

    context: tuple[int, ...]
    limit: int
    sampling: Sampling | None
    key: int
    start: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grown:
    """What a row grew by, when its batch started, and when each token was on the host (``measure.time.now``)."""

    extension: Extension
    started_s: float
    token_s: Sequence[float]


OnStep = Callable[[int], None]
"""Called after every decoding step with the number of tokens it added; may raise Cancelled."""


class Backend(Protocol):
    """Executes batches. ``kv_bytes_peak`` is the largest KV cache seen, None where it cannot be told."""

    kv_bytes_peak: int | None

    def extend(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        """Continue all rows as one batch; raises DoesNotFitError and what ``on_step`` raises."""
        ...
