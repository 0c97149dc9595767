"""Which kernels can run on a machine, and why the others cannot: known before a model is loaded.

Nothing here imports torch or Triton, so that a page or a command line may ask. What a user names runs or is refused
with one of these reasons; only ``auto`` leaves the choice open, and the name of what ran is kept with every run.

>>> refusal(Machine(), Wanted(attention="triton"))
('attention', 'it needs an NVIDIA GPU')
>>> refusal(Machine(capability=(9, 0), triton="3.6.0"), Wanted(attention="triton")) is None
True
"""

from __future__ import annotations

from dataclasses import dataclass

OLDEST = (8, 0)  # compute capability with bf16, asynchronous copies and the tensor cores that Triton aims at
FP8 = (8, 9)
WIDEST = 256  # numbers of a head that a tile holds in registers
NEEDS_GPU = "it needs an NVIDIA GPU"
PAGED = {"cpu": ("native", "plain"), "cuda": ("cascade", "triton", "plain")}  # fastest first


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run would find.

    Attributes:
        capability: compute capability of its GPU; None on a processor.
        triton: installed version, None where there is none.
        compiler: why the C++ kernels cannot be compiled, None where they can.
    """

    capability: tuple[int, int] | None = None
    triton: str | None = None
    compiler: str | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the run is to be on a GPU."""
        return self.capability is not None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run asks for, in the words of ``spec.choices``. ``head_dim``: the widest of the model, 0 if unknown."""

    attention: str = "auto"
    fusion: str = "auto"
    graphs: str = "auto"
    kv_cache: str = "auto"
    head_dim: int = 0


def refusal(machine: Machine, wanted: Wanted) -> tuple[str, str] | None:
    """The field that cannot be had and why, as half a sentence; None where all of it can."""
    found = {
        "attention": _attention(machine, wanted),
        "fusion": _fusion(machine, wanted),
        "graphs": NEEDS_GPU if wanted.graphs == "on" and not machine.is_gpu else None,
        "kv_cache": _kv_cache(machine, wanted),
    }
    return next(((field, why) for field, why in found.items() if why), None)


def triton_reason(machine: Machine, head_dim: int = 0) -> str | None:
    """Why our Triton kernels cannot run; None where they can."""
    if machine.capability is None:
        return NEEDS_GPU
    if machine.capability < OLDEST:
        return f"this GPU has compute capability {_version(machine.capability)}, and it needs {_version(OLDEST)}"
    if machine.triton is None:
        return "Triton is not installed"
    if head_dim > WIDEST:
        return f"the model's heads are {head_dim} wide, and it serves up to {WIDEST}"
    return None


def _attention(machine: Machine, wanted: Wanted) -> str | None:
    name = wanted.attention
    if name in ("triton", "cascade"):
        return triton_reason(machine, wanted.head_dim)
    if name == "native":
        if machine.is_gpu:
            return "the C++ kernel is for processors; choose the device cpu"
        return machine.compiler
    if name in ("sdpa-efficient", "sdpa-cudnn", "flex") and not machine.is_gpu:
        # FlexAttention is compiled, and for a processor PyTorch 2.13 writes C++ that does not compile.
        return NEEDS_GPU
    if name == "sdpa-cudnn" and machine.capability is not None and machine.capability < OLDEST:
        return f"cuDNN's kernel needs compute capability {_version(OLDEST)}"
    return None


def _fusion(machine: Machine, wanted: Wanted) -> str | None:
    if wanted.fusion == "compile":
        if machine.is_gpu:
            return None if machine.triton else "torch.compile needs Triton, which is not installed"
        return machine.compiler
    if wanted.fusion != "kernels":
        return None
    if machine.is_gpu:
        if wanted.attention == "plain":
            return "the fused kernels write the cache as the Triton attention reads it; choose that, or auto"
        return triton_reason(machine, wanted.head_dim)
    if wanted.attention == "plain":
        return "on a processor it is the C++ forward pass, which has its own attention; choose native, or auto"
    return machine.compiler


def _kv_cache(machine: Machine, wanted: Wanted) -> str | None:
    reads = wanted.attention in ("auto", "triton", "cascade") and triton_reason(machine, wanted.head_dim) is None
    if wanted.kv_cache == "fp8" and reads and machine.capability is not None and machine.capability < FP8:
        return f"fp8 needs compute capability {_version(FP8)}; choose int8"
    return None


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
