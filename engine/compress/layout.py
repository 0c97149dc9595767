"""How a compressed model differs from what its config builds: told as plain JSON, and built again from it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from engine.compress.anatomy import is_linear, layers_of, matrix, replace_module
from engine.compress.linears import LowRankLinear, QuantizedEmbedding, QuantizedLinear
from kernels.linear.weight import GROUPS, Kind, QuantizedWeight

Layout = dict[str, dict[str, Any]]
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # config entries
MOST_TAKEN_OUT = 32  # times as large as what is left was no model that was ever pruned here
MOST_BUFFERS = 1 << 28  # numbers of a model's tables that are computed, not kept: angles, masks
FLOATS = ("F32", "F16", "BF16")
TYPES = {"I8": torch.int8, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16}
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types", "attention_types")  # config entries, one a layer


def describe(model: Any) -> Layout:
    """Every module that is not what the model's config builds, by name, in the order in which they are put in."""
    plain = _skeleton(model.config, torch.float32, torch.device("meta"))
    sizes = {name: matrix(m).shape for name, m in plain.named_modules() if is_linear(m)}
    found: Layout = {}
    for name, module in model.named_modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            found[name] = _quantized(module)
        elif isinstance(module, LowRankLinear):
            sides = {"in": module.in_features, "rank": module.rank, "out": module.out_features}
            found[name] = {"type": "lowrank", "bias": module.bias is not None} | sides
        elif is_linear(module) and sizes.get(name) != matrix(module).shape:
            n, k = matrix(module).shape
            kind = "conv1d" if isinstance(module, Conv1D) else "linear"
            found[name] = {"type": kind, "in": k, "out": n, "bias": module.bias is not None}
    return found


def _quantized(module: QuantizedLinear | QuantizedEmbedding) -> dict[str, Any]:
    weight = module.quantized
    facts = {
        "kind": str(weight.kind),
        "group": weight.group,
        "zeros": weight.zeros is not None,
        "out": weight.shape[0],
        "in": weight.shape[1],
    }
    if isinstance(module, QuantizedEmbedding):
        return {"type": "embedding"} | facts | ({} if module.factor == 1.0 else {"factor": module.factor})
    return {"type": "quantized"} | facts | {"activation": module.activation, "bias": module.bias is not None}


def check(config: dict[str, Any], layout: Layout, there: dict[str, tuple[list[int], str]]) -> None:
    """Raise unless a config and a layout ask for exactly the tensors that the weights file has.

    Nothing large is allocated to find that out, whatever the two say.

    Args:
        there: name -> shape and type, as the file's header gives them.

    Raises ValueError, and whatever building a model from a config that is none of ours raises.
    """
    if _layers_asked(config) > len(there):
        raise ValueError("its config asks for more layers than there are tensors")
    for name, facts in layout.items():
        _check_facts(name, facts)
    model = _plain(config, torch.float32, torch.device("meta"))
    asked_first = sum(p.numel() for p in model.parameters())
    _put_in(model, layout, torch.float32, torch.device("meta"))
    left = sum(p.numel() for p in model.parameters()) + sum(facts["in"] * facts["out"] for facts in layout.values())
    if asked_first > MOST_TAKEN_OUT * left:
        raise ValueError("its config asks for far more than there is")
    buffers = sum(b.numel() for name, b in model.named_buffers() if name not in there)
    if buffers > MOST_BUFFERS:
        raise ValueError("its config asks for tables that no model has")
    asked = {id(t): (name, t) for name, t in reversed(model.state_dict(keep_vars=True).items())}  # tied ones once
    missing = [name for name, _ in asked.values() if name not in there]
    others = there.keys() - {name for name, _ in asked.values()}
    if missing or others:
        raise ValueError(f"{len(missing)} tensors are missing, {len(others)} have no place")
    for name, tensor in asked.values():
        shape, kind = there[name]
        if list(shape) != list(tensor.shape):
            raise ValueError(f"{name} has the shape {list(shape)}, not {list(tensor.shape)}")
        if TYPES.get(kind) != tensor.dtype and not (kind in FLOATS and tensor.dtype in (torch.float32, torch.bfloat16)):
            raise ValueError(f"{name} is kept as {kind}")


def _layers_asked(config: dict[str, Any]) -> int:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return max((c for part in parts for c in map(part.get, LAYER_COUNTS) if isinstance(c, int)), default=0)


