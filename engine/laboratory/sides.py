"""What the sides of several operations share: why one cannot run, number formats, random inputs.

A reason is half a sentence, to stand behind "cannot run here:". No torch at import: the web process asks for reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.laboratory.device import Device
from kernels.dispatch import FP8, OLDEST, WIDEST

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case

NO_GPU = "there is no NVIDIA GPU here"
POINTERS = {"fp32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}


def always(case: Case, device: Device) -> str | None:
    """Plain PyTorch runs everywhere."""
    return None


def gpu_only(case: Case, device: Device) -> str | None:
    """It needs a GPU."""
    return None if device.on_gpu else NO_GPU


def triton(case: Case, device: Device) -> str | None:
    """Our Triton kernels."""
    if device.capability is None:
        return NO_GPU
    if device.triton is not None:
        return device.triton
    if device.capability < OLDEST:
        return f"the GPU's compute capability {_dotted(device.capability)} is below {_dotted(OLDEST)}"
    if dict(case.shape).get("dim", 0) > WIDEST:
        return f"its heads are wider than {WIDEST}"
    if case.has_fp8 and device.capability < FP8:
        return f"fp8 needs compute capability {_dotted(FP8)}, and the GPU has {_dotted(device.capability)}"
    return None


def native(case: Case, device: Device) -> str | None:
    """Our C++ attention for processors."""
    if device.on_gpu:
        return "it runs on processors only"
    if case.feature("alibi"):
        return "the C++ kernel has no ALiBi"
    if case.feature("tree"):
        return "the C++ kernel has no trees"
    if case["dim"] % 16:
        return f"it takes heads whose width is a multiple of 16, not {case['dim']}"
    return device.native


def inside_native(case: Case, device: Device) -> str | None:
    """What our C++ forward pass has inside, where it cannot be measured alone."""
    if device.on_gpu:
        return "it runs on processors only"
    return "it is inside the C++ forward pass and no function of its own"


def gathered(case: Case, device: Device) -> str | None:
    """The runtime's plain PyTorch path over the paged cache."""
    if case.feature("alibi"):
        return "the runtime's plain path has no ALiBi"
    if case.feature("tree"):
        return "the runtime's plain path has no trees"
    if case.feature("kv"):
        return "the runtime's plain path reads no cache of one byte"
    return None


def sdpa(case: Case, device: Device) -> str | None:
    """torch's scaled_dot_product_attention, whichever kernel it takes."""
    for name, words in (("softcap", "softcap"), ("sinks", "attention sinks"), ("kv", "cache of one byte")):
        if case.feature(name):
            return f"SDPA offers no {words}"
    return None


def sdpa_flash(case: Case, device: Device) -> str | None:
    """SDPA pinned to flash attention."""
    if device.on_gpu:
        if case.dtype == "fp32":
            return "it takes bf16 and fp16 only"
        if case["dim"] > WIDEST:
            return f"its heads are wider than {WIDEST}"
        if needs_mask(case):
            return "it takes no mask and no bias"
    return sdpa(case, device)


def sdpa_efficient(case: Case, device: Device) -> str | None:
    """SDPA pinned to the memory-efficient kernel."""
    if not device.on_gpu:
        return NO_GPU
    if case["heads"] != case["kv_heads"]:
        return "it offers no grouped heads"
    return sdpa(case, device)


def sdpa_cudnn(case: Case, device: Device) -> str | None:
    """SDPA pinned to cuDNN."""
    if not device.on_gpu:
        return NO_GPU
    if case.dtype == "fp32":
        return "it takes bf16 and fp16 only"
    return sdpa(case, device)


def flex(case: Case, device: Device) -> str | None:
    """FlexAttention, compiled."""
    if not device.on_gpu:
        return f"compiled FlexAttention is measured on GPUs only, and {NO_GPU}"
    if case.feature("sinks"):
        return "FlexAttention offers no attention sinks"
    if case.feature("tree"):
        return "a tree is not compiled into FlexAttention here"
    return "FlexAttention reads no cache of one byte" if case.feature("kv") else None


def needs_mask(case: Case) -> bool:
    """Whether SDPA must be told more than "causal"; a window of a decoding step is a piece of the keys instead."""
    if case.feature("alibi") or case.feature("tree"):
        return True
    return case.op == "prefill" and (case["cached"] > 0 or bool(case.feature("window")))


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def dtype(name: str) -> torch.dtype:
    """The torch type of a number format."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def pointer(name: str) -> str:
    """The same as Triton writes a pointer to it."""
    return POINTERS[name]


def random(device: torch.device, seed: int, name: str) -> Callable[..., torch.Tensor]:
    """A function that makes standard normal numbers of a shape; equal seeds give equal numbers on one device."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    kind = dtype(name)
    return lambda *shape: torch.randn(shape, generator=generator, device=device).to(kind)


def power_of_2(number: int) -> int:
    """The next one from ``number`` on, as Triton pads."""
    return 1 << (number - 1).bit_length()
