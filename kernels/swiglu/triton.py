"""``activation(gate) * up`` in one pass over both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _gated(GATE, UP, OUT, gate_row, up_row, n, SILU: tl.constexpr, BLOCK: tl.constexpr):
    """A piece of one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    gate = tl.load(GATE + row * gate_row + i, mask=there, other=0.0).to(tl.float32)
    up = tl.load(UP + row * up_row + i, mask=there, other=0.0)
    if SILU:
        found = gate / (1.0 + tl.exp2(-1.4426950408889634 * gate))
    else:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        found = gate * (1.0 - 1.0 / (1.0 + tl.exp2(2.885390081777927 * inner)))
    # transformers' module rounds the activation before it multiplies.
    found = found.to(OUT.dtype.element_ty).to(tl.float32) * up.to(tl.float32)
    tl.store(OUT + row * n + i, found.to(OUT.dtype.element_ty), mask=there)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """``gate`` and ``up`` [rows, n], which may be two halves of one tensor; ``activation`` silu or gelu_tanh."""
    rows, n = gate.shape
    out = torch.empty(rows, n, dtype=gate.dtype, device=gate.device)
    _gated[(rows, triton.cdiv(n, BLOCK))](
        gate, up, out, gate.stride(0), up.stride(0), n, SILU=activation == "silu", BLOCK=BLOCK, num_warps=4
    )
    return out
