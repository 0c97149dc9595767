"""Matrices of which two in each four weights are zero, for the sparse tensor cores that NVIDIA's GPUs have from 8.0 on.

Mishra et al. 2021, arXiv 2104.08378. PyTorch keeps such a matrix as what is not zero and where that stands, in nine
sixteenths of the bytes. Whether its library takes a shape is tried, and what it computes compared, once a matrix.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

CAPABILITY = (8, 0)
TYPES = (torch.float16, torch.bfloat16)
TRIED_ROWS, TOLERANCE = 8, 0.02


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether at most two of each four weights of a row are other than zero. A dense one is told by its first row."""
    if weight.shape[1] % 4:
        return False

    def holds(rows: torch.Tensor) -> bool:
        return bool(((rows.reshape(len(rows), -1, 4) != 0).sum(-1) <= 2).all())

    return holds(weight[:1]) and holds(weight)


def compressed(weight: torch.Tensor) -> torch.Tensor | None:
    """``weight`` [n, k] as PyTorch's semi-structured tensor; None where it is dense, or the GPU does not serve it."""
    if weight.device.type != "cuda" or weight.dtype not in TYPES:
        return None
    if torch.cuda.get_device_capability(weight.device) < CAPABILITY or not is_two_of_four(weight):
        return None
    return _tried(weight)


def _tried(weight: torch.Tensor) -> torch.Tensor | None:
    x = torch.randn(TRIED_ROWS, weight.shape[1], device=weight.device, dtype=weight.dtype)
    try:
        made: torch.Tensor = torch.sparse.to_sparse_semi_structured(weight)
        found, expected = F.linear(x, made).float(), F.linear(x, weight).float()
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # a shape or a type that the library does not take
        return None
    return made if float((found - expected).norm()) <= TOLERANCE * float(expected.norm()) else None
