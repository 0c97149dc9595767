"""Start a larger model from a smaller trained one: small models learn fast on a CPU, the larger ones go on from there.

Width: the old numbers fill the leading part of every matrix, new rows are drawn small, and old rows read nothing from
new columns at first. Depth: new layers sit between the old ones and add nothing at first (their output
projections are zero). After Net2Net (Chen et al. 2016) and Gong et al. 2019; not exactly function-preserving, because
RMSNorm sees the new channels, but close: the loss goes on from near the small model's.
"""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

_NEW_STD = 0.02


def layer_positions(old: int, new: int) -> list[int]:
    """Where each of `old` layers goes among `new`: evenly spread, first stays first."""
    return [i * new // old for i in range(old)]


@torch.no_grad()
def grow(small: LlamaForCausalLM, large: LlamaForCausalLM) -> None:
    """Fill `large` (freshly made) from `small` in place; heads per key-value head must be the same in both."""
    ratio = (small.config.hidden_size / large.config.hidden_size) ** 0.5
    if _group(small) != _group(large):
        raise ValueError(f"query heads per key-value head differ: {_group(small)} and {_group(large)}")
    positions = layer_positions(small.config.num_hidden_layers, large.config.num_hidden_layers)
    _fill(large.model.embed_tokens.weight, small.model.embed_tokens.weight)
    _norm(large.model.norm.weight, small.model.norm.weight, ratio)
    for number, layer in enumerate(large.model.layers):
        writers = (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
        if number not in positions:
            for weight in writers:
                weight.zero_()
            continue
        old = small.model.layers[positions.index(number)]
        _norm(layer.input_layernorm.weight, old.input_layernorm.weight, ratio)
        _norm(layer.post_attention_layernorm.weight, old.post_attention_layernorm.weight, ratio)
        for name in ("q_proj", "k_proj", "v_proj"):
            _fill(getattr(layer.self_attn, name).weight, getattr(old.self_attn, name).weight)
        for name in ("gate_proj", "up_proj"):
            _fill(getattr(layer.mlp, name).weight, getattr(old.mlp, name).weight)
        _fill(layer.self_attn.o_proj.weight, old.self_attn.o_proj.weight)
        _fill(layer.mlp.down_proj.weight, old.mlp.down_proj.weight)


def _group(model: LlamaForCausalLM) -> int:
    return model.config.num_attention_heads // model.config.num_key_value_heads


def _fill(large: torch.Tensor, small: torch.Tensor) -> None:
    """Old numbers into the leading rows and columns; new rows are small noise, old rows read nothing new at first."""
    rows, columns = small.shape
    large.normal_(0.0, _NEW_STD)
    large[:rows, :columns] = small
    large[:rows, columns:] = 0.0


def _norm(large: torch.Tensor, small: torch.Tensor, ratio: float) -> None:
    """Scale by sqrt(old width / new width): the mean square is taken over more channels, the new ones near zero."""
    large.fill_(ratio)
    large[: len(small)] = small * ratio
