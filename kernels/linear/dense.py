"""A vector times a weight in half precision: a matter of the weight's bytes, of which each is read once, 16 in a row.

PyTorch has a product for that too. Which of the two is faster differs between GPUs and shapes of matrices, so whoever
has a choice measures it (``engine.runtime.vectors``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SPAN = 1024  # numbers of a row of the weight that a program reads at a time
ROWS = (1, 2, 4, 8)  # of the weight to a program, to choose from


@triton.jit
def _vector(
    X, W, BIAS, OUT, w_row, N, K,
    HAS_BIAS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``BN`` numbers of the result, summed in fp32."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    row = tl.minimum(n, N - 1)  # behind the last row, the last is read again and not stored
    words = W + row.to(tl.int64)[:, None] * w_row + k[None, :]
    acc = tl.zeros([BN, BK], tl.float32)
    for k0 in range(0, K, BK):
        seen = k0 + k < K
        w = tl.load(words + k0, mask=seen[None, :], other=0.0, eviction_policy="evict_first")
        x = tl.load(X + k0 + k, mask=seen, other=0.0)
        acc += w.to(tl.float32) * x.to(tl.float32)[None, :]
    y = tl.sum(acc, 1)
    if HAS_BIAS:
        y += tl.load(BIAS + row).to(tl.float32)
    tl.store(OUT + n, y.to(OUT.dtype.element_ty), mask=n < N)


def vector(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, rows: int = 4) -> torch.Tensor:
    """``x @ weight.T + bias`` for one row.

    Args:
        x: [1, k], fp16 or bf16, contiguous.
        weight: [n, k] in the same type on the same device, its rows contiguous.
        bias: [n], contiguous.
        rows: of the weight to a program, one of ``ROWS``.

    Returns:
        [1, n] in the type of ``x``, summed in fp32.
    """
    n, k = weight.shape
    out = torch.empty(1, n, dtype=x.dtype, device=x.device)
    _vector[(triton.cdiv(n, rows),)](
        x, weight, out if bias is None else bias, out, weight.stride(0), n, k,
        HAS_BIAS=bias is not None, BN=rows, BK=SPAN, num_warps=4,
    )  # fmt: skip
    return out
