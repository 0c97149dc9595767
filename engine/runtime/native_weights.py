"""A model's matrices as the native forward pass reads them, and their way back into the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from engine.compress.linears import LowRankLinear, QuantizedEmbedding, QuantizedLinear
from kernels.native import matrix
from kernels.native.matrix import Matrix, PackedMatrix


class Weights:
    """Packs what it is given and keeps it until ``close``.

    ``sole``: what is packed is taken out of the model, so that it is kept once, and put back by ``close``, to the bit.
    """

    def __init__(self, sole: bool) -> None:
        self._sole = sole
        self._held: list[Any] = []
        self._back: list[Callable[[], None]] = []
        self._formats: dict[str, None] = {}

    @property
    def formats(self) -> list[str]:
        """What is not plain numbers, in words, each once."""
        return sorted(self._formats)

    def close(self) -> None:
        """Give back what was taken, and let go of the rest. A second time does nothing."""
        while self._back:
            self._back.pop()()
        self._held.clear()

    def matrices(self, modules: Sequence[Any], lasting: bool = False) -> Any:
        """An array of the modules' matrices. ``lasting``: plain ones stay in the model, which uses them elsewhere."""
        found = (Matrix * len(modules))(*(self._matrix(m, lasting) for m in modules))
        self._held.append(found)
        return found

    def embedding(self, module: QuantizedEmbedding) -> Any:
        """An array of one matrix, in which tokens are looked up."""
        stand_in = QuantizedLinear(module.quantized)
        return self.matrices([stand_in])

    def keep(self, tensor: torch.Tensor) -> int:
        """Address of a tensor that is kept as it is."""
        self._held.append(tensor)
        return tensor.data_ptr()

    def fp32(self, tensor: torch.Tensor | None) -> int | None:
        """Address of the numbers in fp32, None of none."""
        return None if tensor is None else self.keep(tensor.detach().float().contiguous())

    def _matrix(self, module: Any, lasting: bool) -> Matrix:
        if isinstance(module, LowRankLinear):
            self._formats["low-rank"] = None
            second = self._matrix(module.second, lasting)
            return self._described(self._packed(module.first, lasting), None, second)
        return self._described(self._packed(module, lasting), module.bias, None)

    def _described(self, packed: PackedMatrix, bias: torch.Tensor | None, following: Matrix | None) -> Matrix:
        wide = None if bias is None else bias.detach().float().contiguous()
        self._held.append((packed, wide, following))
        return packed.described(wide, following)

    def _packed(self, module: Any, lasting: bool) -> PackedMatrix:
        if isinstance(module, QuantizedLinear):
            activations = f" with int8 activations ({module.activation})" if module.activation else ""
            self._formats[f"{module.kind}{activations}"] = None
            packed = module.packed()
            if self._sole:
                self._back.append(module.take_back)
                module.give_up()
            return packed
        packed = matrix.pack(module.weight.detach())
        if self._sole and not lasting:
            self._back.append(lambda: _restore(module, packed))
            module.weight.data = module.weight.new_empty(0)
        return packed


def _restore(module: nn.Linear, packed: PackedMatrix) -> None:
    found = matrix.unpack(packed)
    assert isinstance(found, torch.Tensor)
    module.weight.data = found
