"""Structured pruning: neurons, heads and layers are taken out, and the tensors get smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.compress.anatomy import Heads, Mlp, heads_of, layers_of, linears_of, matrix, mlp_of, set_matrix
from engine.compress.layout import without_layers
from engine.compress.texts import batches
from engine.compress.train import next_token_loss
from engine.compress.walk import ROWS, Walk
from engine.compress.work import Work
from engine.runtime.family import FAMILY
from spec.compression.choices import Criterion, Scope, Structure
from spec.compression.reduce import Prune
from spec.errors import SpecError

MULTIPLE = 32  # of neurons that stay, where there were such a multiple: groups of quantized weights must divide them


def sizes(model: Any, step: Prune) -> list[int]:
    """How many neurons or heads each layer has; of layers, how many there are.

    Raises SpecError where ``step`` cannot be done to the model, or would take nothing out.
    """
    found = counts(model, step)
    unit = _unit(found, step)
    if max(found) <= unit or (step.among is Scope.LAYER and _left(found, step.level, unit) == found):
        raise nothing_goes(step, found)
    return found


def counts(model: Any, step: Prune) -> list[int]:
    """As ``sizes``, whatever ``step`` would take out."""
    layers = layers_of(model)
    if step.structure is Structure.LAYERS:
        return [len(layers)]
    if step.structure is Structure.NEURONS:
        return [matrix(_known(mlp_of(layer), "an MLP", step).reader).shape[1] for layer in layers]
    _check_heads(model)
    return [_known(heads_of(layer), "attention heads", step).count for layer in layers]


def nothing_goes(step: Prune, whole: list[int]) -> SpecError:
    """The error for a level that takes nothing out."""
    what = {Structure.LAYERS: "layers", Structure.HEADS: "key/value heads of a layer"}.get(step.structure, "neurons")
    unit = _unit(whole, step)
    together = f"the {unit} that go together" if unit > 1 else "one"
    return SpecError(
        f"A level of {step.level:g} takes none of this model's {max(whole)} {what} out: it is less than {together}, or "
        "no other would stay. Choose a higher level, or another structure.",
        field="compression.prune.level",
    )


def shrink(work: Work, step: Prune, share: float, whole: list[int]) -> None:
    """Take as many neurons, heads or layers out of ``work.model`` as leaves the rest of ``share`` of ``whole``.

    Args:
        whole: what ``sizes`` gave before the first round.

    Raises SpecError.
    """
    {Structure.NEURONS: _neurons, Structure.HEADS: _heads, Structure.LAYERS: _layers}[step.structure](
        work, step, share, whole
    )


def _unit(whole: list[int], step: Prune) -> int:
    """How many go together."""
    return MULTIPLE if step.structure is Structure.NEURONS and all(n % MULTIPLE == 0 for n in whole) else 1


def _left(whole: list[int], share: float, unit: int) -> list[int]:
    """How many of each layer stay: a multiple of ``unit``, and at least one."""
    return [max(unit, round(n * (1 - share) / unit) * unit) for n in whole]


# ---- neurons


def _neurons(work: Work, step: Prune, share: float, whole: list[int]) -> None:
    mlps = [_known(mlp_of(layer), "an MLP", step) for layer in layers_of(work.model)]
    scores = _importance(work, step, mlps, lambda m: m.reader, _mlp_magnitude, lambda m: 1)
    for mlp, kept in zip(mlps, _chosen(scores, share, step.among, _unit(whole, step), whole), strict=True):
        for maker in mlp.makers:
            set_matrix(maker, matrix(maker)[kept], None if maker.bias is None else maker.bias.data[kept])
        set_matrix(mlp.reader, matrix(mlp.reader)[:, kept])
    left = {matrix(m.reader).shape[1] for m in mlps}
    _tell_config(work.model, left, ("intermediate_size", "n_inner", "ffn_dim"))
    work.facts["neurons"] = [matrix(m.reader).shape[1] for m in mlps]


def _mlp_magnitude(mlp: Mlp) -> torch.Tensor:
    made = sum(matrix(m).float().square().sum(1) for m in mlp.makers)
    return (made * matrix(mlp.reader).float().square().sum(0)).sqrt()  # type: ignore[union-attr]


# ---- heads


def _check_heads(model: Any) -> None:
    if model.config.model_type not in FAMILY:
        raise SpecError(
            f"Heads are taken out of the Llama family ({', '.join(FAMILY)}), and this is {model.config.model_type}; "
            "neurons and layers can be.",
            field="compression.prune.structure",
        )


def _heads(work: Work, step: Prune, share: float, whole: list[int]) -> None:
    config = work.model.config
    heads = [_known(heads_of(layer), "attention heads", step) for layer in layers_of(work.model)]
    scores = _importance(work, step, heads, lambda h: h.o, _head_magnitude, lambda h: h.group * h.dim)
    for one, kept in zip(heads, _chosen(scores, share, step.among, 1, whole), strict=True):
        place = torch.arange(one.dim, device=kept.device)
        own = (kept[:, None] * one.dim + place).flatten()
        group = one.group * one.dim
        wide = (kept[:, None] * group + torch.arange(group, device=kept.device)).flatten()
        for module, rows in ((one.q, wide), (one.k, own), (one.v, own)):
            set_matrix(module, matrix(module)[rows], None if module.bias is None else module.bias.data[rows])
        set_matrix(one.o, matrix(one.o)[:, wide])
    counts = [matrix(h.k).shape[0] // h.dim for h in heads]
    config.head_dim = heads[0].dim
    # Some configs refuse a count of heads that does not divide the width; then the layout alone tells the sizes.
    if len(set(counts)) == 1 and config.hidden_size % (counts[0] * heads[0].group) == 0:
        config.num_key_value_heads, config.num_attention_heads = counts[0], counts[0] * heads[0].group
    work.facts["kv_heads"] = counts


def _head_magnitude(one: Heads) -> torch.Tensor:
    made = sum(matrix(m).float().square().view(one.count, -1).sum(1) for m in (one.q, one.k, one.v))
    read = matrix(one.o).float().square().sum(0).view(one.count, -1).sum(1)
    return (made * read).sqrt()  # type: ignore[union-attr]


# ---- layers


def _layers(work: Work, step: Prune, share: float, whole: list[int]) -> None:
    count = len(layers_of(work.model))
    gone = count - _left(whole, share, 1)[0]
    if gone <= 0:  # a round too short for a whole layer
        return
    scores = _influence(work) if step.method is Criterion.ACTIVATION else _layer_taylor(work)
    kept = sorted(sorted(range(count), key=lambda i: -scores[i])[: count - gone])
    without_layers(work.model, kept)
    before = work.facts["kept"]
    work.facts["kept"] = [before[i] for i in kept]


def _influence(work: Work) -> list[float]:
    """One less the mean cosine of a layer's input and output (Men et al. 2024, ShortGPT, arXiv 2403.03853)."""
    walk = Walk(work, gram=False)
    before, found = walk.states, []
    for index, _ in walk.places():
        if index:
            found.append(walk.change(before))
            before = walk.states
    return [*found, walk.change(before)]


