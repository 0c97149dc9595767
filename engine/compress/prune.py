"""Pruning of single weights: they become zero, each matrix keeps its size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from engine.compress.anatomy import is_linear, layers_of, linears_of, matrix
from engine.compress.errors import effective
from engine.compress.linears import QuantizedLinear
from engine.compress.shrink import counts, nothing_goes, shrink, sizes
from engine.compress.train import fine_tune, load_weights, weights_of, zeros_in
from engine.compress.walk import Sums, Walk
from engine.compress.work import Work
from spec.compression.choices import Criterion, Scope, Structure
from spec.compression.reduce import Prune
from spec.errors import SpecError


def prune_model(work: Work, step: Prune) -> None:
    """Take out what ``step`` says, in its rounds, each followed by its fine-tuning. Raises SpecError."""
    whole = sizes(work.model, step) if step.shrinks else []
    if not step.shrinks:
        _check(work.model, step)
    for turn in range(1, step.rounds + 1):
        share = step.level * turn / step.rounds
        take = f" (round {turn} of {step.rounds})" if step.rounds > 1 else ""
        work.say(f"Pruning {share:.0%} of the {step.structure}{take}")
        if step.shrinks:
            shrink(work, step, share, whole)
            if turn == step.rounds and counts(work.model, step) == whole:
                raise nothing_goes(step, whole)
        else:
            _zero(work, step, share)
        if step.recover:
            _recover(work, step, turn)
    work.tell_untouched()
    if not step.shrinks:
        work.facts["zeros"] = zeros_of(work.model)


def _check(model: Any, step: Prune) -> None:
    """Raise SpecError where there is nothing to take out, or not in fours."""
    widths = {name: matrix(m).shape[1] for name, m in linears_of(layers_of(model))}
    if not widths:
        raise SpecError(
            "The layers of this model hold no matrices that are known here; choose structure layers.",
            field="compression.prune.structure",
        )
    odd = next((name for name, width in widths.items() if width % 4), None)
    if step.structure is Structure.TWO_OF_FOUR and odd is not None:
        raise SpecError(
            f"2:4 needs rows of a multiple of 4 weights; layer {odd} has {widths[odd]}.",
            field="compression.prune.structure",
        )


def zeros_of(model: Any) -> dict[str, float]:
    """Matrix -> share of its weights that are zero, whatever is kept of it."""
    return {
        name: float((effective(m) == 0).float().mean())
        for name, m in layers_of(model).named_modules()
        if is_linear(m) or isinstance(m, QuantizedLinear)
    }


def _recover(work: Work, step: Prune, turn: int) -> None:
    tag = f"round-{turn}"
    done = work.checkpoint.get(f"{tag}-done")
    if done is not None:
        load_weights(work.model, done[0])
        work.facts.setdefault("loss", {})[tag] = done[1]["curve"]
        return
    fine_tune(work, steps=step.recover, rate=step.rate, batch=step.batch, tag=tag, masks=zeros_in(work.model))
    work.checkpoint.put(f"{tag}-done", weights_of(work.model), {"curve": work.facts["loss"][tag]})


def _zero(work: Work, step: Prune, share: float) -> None:
    if step.among is Scope.GLOBAL:
        _everywhere(work, step, share)
        return
    total = len(layers_of(work.model))
    for index, layer, sums in _layers(work, step):
        work.at("Pruning layer", index + 1, total)
        for name, module in linears_of(layer):
            scores = _scores(matrix(module), sums.get(name))
            keep = _two_of_four(scores) if step.structure is Structure.TWO_OF_FOUR else _best(scores, step, share)
            matrix(module).mul_(keep)


def _everywhere(work: Work, step: Prune, share: float) -> None:
    """The lowest scores of all matrices together: each first divided by its matrix's mean, or deep layers would go."""
    scores: dict[nn.Module, torch.Tensor] = {}
    for _, layer, sums in _layers(work, step):
        for name, module in linears_of(layer):
            found = _scores(matrix(module), sums.get(name))
            scores[module] = (found / found.mean().clamp(min=1e-30)).to("cpu", torch.float32)
    every = torch.cat([s.flatten() for s in scores.values()])
    count = round(share * len(every))
    if count == 0:
        return
    threshold = every.kthvalue(count).values
    for module, found in scores.items():
        matrix(module).mul_((found > threshold).to(matrix(module).device))


def _layers(work: Work, step: Prune) -> Iterator[tuple[int, nn.Module, dict[str, Sums]]]:
    if step.method is Criterion.MAGNITUDE:
        for index, layer in enumerate(layers_of(work.model)):
            yield index, layer, {}
        return
    yield from Walk(work, gram=False).layers()


def _scores(weight: torch.Tensor, sums: Sums | None) -> torch.Tensor:
    """|w|, times the norm of the input it multiplies where that is known (Wanda, arXiv 2306.11695, equation 1)."""
    sizes = weight.float().abs()
    return sizes if sums is None else sizes * sums.squares.sqrt()


def _best(scores: torch.Tensor, step: Prune, share: float) -> torch.Tensor:
    """Which weights stay, of those of each output or of the whole matrix."""
    if step.among is Scope.OUTPUT:
        count = round(share * scores.shape[1])
        order = scores.argsort(1)
        keep = torch.ones_like(scores, dtype=torch.bool)
        return keep.scatter_(1, order[:, :count], False)
    count = round(share * scores.numel())
    order = scores.flatten().argsort()
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[order[:count]] = False
    return keep.view(scores.shape)


def _two_of_four(scores: torch.Tensor) -> torch.Tensor:
    n, k = scores.shape
    groups = scores.view(n, -1, 4)
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter_(2, groups.topk(2, -1).indices, True).view(n, k)
