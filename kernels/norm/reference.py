"""RMSNorm as the Llama family has it (Zhang and Sennrich 2019), in fp64."""

from __future__ import annotations

import torch


def add_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kernels.norm.triton.add_rms_norm`` computes; see there. The sum has the type of ``x``, as there."""
    total = x if residual is None else x + residual
    wide = total.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed * (weight.double() + offset), total
