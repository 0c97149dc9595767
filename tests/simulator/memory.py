"""Which tensors lie on the simulated GPU: those whose storage bears its mark, whatever view or parameter shows it."""

from __future__ import annotations

from typing import Any

import torch

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
_real = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]


def _storage(x: torch.Tensor) -> Any:
    try:
        return x.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return None


def on_gpu(x: Any) -> bool:
    """Whether a tensor is to be taken for one in the GPU's memory."""
    return isinstance(x, torch.Tensor) and getattr(_storage(x), "_simulated", False)


def is_pinned(x: torch.Tensor) -> bool:
    """Whether its host memory is page-locked, so that it can be copied while the host goes on."""
    return getattr(_storage(x), "_pinned", False)


def mark(x: torch.Tensor, gpu: bool = True) -> torch.Tensor:
    """Put a tensor into the GPU's memory, with all that shares its storage, or take it back."""
    if _real(x).type == "cpu" and (storage := _storage(x)) is not None:
        storage._simulated = gpu
    return x


def pin(x: torch.Tensor) -> torch.Tensor:
    """Page-lock a tensor's host memory."""
    _storage(x)._pinned = True
    return x


def device_of(x: torch.Tensor) -> torch.device:
    """What ``x.device`` says while the GPU is simulated."""
    return GPU if on_gpu(x) else _real(x)


def same_memory(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors are views of one storage."""
    return _storage(x) is not None and _storage(x) is _storage(y)
