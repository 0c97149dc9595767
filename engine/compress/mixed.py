"""Mixed precision: how much the loss rises when one matrix alone is quantized decides the bits that it gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from engine.compress.anatomy import head_of, layers_of, linears_of, matrix, replace_module
from engine.compress.quantize import Format, group_size, made, put_back, put_head, rounded
from engine.compress.texts import Batch, batches
from engine.compress.walk import ROWS, Walk
from engine.compress.work import Work
from kernels.linear.weight import Kind, dequantize, quantize
from spec.compression.choices import Rounding
from spec.compression.quantize import Mixed

WHOLE = 16  # bits of a matrix that is left as it is, where it is kept in 16
TEXTS = 16  # that the loss is measured on
HEAD = "head"


def mix(work: Work, step: Mixed) -> None:
    """Quantize each matrix to int4 or int8, or leave it, within the mean bits that ``step`` allows."""
    modules = _modules(work.model)
    formats = _formats(modules, step)
    rises = _sensitivity(work, modules, formats)
    sizes = {name: matrix(m).numel() for name, m in modules.items()}
    bits = assign(sizes, rises, step.size, work.saved_bits)
    work.facts["sensitivity"] = {name: {str(b): r for b, r in of.items()} for name, of in rises.items()}
    work.facts["bits"] = bits
    work.tell_untouched()
    work.facts["mean_bits"] = sum(bits[n] * sizes[n] for n in bits) / sum(sizes.values())
    _apply(work, step, formats, bits)


def assign(
    sizes: dict[str, int], rises: dict[str, dict[int, float]], mean: float, whole: int = WHOLE
) -> dict[str, int]:
    """Bits for each matrix: all begin with 4, and the one whose loss falls most for each bit is raised, while it fits.

    Args:
        sizes: weights of each matrix; ``rises``: the loss's rise at 4 and at 8 bits; ``mean``: bits of a weight.
        whole: bits of a matrix that is left as it is.
    """
    bits = dict.fromkeys(sizes, 4)
    left = (mean - 4) * sum(sizes.values())
    while True:
        best, gain, cost = None, 0.0, 0.0
        for name, now in bits.items():
            if now == whole:
                continue
            after = 8 if now == 4 else whole
            price = (after - now) * sizes[name]
            won = rises[name][now] - rises[name].get(after, 0.0)
            if price <= left and won / price > gain:
                best, gain, cost = name, won / price, price
        if best is None:
            return bits
        bits[best] = 8 if bits[best] == 4 else whole
        left -= cost


def _modules(model: Any) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for index, layer in enumerate(layers_of(model)):
        found |= {f"{index}.{name}": m for name, m in linears_of(layer)}
    head = head_of(model)
    return found | ({} if head is None else {HEAD: head})


def _formats(modules: dict[str, nn.Module], step: Mixed) -> dict[int, Format]:
    group = group_size(step.group, {matrix(m).shape[1] for m in modules.values()}, "mixed")
    return {4: Format(Kind.INT4, group, True), 8: Format(Kind.INT8)}


@torch.no_grad()
def _sensitivity(work: Work, modules: dict[str, nn.Module], formats: dict[int, Format]) -> dict[str, dict[int, float]]:
    """Matrix -> bits -> rise of the mean loss, in nats, when it alone is quantized; never below zero."""
    texts = work.texts.measured[:TEXTS]
    some = [b.to(work.device) for b in batches(texts, ROWS, work.tokenizer.pad_id)]
    kept = work.checkpoint.get("sensitivity")
    found: dict[str, dict[int, float]] = {}
    if kept is not None:
        found = {name: {int(b): r for b, r in of.items()} for name, of in kept[1]["rises"].items()}
    before = _loss(work.model, some)
    for done, (name, module) in enumerate(modules.items()):
        work.at("Measuring the sensitivity of matrix", done + 1, len(modules))
        if name in found:
            continue
        weight = matrix(module)
        whole = weight.clone()
        found[name] = {}
        for bits, wanted in formats.items():
            rounded = quantize(whole, wanted.kind, group=wanted.group, zero_points=wanted.zero_points)
            weight.copy_(dequantize(rounded))
            found[name][bits] = max(0.0, _loss(work.model, some) - before)
        weight.copy_(whole)
        if done % 8 == 7:
            work.checkpoint.put("sensitivity", {}, {"rises": found})
    return found


def _loss(model: Any, some: list[Batch]) -> float:
    total, count = 0.0, 0
    for batch in some:
        logits = model(input_ids=batch.ids, use_cache=False).logits[batch.learned].float()
        total += float(F.cross_entropy(logits, batch.following, reduction="sum"))
        count += int(batch.learned.sum())
    return total / max(1, count)


def _apply(work: Work, step: Mixed, formats: dict[int, Format], bits: dict[str, int]) -> None:
    layers = layers_of(work.model)
    walk = None if step.rounding is Rounding.NEAREST else Walk(work)
    for index, layer in enumerate(layers) if walk is None else walk.places():
        work.at("Rounding layer", index + 1, len(layers))
        wanted = {name: formats.get(bits[f"{index}.{name}"]) for name, _ in linears_of(layer)}
        kept = work.checkpoint.get(f"layer-{index}")
        if kept is not None:
            put_back(layer, kept[0], wanted)
            continue
        sums = {} if walk is None else walk.sums(index, layer)
        for name, module in list(linears_of(layer)):
            work.ask()
            chosen = wanted[name]
            if chosen is not None:
                weight = rounded(matrix(module), sums.get(name), chosen, step.rounding)
                replace_module(layer, name, made(module, weight, chosen))
        if walk is not None:
            work.checkpoint.put(f"layer-{index}", layer.state_dict())
    head = head_of(work.model)
    if head is not None and bits[HEAD] in formats:
        chosen = formats[bits[HEAD]]
        put_head(work.model, made(head, rounded(matrix(head), None, chosen, step.rounding), chosen))
