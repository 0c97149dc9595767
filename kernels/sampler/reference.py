"""Drawing by inversion after transformers' filters, as plainly as it can be said, in fp64."""

from __future__ import annotations

import math

import torch


def sample(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    *,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kernels.sampler.triton.sample`` computes; see there. Log-probabilities in fp64."""
    tokens = torch.full_like(uniform, -1, dtype=torch.int64)
    logprobs = torch.full_like(uniform, math.nan)
    for r, row in enumerate(logits.double()):
        if not math.isfinite(row.max()):
            continue
        if temperature[r] > 0:
            k, p, m = (None if x is None else x[r].item() for x in (top_k, top_p, min_p))
            weights = distribution(row, float(temperature[r]), k or 0, 1.0 if p is None else p, m or 0.0)
            cumulative = weights.cumsum(0)
            tokens[r] = torch.searchsorted(cumulative, uniform[r] * cumulative[-1], right=True)
        else:
            tokens[r] = (row == row.max()).nonzero()[0, 0]
        logprobs[r] = row.log_softmax(0)[tokens[r]]
    return tokens, logprobs


def distribution(row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities fp64 [vocabulary] of the finite logits ``row`` after temperature, top-k, top-p and min-p."""
    scores = row.double() / temperature
    if 0 < top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -math.inf)
    if top_p < 1.0:
        order = scores.argsort(stable=True)  # of equal ones the first go first
        dropped = scores.softmax(0)[order].cumsum(0) <= 1.0 - top_p
        dropped[-1] = False
        scores = scores.index_fill(0, order[dropped], -math.inf)
    probabilities = scores.softmax(0)
    if min_p > 0.0:
        scores = scores.masked_fill(probabilities < min(min_p, 1.0) * probabilities.max(), -math.inf)
    return scores.softmax(0)
