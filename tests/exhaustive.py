"""Parameters that only ``make kernels`` runs: with all of them the suite would take twice as long."""

from typing import Any

import pytest


def rare(*values: Any) -> Any:
    """A set of parameters for the exhaustive run alone."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


GPUS = [rare(80), rare(89), 90]
"""Compute capabilities: those before Hopper compile from the same source, and differ in their limits alone."""
EARLIER = [80, rare(89)]
