"""RMSNorm with the residual sum before it: one read and one write of what two or seven operations of PyTorch move."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_rms_norm(
    X, RESIDUAL, WEIGHT, OUT, TOTAL, x_row, eps, offset,
    N: tl.constexpr, BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One row of ``N`` numbers."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < N
    x = tl.load(X + row * x_row + i, mask=there, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(RESIDUAL + row * N + i, mask=there, other=0.0).to(tl.float32)
        x = x.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + row * N + i, x, mask=there)
        x = x.to(tl.float32)  # as the sum is kept, so that the next layer and this one see the same
    scale = tl.rsqrt(tl.sum(x * x, 0) / N + eps)
    weight = tl.load(WEIGHT + i, mask=there, other=0.0)
    if WIDE:  # Gemma multiplies in fp32 and rounds once
        out = x * scale * (weight.to(tl.float32) + offset)
    else:  # Llama rounds before it multiplies
        out = (x * scale).to(OUT.dtype.element_ty).to(tl.float32) * weight.to(tl.float32)
    tl.store(OUT + row * N + i, out.to(OUT.dtype.element_ty), mask=there)


def add_rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
    wide: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [rows, n] plus the ``residual``, divided by its root mean square, times ``weight`` [n].

    Args:
        x: the last dimension contiguous.
        residual: [rows, n], contiguous; None for none.
        offset: added to the weight (Gemma: 1).
        wide: multiply by the weight in fp32 and round once (Gemma); else round first, as Llama's module does.

    Returns:
        The normed rows, and the sum, which is ``x`` itself where there is no residual.
    """
    rows, n = x.shape
    out = torch.empty(rows, n, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(out)
    block = triton.next_power_of_2(n)
    _add_rms_norm[(rows,)](
        x, x if residual is None else residual, weight, out, total, x.stride(0), eps, offset,
        N=n, BLOCK=block, HAS_RESIDUAL=residual is not None, WIDE=wide, num_warps=warps_for(block),
    )  # fmt: skip
    return out, total


def warps_for(block: int) -> int:
    """Warps for a row of ``block`` numbers: 16 bytes of each thread at a time."""
    return min(16, max(1, block // 512))
