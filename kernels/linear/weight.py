"""Weights of linear layers in int8, int4, nf4 or fp8: what is kept on disk, whatever order a kernel reads it in.

``int8``, ``int4`` and ``fp8`` are evenly spaced or floating-point numbers times a scale; ``nf4`` has sixteen numbers
between which a normal distribution is cut into equal parts, times the largest magnitude of its group (Dettmers et al.
2023, QLoRA, arXiv 2305.14314, section 3 and appendix E).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch

GROUPS = (32, 64, 128, -1)
LARGEST = 448.0  # that e4m3 holds
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Kind(StrEnum):
    """What a weight is stored as."""

    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"
    FP8 = "fp8"

    @property
    def is_half_byte(self) -> bool:
        """Whether two codes share a byte."""
        return self in (Kind.INT4, Kind.NF4)

    @property
    def half(self) -> int:
        """Codes of integers run from ``-half`` to ``half - 1``."""
        return {Kind.INT8: 128, Kind.INT4: 8}[self]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [n, k]; the number at ``[r, c]`` is ``(code - zero) * scale``, with the scale of its group of its row.

    Attributes:
        codes: int8 [n, k] for int8; float8_e4m3fn [n, k] for fp8; else uint8 [n, ceil(k / 2)], the code of column
            ``2 i`` in the lower half of byte ``i``: for int4 the code plus 8, for nf4 the index into ``NF4``.
        scales: [n, groups], positive; fp32 where a group is a whole row, else bf16.
        zeros: int8 [n, groups], from -8 to 7, for int4; None for symmetric ranges.
        group: weights that share a scale, along k; -1 for a whole row.
    """

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group: int
    shape: tuple[int, int]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        zeros = {} if self.zeros is None else {"zeros": self.zeros}
        return {"codes": self.codes, "scales": self.scales} | zeros

    @property
    def size_bytes(self) -> int:
        """Of codes, scales and zero points."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})

    def rows(self, start: int, end: int) -> QuantizedWeight:
        """The weight of the outputs ``start`` to ``end``."""
        part = {name: tensor[start:end] for name, tensor in self.tensors.items()}
        return replace(self, **part, shape=(end - start, self.shape[1]))


def quantize(weight: torch.Tensor, kind: Kind, *, group: int = -1, zero_points: bool = False) -> QuantizedWeight:
    """Round each number of ``weight`` [n, k] to the nearest that ``kind`` has, with the scale its group's range needs.

    Args:
        weight: fp32, fp16 or bf16, on any device; the result is on the same.
        group: numbers along k that share a scale: 32, 64 or 128, for int4 and nf4; -1 for a whole row.
        zero_points: for int4 alone, fit the scale to the least and the largest number instead of the largest magnitude.

    Raises:
        ValueError: for a weight that is no matrix of finite floating-point numbers, or has no numbers; for a group that
            is not offered or does not divide k; for zero points where they do not exist.

    >>> quantize(torch.eye(64), Kind.INT4, group=32).shape
    (64, 64)
    """
    kind = Kind(kind)
    check(weight, kind, group, zero_points)
    scales, zeros = ranges(weight, kind, group=group, zero_points=zero_points)
    return with_codes(nearest(weight, kind, scales, zeros), kind, scales, zeros, group)


def ranges(
    weight: torch.Tensor, kind: Kind, *, group: int, zero_points: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales, and zero points where they are wanted, that let each group of ``weight`` [n, k] just fit its codes."""
    n, k = weight.shape
    numbers = weight.float().reshape(n, -1, k if group == -1 else group)
    if zero_points:
        half = kind.half
        least, most = numbers.amin(-1).clamp(max=0), numbers.amax(-1).clamp(min=0)
        scales = _kept(most / (2 * half - 1) - least / (2 * half - 1), group)
        zeros = (-least / scales.float()).round().clamp(0, 2 * half - 1) - half
        return scales, zeros.to(torch.int8)
    largest = {Kind.FP8: LARGEST, Kind.NF4: 1.0}.get(kind) or kind.half - 1
    return _kept(numbers.abs().amax(-1) / largest, group), None


