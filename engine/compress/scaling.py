"""AWQ's scaling: what meets large activations is multiplied, and the activations divided, before rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine.compress.anatomy import heads_of, layers_of, matrix, mlp_of
from engine.compress.rounding import awq_exponent
from engine.compress.walk import Sums
from engine.runtime.family import FAMILY
from spec.errors import SpecError

if TYPE_CHECKING:
    from engine.compress.quantize import Format


def scale_inputs(layer: nn.Module, sums: dict[str, Sums], wanted: Format) -> None:
    """Move a factor for each input of a layer's matrices from the activations to the weights; exact before rounding.

    The factors go into whatever makes the activations: a norm's scale, the rows of the values' matrix, the rows of the
    matrix that is multiplied by the gate. The sums are changed along. ``check_scalable`` is to be asked before.
    """
    names = {module: name for name, module in layer.named_modules()}
    heads, mlp = heads_of(layer), mlp_of(layer)
    assert heads is not None
    assert mlp is not None
    gate, up = mlp.makers

    def move(readers: tuple[nn.Module, ...], makers: tuple[torch.Tensor, ...]) -> None:
        own = [sums[names[r]] for r in readers]
        assert own[0].gram is not None
        sizes = own[0].sizes / max(1, own[0].count)
        how = {"group": wanted.group, "zero_points": wanted.zero_points}
        factors = awq_exponent([matrix(r).float() for r in readers], own[0].gram, sizes, wanted.kind, **how)
        for reader in readers:
            matrix(reader).mul_(factors.to(matrix(reader).dtype))
        for maker in makers:  # rows of a matrix, or the numbers of a norm or bias
            maker.div_(factors.to(maker.dtype).view(-1, *[1] * (maker.dim() - 1)))
        for s in {id(s): s for s in own}.values():
            assert s.gram is not None
            s.gram.div_(factors[:, None]).div_(factors)
            s.sizes.div_(factors)
            s.squares.div_(factors.square())

    move((heads.q, heads.k, heads.v), _numbers(layer.input_layernorm))
    if matrix(heads.v).shape[0] == matrix(heads.o).shape[1]:  # else several query heads share a value head
        move((heads.o,), _numbers(heads.v))
    move((gate, up), _numbers(layer.post_attention_layernorm))
    move((mlp.reader,), _numbers(up))


def check_scalable(model: Any) -> None:
    """Raise SpecError for a model in which the factors have no place."""
    if model.config.model_type not in FAMILY:
        raise SpecError(
            f"awq knows where to put its factors in the Llama family ({', '.join(FAMILY)}), and this is "
            f"{model.config.model_type}; choose rounding gptq.",
            field="compression.int4.rounding",
        )
    if any(heads_of(layer) is None or mlp_of(layer) is None for layer in layers_of(model)):
        raise SpecError(
            "awq needs layers whose matrices are plain, and some of this model's are products of two thin ones; choose "
            "rounding gptq.",
            field="compression.int4.rounding",
        )


def _numbers(module: nn.Module) -> tuple[torch.Tensor, ...]:
    bias = getattr(module, "bias", None)
    return (module.weight.data,) if bias is None else (module.weight.data, bias.data)
