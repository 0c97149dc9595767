"""Modules that a compressed model holds in place of nn.Linear and nn.Embedding, on any device and under any back end.

Their state is the canonical form of ``kernels.linear.weight``, as buffers, so that loading and saving go through the
plain state dict. How a product runs is said in words by ``path``: nothing here falls back to slower arithmetic unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from kernels.linear.weight import Kind, QuantizedWeight, codes_of, dequantize
from kernels.native import build
from kernels.native import matrix as native

Activation = Literal["dynamic", "static"] | None
LARGEST = 127.0  # code of an input in int8


class Quantized(nn.Module):
    """Holds a QuantizedWeight [n, k] in the buffers ``codes``, ``scales`` and, where there are any, ``zeros``."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.kind, self.group, self.shape = weight.kind, weight.group, weight.shape
        for name in ("codes", "scales", "zeros"):
            self.register_buffer(name, getattr(weight, name))

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight, in the same memory."""
        return QuantizedWeight(self.kind, self.codes, self.scales, self.zeros, self.group, self.shape)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves between devices but keeps number types: ``model.to(bfloat16)`` would round scales, and fp8 codes."""
        before = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None and name != "bias"}
        kept = {name: self._buffers[name] for name in before}
        super()._apply(fn, recurse)
        for name, dtype in before.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != dtype:
                original = kept[name]
                assert original is not None
                self._buffers[name] = original.to(moved.device)
        return self


class QuantizedLinear(Quantized):
    """``x W^T + bias`` over a quantized weight.

    ``activation``: None for inputs as they come; for int8 weights also "dynamic", inputs in int8 by each row's largest
    magnitude, or "static", by ``activation_scale`` (fp32, no dimensions), beyond which they are clamped.
    """

    bias: torch.Tensor | None
    activation_scale: torch.Tensor | None

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        activation: Activation = None,
        activation_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__(weight)
        if activation is not None and weight.kind != Kind.INT8:
            raise ValueError(f"inputs become int8 for int8 weights alone, not for {weight.kind}")
        if (activation == "static") != (activation_scale is not None):
            raise ValueError("a static activation, and no other, has a scale")
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_buffer("activation_scale", activation_scale)
        self._packed: tuple[Any, native.PackedMatrix] | None = None
        self._laid_out: tuple[Any, Any] | None = None

    @classmethod
    def from_weight(
        cls,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        activation: Activation = None,
        activation_scale: torch.Tensor | None = None,
    ) -> QuantizedLinear:
        """From a weight [n, k] and a bias [n]. Raises ValueError for activations that the kind does not have."""
        return cls(weight, bias, activation, activation_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., k] of any float type, fp32 sums: [..., n] in the type of ``x``."""
        rows = x.reshape(-1, self.in_features)
        if x.device.type == "cuda":
            y = self._on_gpu(rows)
        elif build.reason() is None:
            bias = None if self.bias is None else self.bias.float()
            y = native.linear(rows.float(), self.packed(), bias)
        else:
            y = self._by_torch(rows)
            y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def path(self, device: torch.device | str) -> str:
        """Which arithmetic runs on a device, in words."""
        what = f"{self.kind} weights" + (f", int8 activations ({self.activation})" if self.activation else "")
        if torch.device(device).type == "cuda":
            return f"{what}, Triton"
        if build.reason() is None:
            return f"{what}, C++"
        return f"{what}, {'torch packed' if self._torch_serves else 'dequantized in each call'}"

    def is_simulated(self, device: torch.device | str) -> bool:
        """Whether products on a device have the errors of the format, but not its speed."""
        return self.path(device).endswith("dequantized in each call")

    # ---- our C++

    def packed(self) -> native.PackedMatrix:
        """In the order of the C++ kernels; made at the first use, and again when the codes lie elsewhere."""
        now = self._key()
        if self._packed is None or self._packed[0] != now:
            self._packed = now, native.pack(self.quantized, self._inputs())
        return self._packed[1]

    def give_up(self) -> None:
        """Let go of the canonical tensors; the packed order, in which nothing is lost, goes on serving."""
        packed = self.packed()
        for tensor in self.quantized.tensors.values():
            tensor.data = tensor.new_empty(0)
        self._packed = self._key(), packed

    def take_back(self) -> None:
        """Put the canonical tensors back, to the bit."""
        assert self._packed is not None
        found = native.unpack(self._packed[1])
        assert isinstance(found, QuantizedWeight)
        for name, tensor in self.quantized.tensors.items():
            tensor.data = found.tensors[name]
        self._packed = None

    def _inputs(self) -> native.Activation:
        return float(self.activation_scale) if self.activation_scale is not None else self.activation  # type: ignore[return-value]

    def _place(self) -> Any:
        """Where the codes lie, and how often they were written; asking waits for no GPU."""
        return [(t.data_ptr(), t._version) for t in self.quantized.tensors.values()]

    def _key(self) -> Any:
        scale = None if self.activation_scale is None else float(self.activation_scale)
        return self._place(), scale

    # ---- PyTorch's own

    @property
    def _torch_serves(self) -> bool:
        """Whether PyTorch has packed arithmetic for the format on a processor."""
        n, k = self.shape
        if self.kind == Kind.INT8:  # PyTorch 2.13 reads beyond its memory at other widths
            return self.activation is not None or k % 16 == 0
        return self.kind == Kind.INT4 and self.zeros is None and self.group in (32, 64, 128) and n % 16 == 0

    def _by_torch(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation is not None:
            codes, scales = self._codes_of(x.float())
            return torch._int_mm(codes, self.codes.T).float() * (self.scales[:, 0] * scales)
        x = x.contiguous() if x.dtype == torch.bfloat16 else x.float().contiguous()  # sums of codes do not fit fp16
        if not self._torch_serves:
            return x @ dequantize(self.quantized, x.dtype).T
        if self.kind == Kind.INT8:
            # Scaled afterwards: scales in bf16 would shift whole rows.
            ones = torch.ones(self.out_features, dtype=x.dtype)
            return torch.ops.aten._weight_int8pack_mm(x, self.codes, ones).float() * self.scales[:, 0]
        key = self._key(), x.dtype
        if self._laid_out is None or self._laid_out[0] != key:
            codes = codes_of(self.quantized).to(torch.int32) + 8
            scales = self.scales.T.to(x.dtype)
            zeros = torch.stack([scales, torch.zeros_like(scales)], -1).contiguous()
            self._laid_out = key, (torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), zeros)
        packed, zeros = self._laid_out[1]
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, self.group, zeros)

    def _codes_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows in int8 and their scales [m, 1], as our C++ computes them."""
        if self.activation_scale is not None:
            scale = self.activation_scale.expand(len(x), 1)
            inverse = 1 / scale
        else:
            largest = x.abs().amax(-1, keepdim=True)
            scale = largest / LARGEST
            inverse = torch.where(largest > 0, LARGEST / largest, 0.0)
        return (x * inverse).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale

    # ---- our Triton kernels

    def _on_gpu(self, x: torch.Tensor) -> torch.Tensor:
        from kernels.linear import dynamic, packing, triton

        key = self._place()
        if self._laid_out is None or self._laid_out[0] != key:
            self._laid_out = key, (packing.pack if self.activation is None else packing.pack_bytes)(self.quantized)
        if self.activation is None:
            return triton.linear(x, self._laid_out[1], self.bias)
        return dynamic.linear(x, self._laid_out[1], self.bias, self.activation_scale)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.kind}, group={self.group}"


