"""Which models are built as Llama is: those whose layers we run ourselves, in C++ or with fused kernels."""

from __future__ import annotations

from typing import Any

from torch import nn

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def is_plain(model: Any) -> bool:
    """Whether a model's layers have exactly the parts of Llama's, and whole heads rotate."""
    if model.config.model_type not in FAMILY:
        return False
    inner = model.base_model
    whole = inner.rotary_emb.inv_freq.numel() * 2 == inner.layers[0].self_attn.head_dim
    return whole and all(_plain_layer(layer) for layer in inner.layers)


def _plain_layer(layer: nn.Module) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    parts = {n for n, _ in layer.named_children()}, {n for n, _ in mlp.named_children()}
    silu = type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    biased = any(m.bias is not None for m in linears[4:])
    return parts == (_LAYER, _MLP) and silu and not biased and all(type(m) is nn.Linear for m in linears)


def window(model: Any, attention: Any) -> int:
    """How many tokens a layer sees, itself included; 0 for all."""
    of_model = model.config.model_type == "mistral"
    found = getattr(model.config if of_model else attention, "sliding_window", None)
    return 0 if found is None else int(found)


def turns(attention: Any) -> bool:
    """Whether a layer has rotary positions; some of SmolLM3's have none."""
    return bool(getattr(attention, "use_rope", 1))
