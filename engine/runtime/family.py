"""Which models are built as Llama is: those we run in C++, or with fused kernels where plain."""

from __future__ import annotations

from typing import Any

from torch import nn

from engine.compress.linears import LowRankLinear, QuantizedEmbedding, QuantizedLinear

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def is_family(model: Any) -> bool:
    """Whether a model's layers have exactly the parts of Llama's, and whole heads rotate.

    Its matrices may be compressed, and its layers of different heads and widths.
    """
    return _is_built_of(model, (nn.Linear, QuantizedLinear, LowRankLinear))


def is_plain(model: Any) -> bool:
    """The same, where all matrices are plain nn.Linear."""
    return _is_built_of(model, (nn.Linear,))


def linears_of(layer: Any) -> list[Any]:
    """A layer's linear modules: queries, keys, values, output; gate, up, down."""
    attention, mlp = layer.self_attn, layer.mlp
    found = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*found, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _is_built_of(model: Any, kinds: tuple[type, ...]) -> bool:
    if model.config.model_type not in FAMILY:
        return False
    inner, head = model.base_model, model.get_output_embeddings()
    if type(inner.embed_tokens) is not nn.Embedding and not (
        QuantizedLinear in kinds and type(inner.embed_tokens) is QuantizedEmbedding
    ):
        return False
    whole = inner.rotary_emb.inv_freq.numel() * 2 == inner.layers[0].self_attn.head_dim
    return (
        whole
        and (head is None or _is_one_of(head, kinds))
        and all(_is_llamas(layer, kinds) for layer in inner.layers)
        and len({layer.self_attn.head_dim for layer in inner.layers}) == 1
    )


def _is_llamas(layer: nn.Module, kinds: tuple[type, ...]) -> bool:
    attention, mlp, linears = layer.self_attn, layer.mlp, linears_of(layer)
    parts = {n for n, _ in layer.named_children()}, {n for n, _ in mlp.named_children()}
    silu = type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    if parts != (_LAYER, _MLP) or not silu or not all(_is_one_of(m, kinds) for m in linears):
        return False
    query, key, value, _, gate, up, _ = (m.out_features for m in linears)
    shaped = key == value and query % key == 0 and key % attention.head_dim == 0 and gate == up
    return shaped and not any(m.bias is not None for m in linears[4:])


def _is_one_of(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    """A low-rank pair's factors are of the others."""
    if type(module) is LowRankLinear:
        return LowRankLinear in kinds and all(_is_one_of(m, kinds[:2]) for m in (module.first, module.second))
    return type(module) in kinds


def window(model: Any, attention: Any) -> int:
    """How many tokens a layer sees, itself included; 0 for all."""
    of_model = model.config.model_type == "mistral"
    found = getattr(model.config if of_model else attention, "sliding_window", None)
    return 0 if found is None else int(found)


def turns(attention: Any) -> bool:
    """Whether a layer has rotary positions; some of SmolLM3's have none."""
    return bool(getattr(attention, "use_rope", 1))
