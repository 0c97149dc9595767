"""Attention of one new token of each sequence, every one over its whole table, in fp64."""

from __future__ import annotations

from typing import Any

import torch

from kernels.decode import reference


def forest(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    plan: object = None,
    size: object = None,
    **how: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kernels.forest.triton.forest`` computes, whatever the plan; fp64, base-2 log-sum-exp without sinks."""
    out, lse = reference.decode(q[:, None], keys, values, tables, lengths, **how)
    return out[:, 0], lse[:, 0]
