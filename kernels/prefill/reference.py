"""Causal attention of pieces of sequences over their paged keys, in fp64, sequence by sequence."""

from __future__ import annotations

import torch

from kernels.decode import reference


def prefill(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    **how: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``kernels.prefill.triton.prefill`` computes; see there. fp64 output and base-2 log-sum-exp without sinks."""
    out, lse = [], []
    for i in range(len(lengths)):
        piece = q[int(starts[i]) : int(starts[i + 1])][None]
        one = reference.decode(piece, keys, values, tables[i : i + 1], lengths[i : i + 1], **how)  # type: ignore[arg-type]
        out.append(one[0][0])
        lse.append(one[1][0])
    return torch.cat(out), torch.cat(lse)
