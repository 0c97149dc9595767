"""When the host waits for the simulated GPU, and what must not have changed until then."""

from __future__ import annotations

from collections import Counter

import torch

NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
NOT_ALLOWED = "called a synchronizing CUDA operation"


class Capture:
    """Whether a CUDA graph is being recorded, and whether something that cannot be recorded has spoilt it.

    ``is_stuck``: the allocator believes that it is still being recorded; ``spoils_random``: so does the generator of
    random numbers. ``allows``: what ``set_sync_debug_mode`` says.
    """

    is_on = False
    is_broken = False
    is_stuck = False
    spoils_random = False
    allows = "default"


class Waits(Counter[str]):
    """How often the host waited, by what made it wait. ``pending``: copies from page-locked memory that the GPU may
    not have made yet, with what they must find there."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(self, what: str, is_asked: bool = False) -> None:
        """The host waits: refused while a graph is recorded. By now all copies are made, of what lies there now.

        ``is_asked``: the program says that it waits; else an operation does so by the way.
        """
        if Capture.is_on:
            Capture.is_broken = True
            raise RuntimeError(NOT_PERMITTED)
        if Capture.allows == "error" and not is_asked:
            raise RuntimeError(NOT_ALLOWED)
        self[what] += 1
        pending, self.pending = self.pending, []
        for source, then in pending:
            if not torch.equal(source.view(torch.uint8), then.view(torch.uint8)):
                raise AssertionError("page-locked memory was written again before the GPU had copied it")

    def begin(self, source: torch.Tensor) -> None:
        """A copy from page-locked memory is asked for, and nobody waits for it."""
        self.pending.append((source, source.clone()))


WAITS = Waits()