def _layer_taylor(work: Work) -> list[float]:
    layers = layers_of(work.model)
    sums = [0.0] * len(layers)

    def add() -> None:
        for index, layer in enumerate(layers):
            sums[index] += sum(
                float((p.detach() * p.grad).abs().sum()) for p in layer.parameters() if p.grad is not None
            )

    _with_gradients(work, add)
    return sums


# ---- what is least important


def _importance(
    work: Work, step: Prune, parts: list[Any], reader: Callable[[Any], nn.Module],
    magnitude: Callable[[Any], torch.Tensor], width: Callable[[Any], int],
) -> list[torch.Tensor]:  # fmt: skip
    """For each layer, the importance of its neurons or heads; ``width``: columns of the reader that belong to one."""
    if step.method is Criterion.MAGNITUDE:
        return [magnitude(part) for part in parts]
    if step.method is Criterion.TAYLOR:
        return _taylor(work, parts, reader, width)
    found = []
    for index, layer, sums in Walk(work, gram=False).layers():
        part = parts[index]
        name = next(n for n, m in linears_of(layer) if m is reader(part))
        effect = sums[name].squares * matrix(reader(part)).float().square().sum(0)
        found.append(effect.view(-1, width(part)).sum(1).sqrt())
    return found


def _taylor(
    work: Work, parts: list[Any], reader: Callable[[Any], nn.Module], width: Callable[[Any], int]
) -> list[torch.Tensor]:
    """|sum of weight times gradient| of each one's columns: how the loss changes (LLM-Pruner, section 3.2)."""
    sums = [torch.zeros(matrix(reader(p)).shape[1] // width(p), device=work.device) for p in parts]

    def add() -> None:
        for total, part in zip(sums, parts, strict=True):
            module = reader(part)
            change = module.weight.data * module.weight.grad
            change = change.T if isinstance(module, Conv1D) else change
            total += change.float().sum(0).view(-1, width(part)).sum(1).abs()

    _with_gradients(work, add)
    return sums


def _with_gradients(work: Work, use: Callable[[], None]) -> None:
    """Call ``use`` after the backward pass of every batch of the sample texts."""
    model, texts = work.model, work.texts.measured
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    done = 0
    try:
        for batch in batches(texts, ROWS, work.tokenizer.pad_id):
            batch = batch.to(work.device)
            next_token_loss(model, batch).backward()
            use()
            model.zero_grad(set_to_none=True)
            done += len(batch.ids)
            work.at("Measuring gradients: text", done, len(texts))
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)


def _chosen(scores: list[torch.Tensor], share: float, scope: Scope, unit: int, whole: list[int]) -> list[torch.Tensor]:
    """For each layer the places that stay, in order, a multiple of ``unit`` of them and at least one."""
    if scope is Scope.GLOBAL:
        even = [s / s.mean().clamp(min=1e-30) for s in scores]
        gone = max(0, sum(len(s) for s in scores) - round(sum(whole) * (1 - share)))
        threshold = torch.cat(even).sort().values[gone]
        counts = [max(unit, round(int((s >= threshold).sum()) / unit) * unit) for s in even]
    else:
        counts = _left(whole, share, unit)
    counts = [min(len(s), n) for s, n in zip(scores, counts, strict=True)]
    return [s.topk(n).indices.sort().values for s, n in zip(scores, counts, strict=True)]


def _known(part: Any, what: str, step: Prune) -> Any:
    if part is None:
        raise SpecError(
            f"This model's layers have {what} built in a way that is not known here, so {step.structure} cannot be "
            "taken out; choose weights or layers.",
            field="compression.prune.structure",
        )
    return part


def _tell_config(model: Any, left: set[int], names: tuple[str, ...]) -> None:
    """Where all layers kept as many, the config says so, and the folder loads anywhere."""
    config = model.config.get_text_config()
    if len(left) == 1:
        for name in names:
            if getattr(config, name, None) is not None:
                setattr(config, name, left.pop())
                return
