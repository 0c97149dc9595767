"""SwiGLU and GeGLU (Shazeer 2020, arXiv 2002.05202) in fp64."""

from __future__ import annotations

import torch
from torch.nn import functional


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """What ``kernels.swiglu.triton.gated`` computes; see there."""
    wide = gate.double()
    found = functional.silu(wide) if activation == "silu" else functional.gelu(wide, approximate="tanh")
    return found * up.double()
