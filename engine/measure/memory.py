"""Memory: weights, the device allocator's peak, the engine process's resident set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.measure.poller import Poller

if TYPE_CHECKING:
    from torch import nn

SAMPLE_INTERVAL_S = 0.05
NO_ALLOCATOR = "the CPU has no device allocator; process_rss_bytes covers the whole process"


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes of one run.

    Attributes:
        peak_memory_bytes: device allocator peak since ``reset_peak``, the loaded weights included; None on the CPU.
        process_rss_bytes: largest resident set seen while sampling.
        weights_bytes: parameters and buffers, verifier included.
        kv_bytes_peak: largest KV cache held at once; None where the back end could not tell.
    """

    peak_memory_bytes: int | None
    process_rss_bytes: int | None
    weights_bytes: int | None = None
    kv_bytes_peak: int | None = None


def weights_bytes(*models: nn.Module) -> int:
    """Bytes of all parameters and buffers; what is shared (tied embeddings) is counted once."""
    seen: dict[tuple[str, int, int], int] = {}
    for model in models:
        for tensor in [*model.parameters(), *model.buffers()]:
            size = tensor.numel() * tensor.element_size()
            seen[str(tensor.device), tensor.data_ptr(), size] = size
    return sum(seen.values())


def reset_peak(device: str) -> None:
    """Forget the device allocator's peak; called once the run's models, and no others, are loaded."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int | None:
    """The device allocator's peak since ``reset_peak``; None on the CPU, which has no such allocator."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


class RssMeter:
    """Largest resident set of this process during its ``with`` block, sampled every 50 ms.

    Only the largest is kept, for what the meter holds is part of what it measures.
    """

    def __init__(self, interval_s: float = SAMPLE_INTERVAL_S) -> None:
        import psutil

        process = psutil.Process()
        self._poller = Poller(lambda: int(process.memory_info().rss), interval_s, merge=max)

    def __enter__(self) -> RssMeter:
        self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._poller.stop()

    @property
    def peak(self) -> int:
        """Bytes; readable once the block has begun."""
        return self._poller.samples[0][1]
