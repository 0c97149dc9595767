"""What a recipe does to a torch model's numbers, done to the torch model: the scores a quantized graph must give."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.onnx.quantizing import as_float
from spec.compression.choices import Head
from spec.recipe import Int8Dynamic, Quantize


@torch.no_grad()
def imitate(model: Any, step: Quantize) -> None:
    """Round a model's weights in place as ``step`` does; with ``int8-dynamic`` it also rounds activations from now on.

    An embedding that is tied to the output layer is the same tensor, so it is rounded with it.
    """
    output = model.get_output_embeddings()
    kept = output if getattr(step, "head", Head.SAME) is Head.KEEP else None
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not kept:
            turned = isinstance(module, nn.Linear)  # its weight is [outputs, inputs]
            weight = module.weight.detach().float().numpy()
            rounded = as_float(np.ascontiguousarray(weight.T if turned else weight), step)
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(rounded.T if turned else rounded)))
            if isinstance(step, Int8Dynamic):
                module.register_forward_pre_hook(_round_activations)


def widths(model: Any) -> set[int]:
    """The inputs of the matrices that ``imitate`` rounds."""
    modules = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D))]
    return {m.in_features if isinstance(m, nn.Linear) else m.weight.shape[0] for m in modules}


def _round_activations(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    scale = given[0].abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((given[0] / scale).round() * scale, *given[1:])
