"""A model with random weights, made in its final number format on its device: no download, no detour by fp32."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from transformers.initialization import no_init_weights

SEED = 20_240_801
BLOCK = (1 << 22) + 1
STD = 0.02


def fill(build: Callable[[], Any], device: torch.device) -> Any:
    """``build()`` with its parameters on ``device``: matrices drawn from N(0, 0.02), norm scales 1, biases 0.

    One block of random numbers is drawn from a fixed seed and repeated through all matrices. Its length shares no
    factor with their widths, so rows differ. Drawing every number afresh would take minutes for a large model, and
    speed and energy need no more than numbers that look random.
    """
    with no_init_weights(), torch.device(device):
        model = build()
    model.tie_weights()  # skipped above together with the weights' initialisation
    generator = torch.Generator(device).manual_seed(SEED)
    dtype = next(model.parameters()).dtype
    block = torch.empty(BLOCK, dtype=dtype, device=device).normal_(0.0, STD, generator=generator)
    offsets = itertools.count(0, 7919)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                _repeat(block, parameter.view(-1), next(offsets) % BLOCK)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def _repeat(block: torch.Tensor, flat: torch.Tensor, offset: int) -> None:
    at = 0
    while at < len(flat):
        part = block[offset : offset + len(flat) - at]
        flat[at : at + len(part)].copy_(part)
        at, offset = at + len(part), 0
