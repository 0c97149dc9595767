"""Paged attention of a few new tokens of each sequence, as plainly as it can be said, in fp64."""

from __future__ import annotations

import math

import torch


def decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    tree: torch.Tensor | None = None,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kernels.decode.triton.decode`` computes; see there. fp64 output and base-2 log-sum-exp without sinks."""
    n, new, heads, _ = q.shape
    block, kv_heads = keys.shape[2], keys.shape[1]
    group = heads // kv_heads
    out = q.new_zeros(n, new, heads, values.shape[3], dtype=torch.float64)
    lse = q.new_full((n, new, heads), -math.inf, dtype=torch.float64)
    for i in range(n):
        length = int(lengths[i])
        at = torch.arange(length, device=q.device)
        where = tables[i, at // block].long(), slice(None), at % block
        k, v = keys[where].double(), values[where].double()  # [length, kv heads, dim]
        if key_scales is not None and value_scales is not None:
            k, v = k * key_scales[where].double()[..., None], v * value_scales[where].double()[..., None]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("mhd,nhd->hmn", q[i].double(), k) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        mine = length - new + torch.arange(new, device=q.device)
        if slopes is not None:
            scores = scores + slopes.double()[:, None, None] * (at[None] - mine[:, None])
        seen = at[None] <= mine[:, None]
        if tree is not None:
            j = at - (length - new)
            bit = (tree[i][:, None] >> j.clamp(min=0)[None]) & 1 == 1
            seen = torch.where(j[None] < 0, torch.ones_like(bit), bit)
        if window:
            seen = seen & (at[None] > mine[:, None] - window)
        scores = scores.masked_fill(~seen[None], -math.inf)
        lse[i] = (scores.logsumexp(-1) / math.log(2)).T
        if sinks is not None:
            sink = sinks.double()[:, None, None].expand(-1, new, 1)
            weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        out[i] = torch.einsum("hmn,nhd->mhd", weights, v)
    return out, lse
