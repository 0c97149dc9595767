"""What goes into a back end and what comes out: one row for each sequence to continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.decoding.requests import Choices, Draft, Exit, Extension
from engine.sampling import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence to continue; equal to nothing but itself.

    Attributes:
        context: the tokens it reads: prompt and what was generated before.
        limit: most tokens to generate.
        sampling: None for greedy.
        key: of its stream of random numbers, read from position ``start`` on.
        stop: strings that end it.
        order: rows with a smaller order go first.
        peek: so many likely next tokens are wanted, and nothing is to be generated; 0 for a row that grows.
        replay: the model's own choice at each of the context's last ``replay`` tokens is wanted; 0 for none.
        model: another model than the run's; None for that one.
    """

    context: tuple[int, ...]
    limit: int
    sampling: Sampling | None
    key: int
    start: int
    stop: tuple[str, ...]
    order: tuple[int, ...] = ()
    peek: int = 0
    replay: int = 0
    logprobs: bool = False
    draft: Draft | None = None
    exit: Exit | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Grown:
    """What became of a row.

    Attributes:
        started_s: when work on it started; ``token_s``: when each token was on the host (``measure.time.now``).
        spans: positions the model processed for it, as (first, end) runs; a later run reads what was lost in between.
        cached: how many of the context's tokens were found computed.
        choices: of a row that peeks; ``replayed``: of a row that replays.
        drafted, accepted, passes: tokens proposed and taken over, and the model's passes, of a drafted row.
        draft_spans: positions that the draft model processed for it.
        error: why nothing became of it, in one sentence; its problem ends with that.
    """

    extension: Extension
    started_s: float
    token_s: Sequence[float]
    spans: Sequence[tuple[int, int]] = ()
    cached: int = 0
    choices: Choices = ()
    replayed: tuple[int, ...] = ()
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    draft_spans: Sequence[tuple[int, int]] = ()
    error: str | None = None


OnStep = Callable[[int], None]
"""Called after every decoding step with the number of tokens it added; may raise Cancelled."""


class Backend(Protocol):
    """Executes rows. ``kv_bytes_peak`` is the largest KV cache seen, None where it cannot be told.

    ``goes_on``: it works on while nobody steps it, so the clock must not be stopped for what is done in between.
    """

    goes_on: bool

    @property
    def kv_bytes_peak(self) -> int | None:
        """See above."""
        ...

    @property
    def attention(self) -> str:
        """What computes attention, for the record."""
        ...

    @property
    def wanting(self) -> bool:
        """Whether it could start more rows at once than it was given."""
        ...

    @property
    def busy(self) -> bool:
        """Whether it holds rows that are not finished."""
        ...

    def submit(self, rows: Sequence[Row]) -> None:
        """Take rows over; they start as places become free, in their order."""
        ...

    def step(self, on_step: OnStep) -> list[tuple[Row, Grown]]:
        """Work for a while and return the rows that ended. Raises DoesNotFitError and what ``on_step`` raises."""
        ...

    def forget(self) -> None:
        """Forget what was computed, and the peak: what follows starts cold."""
        ...

    def close(self) -> None:
        """Give memory back and leave the models as they were found."""
        ...
