"""The product of an input with the matrices of several linear layers, as few calls as they allow, on a GPU.

Matrices are joined where one call can serve them: plain ones, weights quantized alike, int8 weights whose inputs get a
step of their own for each row. The joined matrix is kept once: the modules' own weights become parts of it, or, where
our kernels read another order, are given up until ``close``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from engine.runtime import sparse, vectors
from kernels.linear.packing import pack, pack_bytes, unpack
from kernels.linear.weight import QuantizedWeight


class Product:
    """What ``modules`` give for one input [m, k], side by side: [m, sum of n].

    Nothing in a call waits for the GPU, and what it launches depends on m alone.

    >>> Product([q_proj, k_proj, v_proj])(x)  # doctest: +SKIP
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        kinds = {_kind(m) for m in modules}
        self._parts: list[Any] = []
        try:
            for some in [modules] if len(kinds) == 1 else [[m] for m in modules]:
                self._parts.append(_part(some))
        except BaseException:  # out of memory: what was given up is put back
            self.close()
            raise

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [m, k]."""
        found = [part(x) for part in self._parts]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    @property
    def is_sparse(self) -> bool:
        """Whether sparse tensor cores compute some of it."""
        return any(getattr(part, "is_sparse", False) for part in self._parts)

    @property
    def plain(self) -> list[vectors.Plain]:
        """Its parts over weights in half precision, for which a product with a single row can be chosen."""
        parts = [part for part in self._parts if isinstance(part, _Plain) and not part.is_sparse]
        return [part for part in parts if part.weight.dtype != torch.float32]

    def close(self) -> None:
        """The modules have their own weights again, to the bit."""
        for part in self._parts:
            part.close()
        self._parts.clear()


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(getattr(type(module), "quantized", None), property)


def _kind(module: Any) -> Hashable:
    """What modules must have in common to be joined; a static step is that of one module's inputs."""
    if type(module) is nn.Linear:
        return "plain", module.bias is None
    if not _is_quantized(module) or module.activation == "static":
        return id(module)
    stored = module.quantized
    return module.activation, stored.kind, stored.group, stored.zeros is None, module.bias is None


def _part(modules: Sequence[Any]) -> Any:
    first = modules[0]
    if not _is_quantized(first):
        return _Plain(modules) if type(first) is nn.Linear else _Other(first)
    return _Weights(modules) if first.activation is None else _Bytes(modules)


class _Plain:
    """Weights as they are, or, where two in each four are zero and the GPU has units for that, without the zeros.

    ``rows``: of the weight to a program of our kernel for a single row of inputs; 0 for PyTorch's product.
    """

    rows = 0

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self._modules = modules
        self.weight, self._bias = _joined([m.weight.data for m in modules]), _bias(modules)
        made = sparse.compressed(self.weight)
        self.is_sparse = made is not None
        if made is None:
            self._give(self.weight)
            return
        self.weight = made
        for module in modules:
            module.weight.data = module.weight.data.new_empty(0)

    def _give(self, whole: torch.Tensor) -> None:
        for module, rows in zip(self._modules, _split(whole, self._modules), strict=True):
            module.weight.data = rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.rows and x.shape[0] == 1:
            from kernels.linear.dense import vector

            return vector(x, self.weight, self._bias, rows=self.rows)
        return nn.functional.linear(x, self.weight, self._bias)

    def close(self) -> None:
        """The modules' weights are parts of the joined one and stay so; of a sparse one, they are made again."""
        if self.is_sparse:
            self._give(self.weight.to_dense())


class _Weights:
    """Quantized weights, inputs as they come."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules, self._bias = modules, _bias(modules)
        stored = [m.quantized for m in modules]
        joined = {name: _joined([s.tensors[name] for s in stored]) for name in stored[0].tensors}
        shape = (sum(s.shape[0] for s in stored), stored[0].shape[1])
        self._packed = pack(replace(stored[0], **joined, shape=shape))
        for one in stored:
            _put(one, {name: t.new_empty(0) for name, t in one.tensors.items()})

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        from kernels.linear.triton import linear

        return linear(x, self._packed, self._bias)

    def close(self) -> None:
        whole = unpack(self._packed).tensors
        parts = {name: _split(tensor, self._modules) for name, tensor in whole.items()}
        for i, module in enumerate(self._modules):
            _put(module.quantized, {name: rows[i] for name, rows in parts.items()})


class _Bytes:
    """Int8 weights, inputs that become int8; the modules' codes are parts of what the kernels read."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules, self._bias, self._step = modules, _bias(modules), modules[0].activation_scale
        stored = [m.quantized for m in modules]
        codes, scales = _joined([s.codes for s in stored]), _joined([s.scales for s in stored])
        self._packed = pack_bytes(replace(stored[0], codes=codes, scales=scales, shape=tuple(codes.shape)))
        for one, rows in zip(stored, _split(self._packed.data, modules), strict=True):
            _put(one, {"codes": rows[:, : one.shape[1]]})

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        from kernels.linear.dynamic import linear

        return linear(x, self._packed, self._bias, self._step)

    def close(self) -> None:
        for module in self._modules:  # rows that were filled up lie apart
            _put(module.quantized, {"codes": module.quantized.codes.contiguous()})


class _Other:
    """A module of another kind, such as a pair of low rank, as it is."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._module(x)
        return found

    def close(self) -> None:
        """It was left alone."""


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if len(tensors) == 1:
        return tensors[0]
    if tensors[0].itemsize == 1:  # there is no concatenation of fp8
        return torch.cat([t.view(torch.uint8) for t in tensors]).view(tensors[0].dtype)
    return torch.cat(list(tensors))


def _bias(modules: Sequence[Any]) -> torch.Tensor | None:
    return None if modules[0].bias is None else _joined([m.bias.data for m in modules])


def _split(whole: torch.Tensor, modules: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    return whole.split([m.out_features for m in modules])


def _put(stored: QuantizedWeight, tensors: dict[str, torch.Tensor]) -> None:
    """Into a module's buffers, which ``stored`` names: a buffer stays the same object, for others may share it."""
    for name, tensor in tensors.items():
        stored.tensors[name].data = tensor
