"""The device a run happens on: which one, how much memory is left, what its out-of-memory errors look like."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from spec.choices import Dtype
from spec.errors import DoesNotFitError, SpecError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


def pick_device(wanted: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device with its index; SpecError where there is no such GPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = gpu_index(wanted, count)
    return torch.device("cpu") if index is None else torch.device("cuda", index)


def gpu_index(wanted: str, count: int) -> int | None:
    """Which of ``count`` GPUs a device means, None for the processor; SpecError where there is no such GPU."""
    if wanted == "cpu" or (wanted == "auto" and not count):
        return None
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        have = (
            f"this machine has {count} GPU(s), cuda:0 to cuda:{count - 1}" if count else "this machine has no CUDA GPU"
        )
        raise SpecError(f"Device {wanted} is not there: {have}; choose auto or cpu.", field="runtime.device")
    return index


def pick_dtype(wanted: Dtype, saved: str | None, device: torch.device) -> Dtype:
    """``auto`` as the number format the model was saved in; SpecError where the GPU lacks it."""
    import torch

    dtype = Dtype(saved or "fp32") if wanted is Dtype.AUTO else wanted
    if dtype is Dtype.BF16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise SpecError(f"The {name} has no bf16; choose fp16 or fp32.", field="precision.weights")
    return dtype


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch type of a number format."""
    import torch

    return {Dtype.FP32: torch.float32, Dtype.BF16: torch.bfloat16, Dtype.FP16: torch.float16}[dtype]


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device; on the CPU within the container's limit, if it has one."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return main_memory_bytes()


def main_memory_bytes() -> int:
    """Main memory that can still be taken, within the container's limit, if it has one."""
    import psutil

    return min(psutil.virtual_memory().available, _container_bytes())


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one, which is where Triton launches, whatever device its arguments are on."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)


def release(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    import gc

    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the CPU."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def check_fits(what: str, needed: int, device: torch.device, advice: str) -> None:
    """Raise DoesNotFitError unless ``needed`` bytes are available on the device."""
    if needed > (available := available_bytes(device)):
        raise does_not_fit(what, needed, available, device, advice)


def does_not_fit(
    what: str, needed: int | None, available: int | None, device: torch.device, advice: str
) -> DoesNotFitError:
    """The error that says what does not fit where and what to do about it."""
    place = "the GPU" if device.type == "cuda" else "main memory"
    size = f" need about {_gb(needed)}" if needed is not None else " need more"
    left = f" {place} has {_gb(available)} free" if available is not None else f" {place} has"
    join = "and" if needed is not None else "than"
    return DoesNotFitError(f"{what}{size} {join}{left}; {advice}", needed, available)


def _container_bytes() -> int:
    """What a memory limit on this container leaves (cgroup v2); unlimited where there is none."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return (1 << 62) if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return 1 << 62


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
