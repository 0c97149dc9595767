"""What only the store can say."""

from __future__ import annotations

from spec.errors import StoreError


class LeaseLost(StoreError):
    """The job belongs to another worker now, or has ended; whatever the holder still measures is not saved."""


class NotFound(StoreError):
    """No run, job or answer of that name."""