def _check_facts(name: str, facts: dict[str, Any]) -> None:
    """Raise ValueError or TypeError for what ``describe`` would never say of a module."""
    sides = [facts.get(side) for side in ("in", "out", *(["rank"] if facts.get("type") == "lowrank" else []))]
    if not all(isinstance(s, int) and not isinstance(s, bool) and 0 < s < 1 << 31 for s in sides):
        raise ValueError(f"{name[:80]} has the sides {sides}")
    if facts.get("type") not in ("lowrank", "linear", "conv1d", "quantized", "embedding"):
        raise ValueError(f"{name[:80]} is of no known type")
    if facts["type"] in ("quantized", "embedding"):
        kind, group = Kind(facts["kind"]), facts["group"]
        if group not in GROUPS or isinstance(group, bool) or (group != -1 and facts["in"] % group):
            raise ValueError(f"{name[:80]} has groups of {str(group)[:20]}")
        if facts.get("activation") not in (None, "dynamic", "static") or (facts["zeros"] and kind != Kind.INT4):
            raise ValueError(f"{name[:80]} has activations or zero points that there are not")
        if not 0 < float(facts.get("factor", 1.0)) < float("inf"):
            raise ValueError(f"{name[:80]} has rows times {str(facts['factor'])[:20]}")


def build(config: dict[str, Any], layout: Layout, dtype: torch.dtype, attention: str | None = None) -> Any:
    """A model with these modules, its numbers not set yet, on the processor; to be checked before."""
    model = _plain(config, dtype, torch.device("cpu"), attention)
    _put_in(model, layout, dtype, torch.device("cpu"))
    model.generation_config = GenerationConfig()
    return model.eval().requires_grad_(False)


def _plain(config: dict[str, Any], dtype: torch.dtype, device: torch.device, attention: str | None = None) -> Any:
    """What the config builds."""
    values = dict(config)
    return _skeleton(AutoConfig.for_model(values.pop("model_type"), **values), dtype, device, attention)


def _put_in(model: Any, layout: Layout, dtype: torch.dtype, device: torch.device) -> None:
    """Put the modules of a layout in the places of those that the config has built."""
    for name, facts in layout.items():
        if not isinstance(model.get_submodule(name), (nn.Linear, nn.Embedding, Conv1D)):
            raise ValueError(f"{name[:80]} is no matrix")
        with torch.device("meta"):
            made = _module(facts, dtype)
        replace_module(model, name, made if device.type == "meta" else made.to_empty(device=device))
    if getattr(model.config, "tie_word_embeddings", False):
        tie(model)


def tie(model: Any) -> None:
    """Have a quantized embedding read the output layer's codes, kept once; to be called again after a move."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, QuantizedLinear) and isinstance(embedding, QuantizedEmbedding):
        embedding.tie(head)


def _skeleton(config: Any, dtype: torch.dtype, device: torch.device, attention: str | None = None) -> Any:
    # from_config writes the attention it chose into the config that it is given.
    config = copy.deepcopy(config)
    with no_init_weights(), device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    return model


def _module(facts: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    n, k = int(facts["out"]), int(facts["in"])
    if facts["type"] == "lowrank":
        rank = int(facts["rank"])
        first = nn.Linear(k, rank, bias=False, dtype=dtype)
        return LowRankLinear(first, nn.Linear(rank, n, bias=bool(facts["bias"]), dtype=dtype))
    if facts["type"] == "linear":
        return nn.Linear(k, n, bias=bool(facts["bias"]), dtype=dtype)
    if facts["type"] == "conv1d":
        return Conv1D(n, k).to(dtype)
    weight = _empty(Kind(facts["kind"]), n, k, int(facts["group"]), bool(facts["zeros"]))
    if facts["type"] == "embedding":
        return QuantizedEmbedding(weight, dtype, float(facts.get("factor", 1.0)))
    bias = torch.empty(n, dtype=dtype) if facts["bias"] else None
    scale = torch.ones(()) if facts["activation"] == "static" else None
    return QuantizedLinear.from_weight(weight, bias, facts["activation"], scale)


def _empty(kind: Kind, n: int, k: int, group: int, zeros: bool) -> QuantizedWeight:
    groups = 1 if group == -1 else k // group
    dtype = {Kind.INT8: torch.int8, Kind.FP8: torch.float8_e4m3fn}.get(kind, torch.uint8)
    codes = torch.empty(n, -(-k // 2) if kind.is_half_byte else k, dtype=dtype)
    scales = torch.empty(n, groups, dtype=torch.float32 if group == -1 else torch.bfloat16)
    return QuantizedWeight(
        kind, codes, scales, torch.empty(n, groups, dtype=torch.int8) if zeros else None, group, (n, k)
    )


def without_layers(model: Any, kept: list[int]) -> None:
    """Keep these decoder layers of ``model``, in their order, and have its config say so."""
    layers = layers_of(model)
    name = next(n for n, m in model.named_modules() if m is layers)
    config = model.config.get_text_config()
    count = len(layers)
    replace_module(model, name, nn.ModuleList(layers[i] for i in kept))
    for key in PER_LAYER:
        entries = getattr(config, key, None)
        if isinstance(entries, (list, tuple)) and len(entries) == count:
            setattr(config, key, [entries[i] for i in kept])
    for key in LAYER_COUNTS:
        if getattr(config, key, None) == count:
            setattr(config, key, len(kept))
            break
    for index, layer in enumerate(layers_of(model)):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
