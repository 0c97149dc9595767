"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, the halves as GPT-NeoX pairs them) in fp64, plainly."""

from __future__ import annotations

import torch


def rotate_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """What ``kernels.rope.triton.rotate_and_store`` computes, into fp64 ``keys`` and ``values``; see there."""
    rotated = []
    for x, norm in ((q, q_norm), (k, k_norm)):
        wide = x.double()
        if norm is not None:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * norm.double()
        width = cos.shape[-1]
        turning, rest = wide[..., :width], wide[..., width:]
        first, second = turning.chunk(2, -1)
        other = torch.cat([-second, first], -1)
        turned = turning * cos.double()[:, None] + other * sin.double()[:, None]
        rotated.append(torch.cat([turned, rest], -1))
    keys[blocks.long(), :, places.long()] = rotated[1].to(keys.dtype)
    values[blocks.long(), :, places.long()] = v.to(values.dtype)
    return rotated[0]
