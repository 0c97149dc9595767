"""Goes through a model layer by layer with the hidden states of sample texts, so that each layer may be changed first.

What a layer sees is what the layers before it, already changed, make of the texts; only one layer's statistics are held
at a time. As in GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.compress.anatomy import layers_of, linears_of, state_of
from engine.compress.texts import batches
from engine.compress.work import Work

ROWS = 8  # texts read at once


class Sums:
    """What is kept of the inputs of one matrix.

    Attributes:
        gram: sum of x x^T over tokens, fp32 [inputs, inputs]; None where only the sizes were wanted.
        squares: sum of x^2 for each input, fp32 [inputs]; ``sizes``: sum of |x|.
        count: tokens.
        largest: |x| of a share of the tokens, for ranges; empty where they were not wanted.
    """

    def __init__(self, inputs: int, device: torch.device, gram: bool, spread: bool) -> None:
        self.gram = torch.zeros(inputs, inputs, device=device) if gram else None
        self.squares = torch.zeros(inputs, device=device)
        self.sizes = torch.zeros(inputs, device=device)
        self.count = 0
        self.largest: list[torch.Tensor] = []
        self._spread = spread

    def add(self, x: torch.Tensor) -> None:
        """Take in the inputs of some tokens, [tokens, inputs]."""
        x = x.float()
        if self.gram is not None:
            self.gram.addmm_(x.T, x)
        self.squares += x.square().sum(0)
        self.sizes += x.abs().sum(0)
        self.count += len(x)
        if self._spread:
            flat = x.abs().flatten()
            step = max(1, len(flat) >> 16)  # a tensor's quantile is not better known from more than this
            while math.gcd(step, x.shape[1]) > 1:  # else the same few inputs of each token would be looked at
                step += 1
            self.largest.append(torch.cat([flat[::step], flat.max()[None]]))


class Walk:
    """``for index, layer, sums in Walk(work).layers(): ...`` changes layer after layer.

    Args:
        work: its model, in the number format in which statistics are to be taken; its measured texts are read.
        gram: whether x x^T is summed up; ``spread``: whether magnitudes are kept for quantiles.
    """

    def __init__(self, work: Work, *, gram: bool = True, spread: bool = False) -> None:
        model, texts = work.model, work.texts.measured
        self._ask = work.ask
        self._model, self._layers = model, layers_of(model)
        self._gram, self._spread = gram, spread
        self._device = next(model.parameters()).device
        self._keeps: list[torch.Tensor] = []
        self.states: list[torch.Tensor] = []
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        done = 0
        for batch in batches(texts, ROWS, work.tokenizer.pad_id):
            work.at("Reading sample text", done, len(texts))
            done += len(batch.ids)
            state, calls = _entered(model, self._layers, batch.ids.to(self._device))
            self.states.append(state)
            self._calls.append(calls)
            self._keeps.append(batch.there.to(self._device))

    def layers(self) -> Iterator[tuple[int, nn.Module, dict[str, Sums]]]:
        """Each layer with the sums of its matrices' inputs, by name; it may be changed before the next is asked for."""
        for index, layer in self.places():
            yield index, layer, self.sums(index, layer)

    @torch.no_grad()
    def places(self) -> Iterator[tuple[int, nn.Module]]:
        """Each layer, for those who want the sums of some alone."""
        for index, layer in enumerate(self._layers):
            yield index, layer
            self.states = list(self._through(index, layer))
            for calls in self._calls:
                calls[index] = ((), {})

    @torch.no_grad()
    def head(self) -> Sums:
        """The sums of the output layer's inputs; to be asked for when all layers are done."""
        norm = _last_norm(self._model, self._layers)
        found: Sums | None = None
        for state, keep in zip(self.states, self._keeps, strict=True):
            x = norm(state)[keep]
            found = found or Sums(x.shape[-1], self._device, self._gram, self._spread)
            found.add(x)
        assert found is not None
        return found

    def change(self, before: list[torch.Tensor]) -> float:
        """One less the mean cosine between these hidden states and the present ones."""
        cosines = [
            torch.cosine_similarity(a[keep].float(), b[keep].float(), -1)
            for a, b, keep in zip(before, self.states, self._keeps, strict=True)
        ]
        return 1.0 - float(torch.cat(cosines).mean())

    @torch.no_grad()
    def sums(self, index: int, layer: nn.Module) -> dict[str, Sums]:
        """Of the inputs of the matrices of a layer that is not changed yet, by name; none of one that read nothing."""
        modules = dict(linears_of(layer))
        sums: dict[str, Sums] = {}
        with _watched(modules) as seen:
            for i, _ in enumerate(self._through(index, layer)):
                shared: dict[int, Sums] = {}  # several matrices read one tensor: it is summed up once
                for name, x in seen.items():
                    chosen = _chosen(x, self._keeps[i])
                    if id(x) in shared:
                        sums[name] = shared[id(x)]
                        continue
                    if name not in sums:
                        sums[name] = Sums(chosen.shape[-1], self._device, self._gram, self._spread)
                    sums[name].add(chosen)
                    shared[id(x)] = sums[name]
                seen.clear()
        return sums

    def _through(self, index: int, layer: nn.Module) -> Iterator[torch.Tensor]:
        for state, calls in zip(self.states, self._calls, strict=True):
            self._ask()
            yield state_of(layer(state, *calls[index][0], **calls[index][1]))


def _chosen(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The rows of real tokens; where the module reads tokens in another order than [rows, width], all of them."""
    return x[keep] if x.shape[:2] == keep.shape else x.reshape(-1, x.shape[-1])


@torch.no_grad()
def _entered(
    model: Any, layers: nn.ModuleList, ids: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The first layer's hidden states, and with what else each layer is called."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    first: list[torch.Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        first.append(args[0] if args else kwargs["hidden_states"])
        del first[1:]
        calls.append((args[1:], rest))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return first[0], calls


def _last_norm(model: Any, layers: nn.ModuleList) -> nn.Module:
    """What stands between the last layer and the output layer."""
    names = [n for n, m in model.named_modules() if m is layers]
    inner = model.get_submodule(names[0].rpartition(".")[0])
    norms = [m for _, m in inner.named_children() if "norm" in type(m).__name__.lower() and m is not layers]
    return norms[-1] if norms else nn.Identity()


@contextmanager
def _watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """The input of each module in the last pass, by name."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        return lambda _, args: seen.__setitem__(name, args[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
