"""Launches on the simulated GPU go through Triton's own compiler, as on a real one, and end there.

What Triton specialises a kernel by - which numbers are multiples of 16, which are 1 - is taken from the arguments of
the launch itself. So whatever a program launches is known to compile before it has seen a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.simulator.graphs import tensors
from tests.simulator.memory import on_gpu

SHARED_BYTES = 227 * 1024
"""Shared memory that a program may have."""
MADE: dict[int, tuple[str, Any, str]] = {}
"""By the identity of what Triton made: kernel, what was made, the arguments of the first launch in words."""
FAILED: dict[str, str] = {}
"""By kernel and arguments: why it does not compile."""


def is_installed() -> bool:
    """Whether launches end here in this process."""
    from triton.runtime.jit import JITFunction

    return JITFunction.run.__module__ == __name__


def install() -> None:
    """Put itself between a launch and the driver."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", 90, 32)
    driver.set_active(
        SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 0, get_current_target=lambda: target)
    )
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if not all(on_gpu(t) for t in tensors((args, kwargs))):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        name, words = f"{self.module}.{self.__name__}", _words(self.arg_names, args, kwargs)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            try:
                made = original(self, *args, grid=grid, warmup=True, **kwargs)
            except Exception as error:
                FAILED[f"{name}({words})"] = f"{type(error).__name__}: {error}"
                raise
        MADE.setdefault(id(made), (name, made, words))

    JITFunction.run = run


def _words(names: list[str], args: Any, kwargs: Any) -> str:
    given = dict(zip(names, args, strict=False)) | kwargs
    return ", ".join(f"{n}={_word(v)}" for n, v in given.items())


def _word(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else str(value)
