"""Quantization of a model's matrices, in place: each becomes a module that keeps few bits of each weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.compress.anatomy import (
    head_of,
    is_tied,
    layers_of,
    linears_of,
    matrix,
    replace_module,
)
from engine.compress.linears import QuantizedEmbedding, QuantizedLinear
from engine.compress.rounding import clipped, gptq
from engine.compress.scaling import check_scalable, scale_inputs
from engine.compress.walk import Sums, Walk
from engine.compress.work import Work
from kernels.linear.weight import Kind, QuantizedWeight, quantize
from spec.compression.choices import Grouping, Head, Ranges, Rounding
from spec.compression.quantize import Int8Dynamic, Int8Static, Quantize
from spec.errors import SpecError

KINDS = {
    "int8": Kind.INT8,
    "int8-dynamic": Kind.INT8,
    "int8-static": Kind.INT8,
    "int4": Kind.INT4,
    "nf4": Kind.NF4,
    "fp8": Kind.FP8,
}


@dataclass(frozen=True, slots=True)
class Format:
    """What a matrix becomes: ``group`` -1 for one scale a row, ``activation`` None, ``dynamic`` or ``static``."""

    kind: Kind
    group: int = -1
    zero_points: bool = False
    activation: str | None = None


def quantize_model(work: Work, step: Quantize) -> None:
    """Quantize every matrix of the layers, and the output layer where ``step`` says so. Raises SpecError."""
    head = getattr(step, "head", Head.SAME) is Head.SAME
    wanted = _format(step, work.model, head)
    rounding = getattr(step, "rounding", Rounding.NEAREST)
    if rounding is Rounding.NEAREST and not isinstance(step, Int8Static):
        _by_themselves(work, wanted)
        sums = None
    else:
        sums = _by_their_inputs(work, step, wanted, rounding)
    if head:
        _quantize_head(work, wanted, step, rounding, sums)
    work.tell_untouched()
    work.facts["format"] = str(wanted.kind)
    work.facts["group"] = wanted.group


def group_size(grouping: Grouping, widths: set[int], what: str) -> int:
    """The group as a number, -1 for whole rows. SpecError where it does not divide the rows of every matrix."""
    if grouping is Grouping.ROW:
        return -1
    sizes = (128, 64, 32) if grouping is Grouping.AUTO else (int(grouping),)
    found = next((size for size in sizes if all(w % size == 0 for w in widths)), None)
    if found is not None:
        return found
    odd = min(w for w in widths if w % sizes[-1])
    smaller = "a smaller group, or row" if sizes[-1] > 32 else "row"
    raise SpecError(
        f"{what}: groups of {sizes[-1]} do not divide a matrix with {odd} inputs; choose {smaller}.",
        field="compression",
    )


def _format(step: Quantize, model: Any, head: bool) -> Format:
    kind = KINDS[step.name]
    widths = {m.shape[1] for m in _matrices(model)}
    if not widths:
        raise SpecError("The layers of this model hold no matrices that are known here.", field="compression")
    if head and (output := head_of(model)) is not None:
        widths.add(output.in_features)
    group = group_size(step.group, widths, step.name) if kind.is_half_byte else -1  # type: ignore[attr-defined]
    activation = {Int8Dynamic: "dynamic", Int8Static: "static"}.get(type(step))
    return Format(kind, group, getattr(step, "ranges", None) is Ranges.ASYMMETRIC, activation)


def _matrices(model: Any) -> Iterator[torch.Tensor]:
    return (matrix(m) for _, m in linears_of(layers_of(model)))


def _by_themselves(work: Work, wanted: Format) -> None:
    layers = layers_of(work.model)
    for index, layer in enumerate(layers):
        work.at("Rounding layer", index + 1, len(layers))
        for name, module in list(linears_of(layer)):
            replace_module(layer, name, made(module, quantize(matrix(module), wanted.kind, **_how(wanted)), wanted))


def _by_their_inputs(work: Work, step: Quantize, wanted: Format, rounding: Rounding) -> Sums | None:
    """Rounded as the inputs of each matrix ask for; returns what the output layer reads."""
    static = isinstance(step, Int8Static)
    if rounding is Rounding.AWQ:
        check_scalable(work.model)
    walk = Walk(work, gram=not static, spread=static)
    total = len(layers_of(work.model))
    for index, layer in walk.places():
        work.at("Rounding layer", index + 1, total)
        kept = work.checkpoint.get(f"layer-{index}")
        if kept is not None:
            put_back(layer, kept[0], {name: wanted for name, _ in linears_of(layer)})
            continue
        sums = walk.sums(index, layer)
        if rounding is Rounding.AWQ:
            scale_inputs(layer, sums, wanted)
        for name, module in list(linears_of(layer)):
            work.ask()
            weight = rounded(matrix(module), sums.get(name), wanted, rounding)
            scale = _step_of(sums.get(name), step) if static else None
            replace_module(layer, name, made(module, weight, wanted, scale))
        work.checkpoint.put(f"layer-{index}", layer.state_dict())
    return walk.head()


def rounded(weight: torch.Tensor, sums: Sums | None, wanted: Format, rounding: Rounding) -> QuantizedWeight:
    """``sums`` None: no text has reached the matrix, so it is rounded by itself."""
    if rounding is Rounding.NEAREST or sums is None:
        return quantize(weight, wanted.kind, **_how(wanted))
    assert sums.gram is not None
    return (gptq if rounding is Rounding.GPTQ else clipped)(weight, sums.gram, wanted.kind, **_how(wanted))


def _step_of(sums: Sums | None, step: Quantize) -> torch.Tensor:
    """The step between two codes of activations whose range holds the wanted share of them."""
    assert isinstance(step, Int8Static)
    if sums is None:
        return torch.ones(()) / 127
    seen = torch.cat(sums.largest)
    place = max(1, round(len(seen) * step.percentile / 100))
    largest = seen.kthvalue(place).values
    return (largest / 127).clamp(min=torch.finfo(torch.float32).tiny).cpu()


def _quantize_head(work: Work, wanted: Format, step: Quantize, rounding: Rounding, sums: Sums | None) -> None:
    """The output layer; the embedding tied to it then reads the same codes."""
    model, head = work.model, head_of(work.model)
    if head is None:
        return
    # AWQ has no module before the output layer to scale, so there it is the search for ranges alone.
    weight = rounded(matrix(head), sums, wanted, rounding)
    scale = _step_of(sums, step) if sums is not None and wanted.activation == "static" else None
    put_head(model, made(head, weight, wanted, scale))


def put_head(model: Any, output: QuantizedLinear) -> None:
    """Give a model a quantized output layer; an embedding that was tied to it reads the same codes.

    Raises SpecError for a tied embedding that does something unknown to its rows.
    """
    if is_tied(model):
        embedding = model.get_input_embeddings()
        factor = _factor_of(embedding)
        model.set_input_embeddings(QuantizedEmbedding(output.quantized, embedding.weight.dtype, factor))
    model.set_output_embeddings(output)


@torch.no_grad()
def _factor_of(embedding: Any) -> float:
    """What a model multiplies the rows that it looks up by; SpecError where it does anything else to them."""
    factor, weight = float(getattr(embedding, "embed_scale", 1.0)), embedding.weight
    rows = torch.arange(min(8, len(weight)), device=weight.device)
    if not torch.equal(embedding(rows), weight[rows] * torch.tensor(factor).to(weight)):
        raise SpecError(
            "The embedding of this model, which is tied to its output layer, does more than look up rows; choose "
            "head=keep, which leaves both as they are.",
            field="compression",
        )
    return factor


def made(
    module: nn.Module, weight: QuantizedWeight, wanted: Format, activation_scale: torch.Tensor | None = None
) -> QuantizedLinear:
    """The module that multiplies by a quantized weight in the place of ``module``, with its bias."""
    bias = getattr(module, "bias", None)
    return QuantizedLinear.from_weight(weight, None if bias is None else bias.data, wanted.activation, activation_scale)


def _how(wanted: Format) -> dict[str, Any]:
    return {"group": wanted.group, "zero_points": wanted.zero_points}


def put_back(layer: nn.Module, tensors: dict[str, torch.Tensor], formats: Mapping[str, Format | None]) -> None:
    """A layer as an earlier attempt left it: ``formats`` of its matrices, None for those that were left as they are."""
    device = next(layer.parameters()).device
    for name, module in list(linears_of(layer)):
        wanted = formats[name]
        if wanted is None:
            continue
        parts = {k: tensors[f"{name}.{k}"].to(device) for k in ("codes", "scales", "zeros") if f"{name}.{k}" in tensors}
        n, k = matrix(module).shape
        weight = QuantizedWeight(wanted.kind, parts["codes"], parts["scales"], parts.get("zeros"), wanted.group, (n, k))
        replace_module(layer, name, made(module, weight, wanted, tensors.get(f"{name}.activation_scale")))
    layer.load_state_dict(tensors)