class LowRankLinear(nn.Module):
    """``second(first(x))``: a weight [n, k] of rank r. ``first`` [r, k] has no bias; ``second`` is [n, r]."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        if first.bias is not None or first.out_features != second.in_features:
            raise ValueError("the first factor has no bias, and as many outputs as the second one has inputs")
        self.first, self.second = first, second
        self.in_features, self.out_features = int(first.in_features), int(second.out_features)
        self.rank = int(first.out_features)

    @property
    def bias(self) -> torch.Tensor | None:
        """The second factor's."""
        return self.second.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., k]: [..., n]."""
        return self.second(self.first(x))


class QuantizedEmbedding(Quantized):
    """Rows of a quantized weight [vocabulary, width], as numbers of ``dtype``.

    Tied to an output head by sharing its buffers: ``QuantizedEmbedding(head.quantized, dtype)``. Moving modules to
    another device gives each its own; ``tie`` makes them one again. ``factor``: what rows are multiplied by as they are
    looked up (Gemma's ``embed_scale``), rounded to ``dtype`` first, as such models do.
    """

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, factor: float = 1.0) -> None:
        super().__init__(weight)
        self.factor = float(torch.tensor(factor, dtype=dtype, device="cpu"))
        self.num_embeddings, self.embedding_dim = weight.shape
        self.dtype = dtype

    def tie(self, head: QuantizedLinear) -> None:
        """Share the head's buffers from now on."""
        for name in ("codes", "scales", "zeros"):
            self._buffers[name] = head._buffers[name]

    def is_tied(self, head: nn.Module | None) -> bool:
        """Whether this and an output head are one matrix in one memory."""
        if not isinstance(head, QuantizedLinear) or head.shape != self.shape:
            return False
        mine, others = self.quantized.tensors, head.quantized.tensors
        return mine.keys() == others.keys() and all(t is others[name] for name, t in mine.items())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` [...], whole numbers: [..., width]."""
        chosen = tokens.reshape(-1)
        view = self.codes.view(torch.uint8)[chosen].view(self.codes.dtype)
        zeros = None if self.zeros is None else self.zeros[chosen]
        some = QuantizedWeight(self.kind, view, self.scales[chosen], zeros, self.group, (len(chosen), self.shape[1]))
        rows = dequantize(some, self.dtype).view(*tokens.shape, self.embedding_dim)
        return rows if self.factor == 1.0 else rows * self.factor
