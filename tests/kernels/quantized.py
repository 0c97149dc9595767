"""Models whose linear layers are quantized, as compressed ones are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.compress.linears import QuantizedLinear
from kernels.linear.weight import Kind, quantize


def linear_of(plain: nn.Linear, kind: str, activation: str | None = None, **how: Any) -> QuantizedLinear:
    """The layer of a compressed model that stands for a plain one; a static step of 0.05."""
    scale = torch.tensor(0.05) if activation == "static" else None
    bias = None if plain.bias is None else plain.bias.data
    return QuantizedLinear.from_weight(quantize(plain.weight.data, Kind(kind), **how), bias, activation, scale)


def quantized(model: Any, kind: str, activation: str | None = None, **how: Any) -> Any:
    """The model with the matrices of its layers quantized."""
    for layer in model.base_model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(part, name, linear_of(module, kind, activation, **how))
    return model
