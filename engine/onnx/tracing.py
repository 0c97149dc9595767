"""A causal language model of transformers as one ONNX graph: tokens and a cache in, scores and a longer cache out.

Inputs: ``input_ids`` [batch, new], ``attention_mask`` [batch, past + new] (0 on padding, which stands on the left),
``position_ids`` [batch, new], ``wanted`` [n] (which of the new positions are scored), and for each layer ``past.L.key``
and ``past.L.value`` [batch, heads, past, width]. Outputs: ``logits`` [batch, n, vocabulary], and for each layer
``present.L.key`` and ``present.L.value`` [batch, heads, past + new, width]. Every length may change from call to call.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from spec.errors import ModelError, shorten

OPSET = 23  # the first with attention, rotary positions and root-mean-square norms as operators of their own
INPUTS = ("input_ids", "attention_mask", "position_ids", "wanted")


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What one layer keeps of a token: ``heads`` keys of ``key_dim`` and values of ``value_dim`` numbers."""

    heads: int
    key_dim: int
    value_dim: int


def cache_names(layers: int, before: bool) -> list[str]:
    """The graph's names of the cache's tensors, in their order: read (``before``) or written."""
    word = "past" if before else "present"
    return [f"{word}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


class _Step(torch.nn.Module):
    """The model with its cache as plain tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        wanted: torch.Tensor,
        past: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()  # without the config: layers with a window keep all, and the mask hides what is outside
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        return made.logits, *(t for layer in made.past_key_values.layers for t in (layer.keys, layer.values))


@torch.no_grad()
def cache_layers(model: Any) -> list[CacheLayer]:
    """What the model's own cache holds. Raises ModelError where that is not keys and values of each token."""
    device = next(model.parameters()).device
    made = model(input_ids=torch.zeros(1, 3, dtype=torch.long, device=device), use_cache=True)
    layers = getattr(getattr(made, "past_key_values", None), "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise ModelError(
            "The model keeps its state in another form than keys and values of each token, which is not exported to "
            "ONNX; choose the back end transformers."
        )
    return [CacheLayer(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers]


@torch.no_grad()
def trace(model: Any, layers: Sequence[CacheLayer]) -> Any:
    """The model's graph (an ``onnx_ir.Model``), weights included, in the model's own number format.

    ``model``: any loaded causal model of transformers, on the CPU. Raises ModelError where it cannot be traced.
    """
    past = [
        torch.zeros(2, layer.heads, 5, width, dtype=model.dtype)
        for layer in layers
        for width in (layer.key_dim, layer.value_dim)
    ]
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
    positions = torch.arange(5, 8).repeat(2, 1)
    auto = torch.export.Dim.DYNAMIC
    both = {0: auto, 1: auto}
    try:
        with _quietly():
            program = torch.onnx.export(
                _Step(model).eval(),
                (ids, mask, positions, torch.tensor([1, 2]), past),
                dynamic_shapes=(both, both, both, {0: auto}, [{0: auto, 2: auto} for _ in past]),
                input_names=[*INPUTS, *cache_names(len(layers), before=True)],
                output_names=["logits", *cache_names(len(layers), before=False)],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        words = " ".join(str(error).split())
        raise ModelError(
            f"The model cannot be exported to ONNX ({type(error).__name__}: {shorten(words, 160)}); choose the back "
            "end transformers or isoquant."
        ) from None
    return program.model


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not needed and on its own inner workings."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
