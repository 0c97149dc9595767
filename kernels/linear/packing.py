"""Quantized weights in the order in which the GPU's kernels read them.

A row of a weight is cut into chunks of 16 bytes, which one thread loads at once, and the row's last chunk is filled up:

- ``fp8``: 16 weights, one after the other.
- ``int8``, ``int4`` and ``nf4``: 8 words of 16 bits. A word has 2 or 4 codes, and plane ``i`` of a chunk, the bits
  ``[16/planes * i, 16/planes * (i + 1))`` of its 8 words, is 8 consecutive weights: word ``e`` of chunk ``c`` holds the
  weights ``8 * planes * c + 8 * i + e``. So a chunk of half bytes is 32 weights, within one group whatever the group.

Codes of integers are unsigned, 128 or 8 more than the number they stand for, which lets bitwise instructions and
multiplications do what a conversion from integers does four times slower. The known way is a magic number (Kim et al.
2022, "Who Says Elephants Can't Run"): behind the mantissa of 128 in bf16, 0x4300, or of 1024 in fp16, 0x6400, a code
makes 128 + code. The kernels go without it, as a code alone, in the lowest 8 bits of bf16 or the lowest 11 of fp16,
already is the number code * 2**-133 or code * 2**-24: subnormal, up to the first normal numbers, whose steps are the
same. One mask and one fused multiply-add make two weights of two neighbouring words, without a rounding.

Products of bytes with bytes (``kernels.linear.dynamic``) read ``PackedBytes``: a tensor core takes four consecutive
signed bytes of a row to a register, which is how the weight is kept anyway, so nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from kernels.linear.weight import Kind, QuantizedWeight, codes_of, with_codes

PLANES = {Kind.INT8: 2, Kind.INT4: 4, Kind.NF4: 4, Kind.FP8: 1}  # weights in a word
OFFSET = {Kind.INT8: 128, Kind.INT4: 8, Kind.NF4: 0}  # what makes codes unsigned


def lane(kind: Kind) -> int:
    """Words in a chunk, and weights in a plane of it."""
    return 16 if kind == Kind.FP8 else 8


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantized weight [n, k]; what its numbers are, ``QuantizedWeight`` says.

    Attributes:
        data: int16 [n, chunks * 8], or float8_e4m3fn [n, chunks * 16], as the module says.
        scales: [groups, n]; fp32 where a group is a whole row, else bf16.
        zeros: bf16 [groups, n], a type that needs no conversion; None for symmetric ranges.
        group: weights that share a scale, along k; -1 for a whole row.
    """

    kind: Kind
    data: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group: int
    shape: tuple[int, int]

    @property
    def chunks(self) -> int:
        """Of 16 bytes, in a row."""
        return -(-self.shape[1] // (lane(self.kind) * PLANES[self.kind]))

    @property
    def size_bytes(self) -> int:
        """Of codes, scales and zero points: what a product with one vector reads."""
        parts = (self.data, self.scales) if self.zeros is None else (self.data, self.scales, self.zeros)
        return sum(p.numel() * p.element_size() for p in parts)


@dataclass(frozen=True, slots=True)
class PackedBytes:
    """An int8 weight [n, k]: ``data`` [n, k filled up with zeros to a multiple of 16], ``scales`` fp32 [n]."""

    data: torch.Tensor
    scales: torch.Tensor
    shape: tuple[int, int]


def pack(weight: QuantizedWeight) -> PackedWeight:
    """A weight in the kernels' order, on its own device."""
    kind, shape = weight.kind, weight.shape
    codes = codes_of(weight)
    if kind == Kind.FP8:
        data = pad(codes.view(torch.uint8), (0, -shape[1] % 16)).view(torch.float8_e4m3fn)
    else:
        planes = PLANES[kind]
        wide = pad(codes.to(torch.int32) + OFFSET[kind], (0, -shape[1] % (8 * planes))).view(shape[0], -1, planes, 8)
        words = sum(wide[:, :, i] << (16 // planes * i) for i in range(planes))
        data = torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16).view(shape[0], -1)
    zeros = None if weight.zeros is None else weight.zeros.T.to(torch.bfloat16).contiguous()
    return PackedWeight(kind, data, weight.scales.T.contiguous(), zeros, weight.group, shape)


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """Inverse of ``pack``, to the bit."""
    kind, (n, k) = packed.kind, packed.shape
    if kind == Kind.FP8:
        codes = packed.data[:, :k]
    else:
        planes, bits = PLANES[kind], 16 // PLANES[kind]
        chunks = packed.data.view(n, -1, 8).to(torch.int32)
        wide = torch.stack([(chunks >> (bits * i)) & ((1 << bits) - 1) for i in range(planes)], 2).view(n, -1)
        codes = (wide[:, :k] - OFFSET[kind]).to(torch.int8)
    zeros = None if packed.zeros is None else packed.zeros.T.to(torch.int8).contiguous()
    return with_codes(codes, kind, packed.scales.T.contiguous(), zeros, packed.group)


def pack_bytes(weight: QuantizedWeight) -> PackedBytes:
    """An int8 weight as products of bytes read it; shares the memory where nothing has to be filled up.

    Raises:
        ValueError: for another kind of weight.
    """
    if weight.kind != Kind.INT8:
        raise ValueError(f"activations in int8 need weights in int8, not {weight.kind}")
    missing = -weight.shape[1] % 16
    data = pad(weight.codes, (0, missing)) if missing else weight.codes
    return PackedBytes(data, weight.scales[:, 0], weight.shape)