def nearest(weight: torch.Tensor, kind: Kind, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    """Codes [n, k] of the nearest numbers: int8 less the zero point's shift, e4m3, or for nf4 the index as int8."""
    n, k = weight.shape
    numbers = weight.float().reshape(n, scales.shape[1], -1) / scales.float()[..., None]
    if kind == Kind.FP8:
        return numbers.clamp(-LARGEST, LARGEST).view(n, k).to(torch.float8_e4m3fn)
    if kind == Kind.NF4:
        table = torch.tensor(NF4, device=weight.device)
        return torch.bucketize(numbers, (table[1:] + table[:-1]) / 2).view(n, k).to(torch.int8)
    codes = numbers.round()
    if zeros is not None:
        codes = codes + zeros.float()[..., None]
    return codes.clamp(-kind.half, kind.half - 1).view(n, k).to(torch.int8)


def with_codes(
    codes: torch.Tensor, kind: Kind, scales: torch.Tensor, zeros: torch.Tensor | None, group: int
) -> QuantizedWeight:
    """The weight of codes [n, k] as ``nearest`` gives them, and of scales and zero points as ``ranges`` does."""
    shape = (codes.shape[0], codes.shape[1])
    if kind.is_half_byte:
        wide = (codes + (8 if kind == Kind.INT4 else 0)).to(torch.uint8)
        wide = torch.nn.functional.pad(wide, (0, wide.shape[1] % 2))
        codes = wide[:, ::2] | wide[:, 1::2] << 4
    return QuantizedWeight(kind, codes.contiguous(), scales, zeros, group, shape)


def codes_of(weight: QuantizedWeight) -> torch.Tensor:
    """Codes [n, k] as ``nearest`` gives them."""
    if not weight.kind.is_half_byte:
        return weight.codes
    both = torch.stack([weight.codes & 15, weight.codes >> 4], -1).flatten(1)[:, : weight.shape[1]]
    return both.to(torch.int8) - (8 if weight.kind == Kind.INT4 else 0)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers [n, k] that a quantized weight stands for, computed in fp64 and rounded once."""
    scales, zeros = weight.scales.double(), None if weight.zeros is None else weight.zeros.double()
    return restored(codes_of(weight), weight.kind, scales, zeros).to(dtype)


def restored(codes: torch.Tensor, kind: Kind, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    """The numbers [n, k] of codes as ``nearest`` gives them, in the type of ``scales``, which is fp32 or wider."""
    if kind == Kind.NF4:
        numbers = torch.tensor(NF4, dtype=scales.dtype, device=codes.device)[codes.long()]
    else:
        numbers = codes.float().to(scales.dtype)
    numbers = numbers.reshape(codes.shape[0], scales.shape[1], -1)
    if zeros is not None:
        numbers = numbers - zeros.to(scales.dtype)[..., None]
    return (numbers * scales[..., None]).view(codes.shape)


def check(weight: torch.Tensor, kind: Kind, group: int, zero_points: bool) -> None:
    """Raise ValueError for what ``quantize`` does not take."""
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"a weight must be fp32, fp16 or bf16, not {weight.dtype}")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"a weight must be a matrix with numbers in it, not of shape {tuple(weight.shape)}")
    if group not in GROUPS:
        raise ValueError(f"a group is one of {', '.join(map(str, GROUPS))}, not {group}")
    if not kind.is_half_byte and group != -1:
        raise ValueError(f"{kind} has one scale for each row: groups are for int4 and nf4")
    if kind != Kind.INT4 and zero_points:
        raise ValueError(f"{kind} has no zero points: they are for int4")
    if group != -1 and weight.shape[1] % group:
        raise ValueError(f"groups of {group} do not divide the {weight.shape[1]} columns of the weight")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight has numbers that are infinite or not a number")


def _kept(steps: torch.Tensor, group: int) -> torch.Tensor:
    """As they are kept, before the codes are chosen, so that the codes fit the rounded scale. No step is 0."""
    steps = torch.where(steps < torch.finfo(torch.float32).tiny, torch.ones_like(steps), steps)
    return steps if group == -1 else steps.to(torch.bfloat16)
