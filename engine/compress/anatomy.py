"""The parts of a model of transformers that can be compressed, found by their kind and place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from spec.errors import ModelError

# Modules of an MLP: those that make its neurons, and the one that reads them.
_MLPS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
)
_QKV, _OUT = ("q_proj", "k_proj", "v_proj"), "o_proj"


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP whose neurons can be taken out: ``makers`` have them as outputs, ``reader`` as inputs."""

    makers: tuple[nn.Module, ...]
    reader: nn.Module


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention whose heads can be taken out, a key/value head with the ``group`` query heads that read it."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    dim: int
    group: int
    count: int


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers, in order. ModelError where the model has none that look alike."""
    lists = [(name, m) for name, m in model.base_model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    outer = [m for name, m in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if not outer:
        raise ModelError("This model is not built of decoder layers, so it cannot be compressed layer by layer.")
    return max(outer, key=_size)


def layers_name(model: Any) -> str:
    """The name of the list of decoder layers, e.g. ``model.layers``."""
    layers = layers_of(model)
    return next(name for name, module in model.named_modules() if module is layers)


def _size(module: nn.Module) -> int:
    return sum(t.numel() for t in (*module.parameters(), *module.buffers()))


def state_of(given: Any) -> Any:
    """The hidden states among what a decoder layer gives, which in some architectures is a tuple."""
    return given[0] if isinstance(given, tuple) else given


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix and nothing else, in one of the two ways transformers has."""
    return type(module) in (nn.Linear, Conv1D)


def linears_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every matrix in a module, in order."""
    return ((name, m) for name, m in module.named_modules() if is_linear(m))


def untouched(model: Any) -> dict[str, int]:
    """Name -> numbers of what in the layers looks like a matrix and is none that is known here: fused experts.

    Steps that change matrices leave these as they are.
    """
    layers, where = layers_of(model), layers_name(model)
    known = {id(m.weight) for _, m in linears_of(layers)}
    return {f"{where}.{n}": p.numel() for n, p in layers.named_parameters() if p.dim() > 1 and id(p) not in known}


def matrix(module: nn.Module) -> Any:
    """The weight [outputs, inputs] of a linear module; a view where the module keeps the transpose."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def set_matrix(module: nn.Module, weight: Any, bias: Any = None) -> None:
    """Give a linear module another weight [outputs, inputs], and bias where one is given; sizes may differ."""
    kept = weight.T if isinstance(module, Conv1D) else weight
    module.weight = nn.Parameter(kept.contiguous(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    if isinstance(module, Conv1D):
        module.nx, module.nf = kept.shape
    else:
        module.out_features, module.in_features = weight.shape


def head_of(model: Any) -> nn.Linear | None:
    """The output layer, where it is a plain matrix."""
    head = model.get_output_embeddings()
    return head if type(head) is nn.Linear else None


def is_tied(model: Any) -> bool:
    """Whether the output layer and the token embedding are one matrix."""
    head = head_of(model)
    return head is not None and head.weight is model.get_input_embeddings().weight


def mlp_of(layer: nn.Module) -> Mlp | None:
    """The MLP of a decoder layer; None where it is built in a way that is not known here."""
    modules = dict(layer.named_modules())
    for makers, reader in _MLPS:
        for name in (n for n in modules if n.rpartition(".")[2] == reader):
            prefix = name.removesuffix(reader)
            parts = [modules.get(prefix + maker) for maker in makers]
            if all(p is not None and is_linear(p) for p in parts) and is_linear(modules[name]):
                return Mlp(tuple(p for p in parts if p is not None), modules[name])
    return None


def heads_of(layer: nn.Module) -> Heads | None:
    """The attention heads of a decoder layer; None where queries, keys and values are not apart."""
    attention = next((m for m in layer.modules() if all(hasattr(m, n) for n in (*_QKV, _OUT))), None)
    if attention is None or not all(is_linear(getattr(attention, n)) for n in (*_QKV, _OUT)):
        return None
    dim = getattr(attention, "head_dim", None)
    if not dim:
        return None
    q, k, v, o = (getattr(attention, n) for n in (*_QKV, _OUT))
    count = matrix(k).shape[0] // dim
    return Heads(q, k, v, o, int(dim), matrix(q).shape[0] // dim // count, count)


def replace_module(root: nn.Module, name: str, made: nn.Module) -> None:
    """Put a module in the place of the one called ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, made)
