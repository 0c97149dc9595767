"""Weights of linear layers in int8, int4 or fp8, in the order in which the GPU's kernels read them.

A row of a weight is cut into chunks of 16 bytes, which one thread loads at once, and the row's last chunk is filled up:

- ``fp8``: 16 weights, one after the other.
- ``int8`` and ``int4``: 8 words of 16 bits. A word has ``planes`` = 2 or 4 codes, and plane ``i`` of a chunk, the bits
  ``[16/planes * i, 16/planes * (i + 1))`` of its 8 words, is 8 consecutive weights: word ``e`` of chunk ``c`` holds the
  weights ``8 * planes * c + 8 * i + e``. So an int4 chunk is 32 weights, within one group whatever the group.

Codes are unsigned, 128 or 8 more than the number they stand for, which lets bitwise instructions and multiplications do
what a conversion from integers does four times slower. The known way is a magic number (Kim et al. 2022, "Who Says
Elephants Can't Run"): behind the mantissa of 128 in bf16, 0x4300, or of 1024 in fp16, 0x6400, a code makes 128 + code.
The kernels go without it, as a code alone, in the lowest 8 bits of bf16 or the lowest 11 of fp16, already is the number
code * 2**-133 or code * 2**-24: subnormal, up to the first normal numbers, whose steps are the same. One mask and one
fused multiply-add make two weights of two neighbouring words, without a rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch

GROUPS = (32, 64, 128, -1)
LARGEST = 448.0  # that e4m3 holds


class Kind(StrEnum):
    """What a weight is stored as."""

    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    @property
    def planes(self) -> int:
        """Weights in a word of the data."""
        return {Kind.INT8: 2, Kind.INT4: 4, Kind.FP8: 1}[self]

    @property
    def chunk(self) -> int:
        """Weights in 16 bytes."""
        return 32 if self == Kind.INT4 else 16


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantized weight [n, k]; number ``[r, c]`` is ``(code - 128 or 8 - zero) * scale``, in fp8 ``value * scale``.

    Attributes:
        data: int16 [n, chunks * 8], or float8_e4m3fn [n, chunks * 16], as the module says.
        scales: [groups, n]; fp32 where a group is a whole row, else bf16.
        zeros: bf16 [groups, n], whole numbers in [-8, 7], a type that needs no conversion; None for symmetric ranges.
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
        return -(-self.shape[1] // self.kind.chunk)

    @property
    def size_bytes(self) -> int:
        """Of codes, scales and zero points: what a product with one vector reads."""
        parts = (self.data, self.scales) if self.zeros is None else (self.data, self.scales, self.zeros)
        return sum(p.numel() * p.element_size() for p in parts)

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(self, data=self.data.to(device), scales=self.scales.to(device), zeros=zeros)


def quantize(weight: torch.Tensor, kind: Kind, *, group: int = -1, zero_points: bool = False) -> PackedWeight:
    """Round each number of ``weight`` [n, k] to the nearest that ``kind`` has, with the scale its group's range needs.

    Args:
        weight: fp32, fp16 or bf16, on any device; the result is on the same.
        group: numbers along k that share a scale: 32, 64 or 128, for int4 alone; -1 for a whole row.
        zero_points: for int4 alone, fit the scale to the least and the largest number instead of the largest magnitude.

    Raises:
        ValueError: for a weight that is no matrix of finite floating-point numbers, or has no numbers; for a group that
            is not offered or does not divide k; for zero points where they do not exist.

    >>> quantize(torch.eye(64), Kind.INT4, group=32).shape
    (64, 64)
    """
    kind = Kind(kind)
    _check(weight, kind, group, zero_points)
    n, k = weight.shape
    numbers = weight.float().reshape(n, -1, k if group == -1 else group)  # [n, groups, group]
    if kind == Kind.FP8:
        scales = _scales(numbers.abs().amax(-1) / LARGEST, group)
        data = (numbers / scales.float()[..., None]).clamp(-LARGEST, LARGEST).view(n, k)
        data = _filled(data, kind.chunk).to(torch.float8_e4m3fn)
        return PackedWeight(kind, data, scales.T.contiguous(), None, group, (n, k))
    half = 8 if kind == Kind.INT4 else 128
    zeros = None
    if zero_points:
        least, most = numbers.amin(-1).clamp(max=0), numbers.amax(-1).clamp(min=0)
        scales = _scales(most / (2 * half - 1) - least / (2 * half - 1), group)
        zeros = (-least / scales.float()).round().clamp(0, 2 * half - 1) - half
    else:
        scales = _scales(numbers.abs().amax(-1) / (half - 1), group)
    codes = (numbers / scales.float()[..., None]).round()
    if zeros is not None:
        codes = codes + zeros[..., None]
        zeros = zeros.to(torch.bfloat16).T.contiguous()
    codes = codes.clamp(-half, half - 1).view(n, k) + half
    return PackedWeight(kind, _pack(codes, kind), scales.T.contiguous(), zeros, group, (n, k))


def dequantize(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers [n, k] that a packed weight stands for, computed in fp64 and rounded once."""
    n, k = packed.shape
    if packed.kind == Kind.FP8:
        numbers = packed.data.float().double()[:, :k]
    else:
        numbers = _unpack(packed.data, packed.kind)[:, :k].double() - (8 if packed.kind == Kind.INT4 else 128)
    numbers = numbers.reshape(n, packed.scales.shape[0], -1)
    if packed.zeros is not None:
        numbers = numbers - packed.zeros.T.double()[..., None]
    return (numbers * packed.scales.T.double()[..., None]).view(n, k).to(dtype)


def _check(weight: torch.Tensor, kind: Kind, group: int, zero_points: bool) -> None:
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"a weight must be fp32, fp16 or bf16, not {weight.dtype}")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"a weight must be a matrix with numbers in it, not of shape {tuple(weight.shape)}")
    if group not in GROUPS:
        raise ValueError(f"a group is one of {', '.join(map(str, GROUPS))}, not {group}")
    if kind != Kind.INT4 and (group != -1 or zero_points):
        raise ValueError(f"{kind} has one scale for each row: groups and zero points are for int4")
    if group != -1 and weight.shape[1] % group:
        raise ValueError(f"groups of {group} do not divide the {weight.shape[1]} columns of the weight")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight has numbers that are infinite or not a number")


def _scales(steps: torch.Tensor, group: int) -> torch.Tensor:
    """As they are kept, before the codes are chosen, so that the codes fit the rounded scale. No step is 0."""
    steps = torch.where(steps < torch.finfo(torch.float32).tiny, torch.ones_like(steps), steps)
    return steps if group == -1 else steps.to(torch.bfloat16)


def _filled(x: torch.Tensor, chunk: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, -x.shape[1] % chunk))


def _pack(codes: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Codes [n, k] as the words that the module describes."""
    n, planes = codes.shape[0], kind.planes
    planar = _filled(codes, kind.chunk).to(torch.int32).view(n, -1, planes, 8)
    words = sum(planar[:, :, i] << (16 // planes * i) for i in range(planes))
    return torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16).view(n, -1)


def _unpack(words: torch.Tensor, kind: Kind) -> torch.Tensor:
    """The codes [n, chunks * chunk] in the words."""
    n, bits = words.shape[0], 16 // kind.planes
    chunks = words.view(n, -1, 8).to(torch.int32)
    return torch.stack([(chunks >> (bits * i)) & ((1 << bits) - 1) for i in range(kind.planes)], 2).view(n, -1)
