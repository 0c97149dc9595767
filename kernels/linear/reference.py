"""A linear layer over a quantized weight, as plainly as it can be said, in fp64."""

from __future__ import annotations

import torch

from kernels.linear.packing import PackedWeight, dequantize


def linear(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What ``kernels.linear.triton.linear`` computes; see there. fp64 output."""
    y = x.double() @ dequantize(packed, torch.float64).T
    return y if bias is None else y + bias.double()
