"""What works on this machine, what does not, and why. Looks and asks; calls no network by default.

It changes nothing, but for the C++ kernels, which are compiled for this machine where that was not done yet.

>>> {check.status for check in report()} <= {"ok", "warn", "fail"}
True
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine import refusals
from engine.catalog import list_models, list_rewards
from engine.measure import hardware, sensors
from engine.measure.energy import NoSource
from engine.measure.roofline import Roofline, calibrate
from engine.onnx import packages
from spec.choices import Attention, Fusion, Graphs, KvDtype
from spec.paths import expand

LOW_DISK_BYTES, NO_DISK_BYTES = 2 * 10**9, 2 * 10**8
LOW_MEMORY_BYTES = 2 * 10**9
_ASK_SQLITE = "from store.connection import check_library, sqlite_version; print(sqlite_version()); check_library()"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: what was looked at, how it stands, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    value: str
    advice: str = ""


def report(*, network: bool = False) -> list[Check]:
    """All checks. ``network``: also ask the model hub whether it can be reached."""
    home = expand(os.environ.get("ISOQUANT_HOME") or "data")
    return [
        check_python(),
        check_torch(),
        check_package("transformers", "fail"),
        check_kernels(),
        check_package("math-verify", "warn"),
        check_onnx(),
        check_native(),
        *check_devices(),
        *check_triton(),
        *check_choices(),
        *check_energy(),
        check_memory(),
        check_sqlite(),
        check_home(home),
        check_disk(home),
        *check_lab_models(),
        check_hub(network),
    ]


def ceilings() -> list[Roofline]:
    """Copy bandwidth and matrix rate of every device; up to a minute."""
    return [calibrate(device) for device in devices()]


def devices() -> list[str]:
    """``cpu`` and every CUDA device that torch can use; without torch, which has a check of its own, just ``cpu``."""
    try:
        import torch
    except (ImportError, OSError):
        return ["cpu"]
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python 3.11 or later."""
    text = ".".join(map(str, version))
    if version >= (3, 11):
        return Check("Python", "ok", f"{text}, {platform.machine()}")
    return Check("Python", "fail", text, "install Python 3.11 or later")


def check_torch() -> Check:
    """PyTorch imports."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"does not import ({type(error).__name__})", "run `make install`")
    return Check("torch", "ok", torch.__version__)


def check_package(name: str, missing: Literal["warn", "fail"]) -> Check:
    """A distribution is installed."""
    version = hardware.package_version(name)
    if version is not None:
        return Check(name, "ok", version)
    return Check(name, missing, "not installed", "run `pip install -r requirements.txt`")


def check_onnx() -> Check:
    """Models can be exported to ONNX and run by ONNX Runtime."""
    reason = refusals.backend_reason("onnxruntime")
    if reason is not None:
        return Check("ONNX Runtime", "warn", "not usable", f"{reason}; the back end onnxruntime needs it")
    found = (name for name in ("cpu", "cuda") if packages.device_reason(name) is None)
    return Check("ONNX Runtime", "ok", f"{hardware.package_version('onnxruntime')} on {', '.join(found)}")


def check_kernels(version: Callable[[str], str | None] = hardware.package_version) -> Check:
    """The distribution ``kernels`` is absent: with it and our folder of that name, no model would load."""
    found = version("kernels")
    if found is None:
        return Check("package kernels", "ok", "absent, as it must be")
    return Check("package kernels", "fail", found, "it breaks the loading of models here: `pip uninstall kernels`")


def check_devices() -> Iterator[Check]:
    """Processor, GPUs and their driver."""
    yield Check("processor", "ok", f"{hardware.cpu_name()}, {hardware.cores()} cores")
    seen = hardware.gpus()
    usable = len(devices()) - 1
    names = ", ".join(f"{g['name']} ({g['memory_gib']} GiB)" for g in seen)
    if not seen and not usable:
        yield Check("GPU", "warn", "none", "runs use the processor; large models will be slow or will not fit")
        return
    if not usable:
        yield Check("GPU", "warn", names, "torch cannot use it: install a CUDA build of torch that fits the driver")
    else:
        yield Check("GPU", "ok", names or f"{usable} that NVML does not list")
    if seen:
        yield Check("GPU driver", "ok", seen[0]["driver"])


def check_native() -> Check:
    """Our C++ kernels for processors: compiled, or why not."""
    try:
        from kernels.native import build
    except (ImportError, OSError):
        return Check("C++ kernels", "warn", "not asked", "they need torch, which has a check of its own")
    reason = build.reason()
    if reason is None:
        return Check("C++ kernels", "ok", "compiled for this machine")
    advice = "runs on the processor are several times slower without; install g++ or clang++"
    return Check("C++ kernels", "warn", reason, advice)


def check_triton(version: Callable[[str], str | None] = hardware.package_version) -> Iterator[Check]:
    """Our Triton kernels, where there is a GPU for them."""
    if len(devices()) == 1:
        return
    found = version("triton")
    if found is None:
        yield Check("Triton kernels", "warn", "Triton is not installed", "attention on the GPU is slower without it")
    else:
        yield Check("Triton kernels", "ok", f"Triton {found}")


def check_choices() -> Iterator[Check]:
    """What a run may choose for attention, fusion, CUDA graphs and KV cache, and why the rest cannot be chosen."""
    for field, words in (("attention", Attention), ("fusion", Fusion), ("graphs", Graphs), ("kv_cache", KvDtype)):
        why = {str(word): refusals.reason(field, word, "auto") for word in words}
        reasons = dict.fromkeys(reason for reason in why.values() if reason)
        missing = (f"{', '.join(w for w in why if why[w] == r)}: {r}" for r in reasons)
        able = ", ".join(word for word, reason in why.items() if reason is None)
        yield Check(refusals.NAMES[field], "ok", able, "; ".join(f"without {text}" for text in missing))


def check_energy() -> Iterator[Check]:
    """Where joules could come from, per device."""
    for device in devices():
        source = sensors.energy_source(device)
        name = f"energy of {device}"
        if not isinstance(source, NoSource):
            yield Check(name, "ok", source.method.words)
            continue
        detail = f" ({source.detail})" if source.detail else ""
        yield Check(name, "warn", "n/a", f"{source.reason.sentence}{detail}")


def check_memory() -> Check:
    """Main memory."""
    import psutil

    memory = psutil.virtual_memory()
    value = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if memory.available < LOW_MEMORY_BYTES:
        return Check("memory", "warn", value, "close other programs before you measure")
    return Check("memory", "ok", value)


def check_sqlite() -> Check:
    """The SQLite that the store opens its file with; asked in another process, for only the store may load it."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK_SQLITE], cwd=hardware.ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    version = done.stdout.strip() or "unknown"
    if done.returncode == 0:
        return Check("SQLite", "ok", version)
    reason = (done.stderr.strip().splitlines() or ["the store does not start"])[-1]
    return Check("SQLite", "fail", version, reason.partition("Error: ")[2] or reason)


