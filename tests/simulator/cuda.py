"""A GPU that is not there: PyTorch's and Triton's interfaces to CUDA, carried out on the processor.

It shows what a machine without a GPU could not show otherwise: tensors left in the wrong memory, operations that a
CUDA graph cannot record or that are recorded with a number of the host in them, memory read before it was written,
copies that overtake each other, programs of a kernel that count on an order. It says nothing about speed. Streams are
one stream, and bf16 and fp8 are what Triton's interpreter makes of them.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import Any

import torch

from tests.simulator import compiling, launches
from tests.simulator.graphs import Graph, empty_cache, end_allocate_to_pool, recording
from tests.simulator.memory import GPU, device_of, on_gpu
from tests.simulator.operations import Operations, Requests
from tests.simulator.waiting import WAITS, Capture

CAPABILITY = (9, 0)
NAME = "simulated GPU"
TOTAL = 8 * 2**30


class Stream:
    """All streams are one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = GPU

    def wait_stream(self, _: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """The host waits."""
        WAITS.note("stream", is_asked=True)


class Event:
    """A moment of the simulated GPU; moments are a millisecond apart, so that few calls are enough to be timed."""

    _now = 0

    def __init__(self, **_: Any) -> None:
        self._at = 0

    def record(self, _: Any = None) -> None:
        """Now."""
        Event._now += 1
        self._at = Event._now

    def synchronize(self) -> None:
        """The host waits."""
        WAITS.note("event", is_asked=True)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        return float(other._at - self._at)


class Generator(torch._C.Generator):
    """Random numbers are made on the processor."""

    def __new__(cls, _: Any = None) -> Generator:
        return super().__new__(cls)


def start(is_run: bool = True) -> None:
    """Simulate a GPU in this process, from here to its end.

    ``is_run``: kernels run, in Triton's interpreter; else they are compiled as they are launched, and do nothing.
    """
    import torch._dynamo  # reads PyTorch's functions by name as it is imported, so that comes first

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads of the loader would go by
    torch.Tensor.device = property(device_of)  # type: ignore[assignment,method-assign]
    torch.Tensor.is_cuda = property(on_gpu)  # type: ignore[assignment,method-assign]
    stream = Stream()
    properties = SimpleNamespace(
        name=NAME, total_memory=TOTAL, multi_processor_count=4 if is_run else 132, L2_cache_size=50 * 2**20,
        major=9, minor=0,
        uuid="simulated", warp_size=32, shared_memory_per_block_optin=227 * 1024,
    )  # fmt: skip

    def nothing(*_: Any, **__: Any) -> None:
        """What the simulated GPU need not do."""

    for name, value in {
        "_lazy_init": nothing,
        "init": nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "get_device_capability": lambda *_: CAPABILITY,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: NAME,
        "mem_get_info": lambda *_: (TOTAL // 2, TOTAL),
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 1,
        "max_memory_allocated": lambda *_: 1,
        "reset_peak_memory_stats": nothing,
        "empty_cache": empty_cache,
        "set_sync_debug_mode": lambda mode: setattr(Capture, "allows", mode),
        "get_sync_debug_mode": lambda: Capture.allows,
        "synchronize": lambda *_: WAITS.note("synchronize", is_asked=True),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "set_stream": nothing,
        "stream": lambda *_: contextlib.nullcontext(),
        "device": lambda *_: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": recording,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: Capture.is_on,
    }.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_endAllocateToPool = end_allocate_to_pool
    torch.Generator = Generator  # type: ignore[misc]
    operations = Operations()
    operations.__enter__()
    Requests(operations).__enter__()
    (launches if is_run else compiling).install()
    _driver()


def _driver() -> None:
    """What the driver would tell."""
    from engine.measure import hardware

    gpu = {"name": NAME, "memory_gib": TOTAL // 2**30, "driver": "0", "capability": CAPABILITY}
    hardware.gpus = lambda: (gpu,)  # type: ignore[assignment]
    hardware.capabilities = lambda: [CAPABILITY]
