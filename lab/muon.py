"""Muon (Jordan et al. 2024) in fp32, matrices of one shape together: fast on CPUs without bf16 units.

`torch.optim.Muon` runs the same iteration matrix by matrix in bf16, which costs more than the training step here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

# Quintic Newton-Schulz coefficients of the reference implementation: singular values end near 1, not exactly at 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(update: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to `update` `[n, rows, columns]`, approximately."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


def orthogonalise_together(update: torch.Tensor) -> torch.Tensor:
    """`orthogonalise`, shared among the processes of a training: each does its matrices, all get all of them."""
    if not dist.is_initialized():
        return orthogonalise(update)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    out = torch.zeros_like(update)
    if len(update[mine]):
        out[mine] = orthogonalise(update[mine])
    dist.all_reduce(out)
    return out


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; scaled so that its step has the RMS of AdamW's (0.2 x sqrt(longer side))."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                self._update(params, 0.2 * max(shape) ** 0.5 * group["lr"], group)

    def _update(self, params: list[nn.Parameter], scale: float, group: dict) -> None:
        mixed = []
        for p in params:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            mixed.append(p.grad.lerp(buffer, group["momentum"]))
        for p, direction in zip(params, orthogonalise_together(torch.stack(mixed)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=scale)
