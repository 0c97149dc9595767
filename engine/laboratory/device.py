"""What a side must know of a device to say whether it can run there. Imports no torch: the web process asks too."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from engine.devices import gpu_index
from engine.measure.hardware import cores, cpu_name, gpus, package_version

COMPILERS = ("g++", "c++", "clang++")


@dataclass(frozen=True, slots=True)
class Device:
    """``cpu`` or ``cuda:N``.

    Attributes:
        title: its name for people.
        capability: compute capability of a GPU; None for a processor.
        triton, native: why there are no Triton kernels, no C++ kernels; None where there are.
    """

    name: str
    title: str
    capability: tuple[int, int] | None = None
    triton: str | None = None
    native: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.capability is not None


def look(wanted: str = "auto") -> Device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means here; SpecError where there is no such GPU."""
    found = capabilities()
    index = gpu_index(wanted, len(found))
    triton = None if importlib.util.find_spec("triton") else "Triton is not installed"
    if index is None:
        return Device("cpu", f"{cpu_name()}, {cores()} cores", None, triton, _native())
    return Device(f"cuda:{index}", str(gpus()[index]["name"]), found[index], triton, _native())


def _native() -> str | None:
    """As ``kernels.native.build`` finds it, which imports torch."""
    if os.environ.get("ISOQUANT_NATIVE", "1") == "0":
        return "native kernels are switched off by ISOQUANT_NATIVE=0"
    wanted = os.environ.get("CXX")
    names: Sequence[str] = (wanted,) if wanted else COMPILERS
    return None if any(shutil.which(n) for n in names) else f"there is no C++ compiler ({', '.join(names)})"


def capabilities() -> list[tuple[int, int]]:
    """Compute capability of each GPU that torch could use; none where torch is built for processors."""
    if "+cpu" in (package_version("torch") or "+cpu") or not gpus():
        return []
    import pynvml  # gpus() has started it

    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(len(gpus()))]
    return [tuple(pynvml.nvmlDeviceGetCudaComputeCapability(h)) for h in handles]
