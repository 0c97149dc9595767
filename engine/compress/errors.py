"""How far a compressed model is from the one it was made of, matrix by matrix, layer by layer and in what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.compress.anatomy import head_of, is_linear, layers_name, layers_of, linears_of, matrix, state_of
from engine.compress.linears import LowRankLinear, QuantizedLinear
from engine.compress.texts import Batch, Text, batches
from kernels.linear.weight import dequantize

ROWS = 4


def errors_of(
    parent: Any, made: Any, texts: Sequence[Text], pad: int, kept: Sequence[int], on_batch: Callable[[int, int], None]
) -> dict[str, Any]:
    """Figures of ``made`` against ``parent`` on held-out texts; of solved questions, on the solutions.

    Args:
        kept: the parent's layer that each layer of ``made`` was.
        on_batch: told how many texts of how many were read; may raise Cancelled.

    Returns:
        ``logit_kl``: mean over tokens of KL(parent || made) in nats; ``top1_agreement``; ``perplexity_parent`` and
        ``perplexity`` per token; ``matrices``: name -> |difference| / |weight| (Frobenius); ``layers``: for each layer
        |difference| / |state| of the hidden states it gives, in the order of ``made``; ``state``: the same of the last
        layer of each, whichever it was. None where sizes differ.
    """
    states, logits = _States(parent, made, kept), _Logits()
    done = 0
    for batch in batches(texts, ROWS, pad):
        with states.noted(batch.there), torch.inference_mode():
            found = [m(input_ids=batch.ids.to(_device(m)), use_cache=False).logits for m in (parent, made)]
        logits.add(batch, *(f.float().cpu() for f in found))
        done += len(batch.ids)
        on_batch(done, len(texts))
    *layers, last = states.figures()
    return logits.figures() | {"layers": layers, "state": last, "matrices": weight_errors(parent, made, kept)}


def weight_errors(parent: Any, made: Any, kept: Sequence[int]) -> dict[str, float | None]:
    """Name in ``made`` -> relative error of the matrix; None where it has another size than its parent's."""
    where = layers_name(parent)
    found: dict[str, float | None] = {}
    for index, layer in enumerate(layers_of(made)):
        before = layers_of(parent)[kept[index]]
        for name, module in linears_of(before):
            found[f"{where}.{index}.{name}"] = _distance(matrix(module), layer.get_submodule(name))
    head = head_of(parent)
    if head is not None:
        name = next(n for n, m in parent.named_modules() if m is head)
        found[name] = _distance(head.weight.data, made.get_output_embeddings())
    return found


def effective(module: nn.Module) -> torch.Tensor:
    """The matrix [outputs, inputs] that a module multiplies by, whatever it keeps of it."""
    if isinstance(module, QuantizedLinear):
        return dequantize(module.quantized)
    if isinstance(module, LowRankLinear):
        return effective(module.second) @ effective(module.first)
    return matrix(module).float()


def _distance(before: torch.Tensor, module: nn.Module) -> float | None:
    if not (is_linear(module) or isinstance(module, (QuantizedLinear, LowRankLinear))):
        return None
    after = effective(module)
    if after.shape != before.shape:
        return None
    before = before.float().to(after.device)
    return float((after - before).norm() / before.norm().clamp(min=1e-12))


class _States:
    """Differences of hidden states, layer by layer, and behind them of what the last layers give."""

    def __init__(self, parent: Any, made: Any, kept: Sequence[int]) -> None:
        self._pairs = [(layers_of(parent)[before], layer) for before, layer in zip(kept, layers_of(made), strict=True)]
        self._pairs.append((layers_of(parent)[-1], layers_of(made)[-1]))
        self._sums = [[0.0, 0.0] for _ in self._pairs]

    @contextmanager
    def noted(self, keep: torch.Tensor) -> Iterator[None]:
        """Take in what the layers give in one pass of each model, the parent's first."""
        held: dict[int, torch.Tensor] = {}

        def first(index: int) -> Any:
            return lambda _, __, out: held.__setitem__(index, state_of(out)[keep].float().cpu())

        def second(index: int) -> Any:
            def add(_: nn.Module, __: Any, out: Any) -> None:
                before = held.pop(index)
                self._sums[index][0] += float((state_of(out)[keep].float().cpu() - before).square().sum())
                self._sums[index][1] += float(before.square().sum())

            return add

        handles = [p.register_forward_hook(first(i)) for i, (p, _) in enumerate(self._pairs)]
        handles += [m.register_forward_hook(second(i)) for i, (_, m) in enumerate(self._pairs)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def figures(self) -> list[float | None]:
        return [math.sqrt(d / whole) if whole else None for d, whole in self._sums]


class _Logits:
    def __init__(self) -> None:
        self._kl = self._same = self._before = self._after = 0.0
        self._tokens = 0

    def add(self, batch: Batch, parent: torch.Tensor, made: torch.Tensor) -> None:
        following = batch.following[:, None]
        p, q = (logits[batch.learned].log_softmax(-1) for logits in (parent, made))
        self._kl += float((p.exp() * (p - q)).sum())
        self._same += float((p.argmax(-1) == q.argmax(-1)).sum())
        self._before -= float(p.gather(1, following).sum())
        self._after -= float(q.gather(1, following).sum())
        self._tokens += len(following)

    def figures(self) -> dict[str, Any]:
        n = max(1, self._tokens)
        return {
            "tokens": self._tokens,
            "logit_kl": max(0.0, self._kl / n),
            "top1_agreement": self._same / n,
            "perplexity_parent": math.exp(min(80.0, self._before / n)),
            "perplexity": math.exp(min(80.0, self._after / n)),
        }


def _device(model: Any) -> torch.device:
    found: torch.device = next(model.parameters()).device
    return found
