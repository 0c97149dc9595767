"""What a side must know of a device to say whether it can run there. Imports no torch: the web process asks too."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from engine.devices import gpu_index
from engine.measure.hardware import capabilities, cores, cpu_name, gpus
from kernels.native import build


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
    native = build.compiler_reason()
    triton = None if importlib.util.find_spec("triton") else "Triton is not installed"
    if index is None:
        return Device("cpu", f"{cpu_name()}, {cores()} cores", None, triton, native)
    return Device(f"cuda:{index}", str(gpus()[index]["name"]), found[index], triton, native)
