"""Linear layers over a quantized weight, as plainly as they can be said, in fp64."""

from __future__ import annotations

import torch

from kernels.linear.weight import QuantizedWeight, codes_of, dequantize


def linear(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What ``kernels.linear.triton.linear`` computes; see there. fp64 output."""
    y = x.double() @ dequantize(weight, torch.float64).T
    return y if bias is None else y + bias.double()


def quantize_rows(x: torch.Tensor, step: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [m, k] of ``x`` [m, k] and the step of each row, fp32 [m]; a given ``step`` holds for all of them."""
    numbers = x.float()
    if step is None:
        steps = numbers.abs().amax(-1) / 127
        steps = torch.where(steps < torch.finfo(torch.float32).tiny, torch.ones_like(steps), steps)
    else:
        steps = step.float().reshape(1).expand(len(x))
    return (numbers / steps[:, None]).round().clamp(-127, 127).to(torch.int8), steps


def linear_of_bytes(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None, step: torch.Tensor | None = None
) -> torch.Tensor:
    """What ``kernels.linear.dynamic.linear`` computes; see there. fp64 output."""
    codes, steps = quantize_rows(x.reshape(-1, x.shape[-1]), step)
    y = codes.double() @ codes_of(weight).double().T * steps.double()[:, None] * weight.scales[:, 0].double()
    return (y if bias is None else y + bias.double()).view(*x.shape[:-1], -1)