def check_home(home: Path) -> Check:
    """The folder for measurements can be written; it is not created."""
    existing = _nearest(home)
    value = str(home)
    if not existing.is_dir():
        return Check("ISOQUANT_HOME", "fail", value, f"{existing} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError:
        return Check(
            "ISOQUANT_HOME", "fail", value, f"{existing} cannot be written; set ISOQUANT_HOME to another folder"
        )
    return Check("ISOQUANT_HOME", "ok", value if existing == home else f"{value} (created at the first run)")


def check_disk(home: Path) -> Check:
    """Free disk where measurements are kept."""
    free = shutil.disk_usage(_nearest(home)).free
    value = f"{free / 1e9:.1f} GB free"
    if free < NO_DISK_BYTES:
        return Check("disk", "fail", value, "free some space, or set ISOQUANT_HOME to another disk")
    if free < LOW_DISK_BYTES:
        return Check("disk", "warn", value, "little is left for measurements and models")
    return Check("disk", "ok", value)


def _nearest(path: Path) -> Path:
    """The path itself, or the closest parent that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def check_lab_models() -> Iterator[Check]:
    """The built-in models and the reward model."""
    for title, infos in (("lab models", [m for m in list_models() if m.kind == "lab"]), ("lab-prm", list_rewards())):
        there = [m.name for m in infos if m.available]
        missing = [m for m in infos if not m.available]
        if missing or not there:
            yield Check(title, "warn", ", ".join(there) or "none", " ".join(m.reason or "" for m in missing))
        else:
            yield Check(title, "ok", ", ".join(there))


def check_hub(network: bool) -> Check:
    """Whether models and data can be fetched; asked only if ``network``."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check(
            "model hub", "warn", "switched off", "HF_HUB_OFFLINE is set; only what is on this machine can be used"
        )
    if not network:
        return Check("model hub", "ok", "not asked; needed only for models and data named by hub id")
    try:
        from huggingface_hub import HfApi

        HfApi().dataset_info("openai/gsm8k", timeout=5)
    except Exception as error:  # the network's, the hub's and the proxy's errors have no base in common
        advice = "use models and data that are on this machine, or check the connection"
        return Check("model hub", "warn", f"not reached ({type(error).__name__})", advice)
    return Check("model hub", "ok", "reached")
