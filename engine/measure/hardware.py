"""The machine and the software a figure was measured with; points of different hardware never share a frontier.

Reads files and the driver only: the web process calls it, and it must not import torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from kernels.dispatch import Machine
from kernels.native import build
from spec.run_spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "triton", "pysqlite3")


@functools.cache
def fingerprint() -> dict[str, Any]:
    """Plain JSON: ``hardware_id``, ``hardware_name``, processor, memory, GPUs, versions, commit.

    ``hardware_id``: 12 hex digits over processor, cores, memory and GPUs: what a measurement depends on besides the
    software, which is listed but not part of the id.
    """
    hardware = {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "gpus": [{"name": g["name"], "memory_gib": g["memory_gib"]} for g in gpus()],
    }
    text = json.dumps(hardware, sort_keys=True, separators=(",", ":"))
    driver = next((g["driver"] for g in gpus()), None)
    return {
        "hardware_id": hashlib.sha256(text.encode()).hexdigest()[:12],
        "hardware_name": _name(hardware),
        **hardware,
        "gpu_driver": driver,
        "machine": platform.machine(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        "commit": commit(),
    }


def fingerprint_of(spec: RunSpec) -> dict[str, Any]:
    """The fingerprint of what executes a run: this machine's, or that of the server it is put to.

    A server is told apart by its address alone. Where a reward model scores here beside it, this machine has a part in
    every figure and in the id.
    """
    here = fingerprint()
    if spec.runtime.server is None:
        return here
    name, key = f"server {spec.runtime.server}", spec.runtime.server
    if spec.strategy.reward_name is not None:
        name, key = f"{name}, scores: {here['hardware_name']}", f"{key} {here['hardware_id']}"
    unknown = dict.fromkeys(("cpu", "cores", "memory_gib", "gpu_driver", "machine", "os")) | {"gpus": []}
    hardware_id = hashlib.sha256(key.encode()).hexdigest()[:12]
    return here | unknown | {"hardware_id": hardware_id, "hardware_name": name, "asked_from": here["hardware_name"]}


def _name(hardware: dict[str, Any]) -> str:
    if hardware["gpus"]:
        names = [g["name"] for g in hardware["gpus"]]
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    return f"{hardware['cpu']}, {hardware['cores']} cores"


def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass  # not Linux: the next line is what the platform knows
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def gpus() -> tuple[dict[str, Any], ...]:
    """Name, memory, driver and compute capability of every NVIDIA GPU the driver shows; empty without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver library, no GPU: pynvml has an error class for each
        return ()
    driver = _text(pynvml.nvmlSystemGetDriverVersion())
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name = _text(pynvml.nvmlDeviceGetName(handle))
        capability = tuple(map(int, pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
        gib = round(memory.total / 2**30)
        found.append({"name": name, "memory_gib": gib, "driver": driver, "capability": capability})
    return tuple(found)


def machine(device: str) -> Machine:
    """What kernels would find on ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; without torch, so as the driver sees it."""
    found = capabilities()
    index = None if device == "cpu" or not found else int(device.partition(":")[2] or 0)
    return machine_with(None if index is None or index >= len(found) else found[index])


def machine_with(capability: tuple[int, int] | None) -> Machine:
    """This machine, for a run on a GPU of that compute capability, or on the processor."""
    return Machine(capability, *_software())


def capabilities() -> list[tuple[int, int]]:
    """Compute capability of each GPU that torch could use; none where torch is built for processors."""
    built = package_version("torch") or "+cpu"
    return [] if "+cpu" in built else [g["capability"] for g in gpus()]


@functools.cache
def _software() -> tuple[str | None, str | None]:
    """Version of Triton, and why no C++ kernels can be compiled: a form asks for each of its words."""
    return package_version("triton"), build.compiler_reason()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def package_version(name: str) -> str | None:
    """Installed version of a distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Git commit of this program, with ``+`` where files differ from it; None outside a repository."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def ceilings_key() -> str:
    """The name of the setting that holds this machine's measured ceilings."""
    return f"ceilings:{fingerprint()['hardware_id']}"
