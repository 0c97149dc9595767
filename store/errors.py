"""What only the store can say."""

from __future__ import annotations

from spec.errors import StoreError, shorten


class LeaseLost(StoreError):
    """The job belongs to another worker now, or has ended; whatever the holder still measures is not saved."""


class NotFound(StoreError):
    """No run or job of that name."""


def no_run(run_id: object) -> NotFound:
    """The error for a run id that is not there."""
    return NotFound(f"There is no run {shorten(run_id)} here; `python cli.py runs list` shows those there are.")
