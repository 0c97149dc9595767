"""Quantization-aware fine-tuning: the forward pass uses rounded weights, the gradients reach the ones behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from engine.compress.anatomy import head_of, is_tied, layers_of, linears_of, matrix
from engine.compress.quantize import Format, group_size
from engine.compress.train import fine_tune, zeros_in
from engine.compress.work import Work
from kernels.linear.weight import Kind, nearest, ranges, restored
from spec.compression.choices import Head
from spec.compression.train import Aware


class _Rounded(nn.Module):
    """A weight as its format holds it; its gradient is passed through (Bengio et al. 2013, arXiv 1308.3432)."""

    def __init__(self, wanted: Format, transposed: bool) -> None:
        super().__init__()
        self._wanted, self._transposed = wanted, transposed

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            rows = weight.T if self._transposed else weight
            scales, zeros = ranges(
                rows, self._wanted.kind, group=self._wanted.group, zero_points=self._wanted.zero_points
            )
            made = restored(nearest(rows, self._wanted.kind, scales, zeros), self._wanted.kind, scales.float(), zeros)
            made = made.T if self._transposed else made
        return weight + (made.to(weight.dtype) - weight).detach()


def prepare_for(work: Work, step: Aware) -> None:
    """Fine-tune with the weights rounded as the step after this one will. Raises SpecError where groups do not fit.

    An embedding that is tied to the output layer looks up rounded rows too, as it will afterwards.
    """
    modules: list[Any] = [m for _, m in linears_of(layers_of(work.model))]
    head = head_of(work.model)
    if head is not None and step.head is Head.SAME:
        modules += [head, work.model.get_input_embeddings()] if is_tied(work.model) else [head]
    kind = Kind(step.format)
    widths = {matrix(m).shape[1] for m in modules}
    group = group_size(step.group, widths, "qat") if kind.is_half_byte else -1
    wanted = Format(kind, group, kind == Kind.INT4)
    masks = zeros_in(work.model)
    for module in modules:
        parametrize.register_parametrization(module, "weight", _Rounded(wanted, isinstance(module, Conv1D)))
    try:
        renamed = {
            name: n
            for n in dict(work.model.named_parameters())
            for name in [n.replace(".parametrizations.weight.original", ".weight")]
        }
        masks = {renamed[name]: mask for name, mask in masks.items() if name in renamed}
        fine_tune(work, steps=step.steps, rate=step.rate, batch=step.batch, masks=masks)
    finally:
        for module in modules:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
