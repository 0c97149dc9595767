"""Matrices as products of two thin ones, by singular values."""

from __future__ import annotations

import torch
from torch import nn

from engine.compress.anatomy import is_linear, layers_of, linears_of, matrix, replace_module
from engine.compress.linears import LowRankLinear
from engine.compress.walk import Sums, Walk
from engine.compress.work import Work
from spec.compression.choices import Scaling
from spec.compression.reduce import LowRank
from spec.errors import SpecError

MULTIPLE = 32  # of a rank that is large enough for it, so that groups of quantized weights divide it
DAMP = 1e-3  # of the mean diagonal, so that inputs that hardly vary can be divided by


def factorize(work: Work, step: LowRank) -> None:
    """Replace every matrix of the layers whose two factors are smaller. Raises SpecError where none is."""
    scaled = step.scaling is Scaling.ACTIVATION
    layers = layers_of(work.model)
    ranks: dict[str, int] = {}
    if all(_rank(matrix(m), step.ratio) is None for _, m in linears_of(layers)):
        raise SpecError(
            f"A rank ratio of {step.ratio:g} saves nothing in any matrix of this model: two factors would have as many "
            "numbers as the matrix. Choose a lower ratio.",
            field="compression.lowrank.ratio",
        )
    if scaled:
        walk = Walk(work).layers()
    else:
        walk = ((i, layer, {}) for i, layer in enumerate(layers))  # type: ignore[assignment]
    for index, layer, sums in walk:
        work.at("Factorizing layer", index + 1, len(layers))
        for name, module in list(linears_of(layer)):
            work.ask()
            rank = _rank(matrix(module), step.ratio)
            if rank is not None:
                replace_module(layer, name, _pair(module, rank, sums.get(name)))
                ranks[f"{index}.{name}"] = rank
    work.tell_untouched()
    work.facts["ranks"] = ranks


def _rank(weight: torch.Tensor, ratio: float) -> int | None:
    """The rank to keep; None where the two factors would not be smaller."""
    n, k = weight.shape
    rank = max(1, round(ratio * min(n, k)))
    rank = round(rank / MULTIPLE) * MULTIPLE if rank >= MULTIPLE else rank
    return rank if rank * (n + k) < n * k else None


def _pair(module: nn.Module, rank: int, sums: Sums | None) -> LowRankLinear:
    """The best product of that rank, for the inputs that were seen where there are any.

    With L the Cholesky factor of the sum of x x^T, |(W - W') L| is the root of the outputs' summed squared error, so
    the singular values of W L are cut off (Wang et al. 2024, SVD-LLM, arXiv 2403.07378, section 3.1).
    """
    assert is_linear(module)
    weight = matrix(module).float()
    dtype, device = matrix(module).dtype, weight.device
    if sums is None or sums.gram is None:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        back = v[:rank]
    else:
        gram = sums.gram + torch.eye(len(sums.gram), device=device) * DAMP * sums.gram.diagonal().mean().clamp(min=1e-8)
        factor = torch.linalg.cholesky(gram)
        u, s, v = torch.linalg.svd(weight @ factor, full_matrices=False)
        back = torch.linalg.solve_triangular(factor, v[:rank], upper=False, left=False)
    root = s[:rank].sqrt()
    n, k = weight.shape
    first = nn.Linear(k, rank, bias=False, device=device, dtype=dtype)
    second = nn.Linear(rank, n, bias=module.bias is not None, device=device, dtype=dtype)
    first.weight.data.copy_(root[:, None] * back)
    second.weight.data.copy_(u[:, :rank] * root)
    if module.bias is not None:
        second.bias.data.copy_(module.bias.data)
    return LowRankLinear(first, second).requires_grad_(False)
