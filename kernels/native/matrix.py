"""Matrices of any format in the order the C++ kernels read them: packed, unpacked to the bit, multiplied with.

A panel is ``isoquant_panel`` output columns. It holds unit after unit along k, and in each unit one number of each
column; codes of four bits, and those for integer dot products, go by words of 32 bits, as they lie in a row. See
formats.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from dataclasses import dataclass
from typing import Literal

import torch

from kernels.linear.weight import Kind, QuantizedWeight
from kernels.native.build import library

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, Kind.INT8: 3, Kind.INT4: 4, Kind.NF4: 5, Kind.FP8: 6}
INT8_BY_INT8 = 7
LONGEST = 65_536  # inputs of an integer dot product: 32 bits hold the sum of as many products
_WORDS = {Kind.INT4: torch.int32, Kind.NF4: torch.int32}

Activation = Literal["dynamic"] | float | None


class Matrix(Structure):
    """One matrix as C++ sees it; see ``Matrix`` in matrix.h."""


Matrix._fields_ = (
    *((n, c_int32) for n in ("kind", "n", "k", "group", "scale_kind")),
    *((n, c_void_p) for n in ("data", "scales", "zeros", "sums", "bias")),
    ("next", POINTER(Matrix)),
    ("input_scale", c_float),
)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix [n, k] in panels.

    Attributes:
        kind: its number type, or the kind of its codes.
        data: [panels, units, panel]: numbers, bytes, or words of 32 bits.
        scales: [panels, groups, panel] as the canonical form has them; None for plain numbers.
        zeros: int8, as the scales; None where there are none.
        sums: int32 [panels, panel], of each column's codes, where inputs become int8; else None.
        group: as of QuantizedWeight.
        activation: None for fp32 inputs, "dynamic" for int8 by each row's largest magnitude, or the scale of int8.
    """

    kind: Kind | torch.dtype
    shape: tuple[int, int]
    data: torch.Tensor
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    group: int = -1
    activation: Activation = None

    @property
    def n(self) -> int:
        """Outputs."""
        return self.shape[0]

    @property
    def k(self) -> int:
        """Inputs."""
        return self.shape[1]

    @property
    def size_bytes(self) -> int:
        """Of all that a product with one vector reads."""
        parts = (self.data, self.scales, self.zeros, self.sums)
        return sum(p.numel() * p.element_size() for p in parts if p is not None)

    def described(self, bias: torch.Tensor | None = None, following: Matrix | None = None) -> Matrix:
        """For C++. The caller keeps this, ``bias`` (fp32 [n]) and ``following``, a pair's second factor, alive."""
        found = Matrix(
            kind=KINDS[self.kind] if self.activation is None else INT8_BY_INT8,
            n=self.n,
            k=self.k,
            group=self.k if self.group == -1 else self.group,
            scale_kind=0 if self.scales is None else KINDS[self.scales.dtype],
            input_scale=self.activation if isinstance(self.activation, float) else 0.0,
        )
        for name in ("data", "scales", "zeros", "sums"):
            setattr(found, name, _at(getattr(self, name)))
        found.bias = _at(bias)
        if following is not None:
            found.next = ctypes.pointer(following)
        return found


def pack(weight: torch.Tensor | QuantizedWeight, activation: Activation = None) -> PackedMatrix:
    """A matrix [n, k] on a processor in the order of the kernels.

    Args:
        weight: fp32, bf16 or fp16 numbers, or codes with their scales.
        activation: how inputs become int8, for int8 weights alone; None leaves them fp32.

    Raises:
        ValueError: for inputs in int8 at another kind of weight, at a scale that is not positive, or beyond LONGEST.

    >>> pack(torch.eye(3)).shape
    (3, 3)
    """
    if isinstance(weight, torch.Tensor):
        if activation is not None:
            raise ValueError("inputs become int8 for int8 weights alone")
        return PackedMatrix(weight.dtype, (weight.shape[0], weight.shape[1]), _panels(weight))
    scales, zeros = _panels(weight.scales), None if weight.zeros is None else _panels(weight.zeros)
    if activation is None:
        data = _panels(_words(weight.codes, _WORDS.get(weight.kind)))
        return PackedMatrix(weight.kind, weight.shape, data, scales, zeros, None, weight.group)
    if weight.kind != Kind.INT8 or weight.shape[1] > LONGEST:
        raise ValueError(f"inputs become int8 for int8 weights of at most {LONGEST} inputs alone")
    if activation != "dynamic" and not activation > 0:
        raise ValueError(f"the scale of int8 inputs must be positive, not {activation}")
    data = _panels(_words(weight.codes, torch.int32))
    sums = _panels(weight.codes.sum(1, dtype=torch.int32)[:, None])
    return PackedMatrix(weight.kind, weight.shape, data, scales, None, sums, weight.group, activation)


def unpack(packed: PackedMatrix) -> torch.Tensor | QuantizedWeight:
    """What was packed, to the bit, in tensors of its own."""
    n, k = packed.shape
    if isinstance(packed.kind, torch.dtype):
        return _rows(packed.data, n)
    assert packed.scales is not None
    width = -(-k // 2) if packed.kind.is_half_byte else k
    codes = _rows(packed.data, n)
    codes = codes.view(torch.int8)[:, :width].contiguous() if codes.element_size() > 1 else codes
    codes = codes.view({Kind.FP8: torch.float8_e4m3fn, Kind.INT8: torch.int8}.get(packed.kind, torch.uint8))
    zeros = None if packed.zeros is None else _rows(packed.zeros, n)
    return QuantizedWeight(packed.kind, codes, _rows(packed.scales, n), zeros, packed.group, packed.shape)


def linear(x: torch.Tensor, packed: PackedMatrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` [m, k] (fp32) times the transpose of a packed matrix, plus ``bias`` [n] (fp32): fp32 [m, n]."""
    return multiply(x, [packed.described(bias)])


def multiply(x: torch.Tensor, parts: Sequence[Matrix]) -> torch.Tensor:
    """``x`` [m, k] (fp32) times up to three matrices, or low-rank pairs of them: their columns side by side, fp32."""
    x = x.contiguous()
    m, k = x.shape
    array = (Matrix * len(parts))(*parts)
    y = torch.empty(m, sum(outputs_of(p) for p in parts))
    lib = library()
    scratch = torch.empty(lib.isoquant_linear_scratch(array, len(parts), m))
    lib.isoquant_linear(array, len(parts), m, _at(x), k, _at(y), y.shape[1], 0, _at(scratch))
    return y


def outputs_of(matrix: Matrix) -> int:
    """Columns of a matrix's product, or of its second factor's where it has one."""
    return int(matrix.next.contents.n if matrix.next else matrix.n)


def _words(codes: torch.Tensor, word: torch.dtype | None) -> torch.Tensor:
    """Codes [n, bytes] as words [n, words], the last one of a row filled up with zeros; None: as bytes."""
    if word is None:
        return codes.view(torch.int8)
    codes = torch.nn.functional.pad(codes.view(torch.int8), (0, -codes.shape[1] % word.itemsize))
    return codes.contiguous().view(word)


def _panels(rows: torch.Tensor) -> torch.Tensor:
    """[n, units] as [panels, units, panel]; what the last panel lacks is filled up with zeros."""
    n, units = rows.shape
    width = library().isoquant_panel()
    whole = n // width
    made = torch.empty((-(-n // width), units, width), dtype=rows.dtype)
    made[:whole].copy_(rows[: whole * width].view(whole, width, units).transpose(1, 2))
    if whole < len(made):
        made[whole] = 0
        made[whole, :, : n - whole * width] = rows[whole * width :].T
    return made


def _rows(panels: torch.Tensor, n: int) -> torch.Tensor:
    """What ``_panels`` was given, contiguous."""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])[:n].clone(memory_format=torch.contiguous_format)


def _at(tensor: torch.Tensor | None) -> c_void_p | None:
    return None if tensor is None else c_void_p(tensor.data_ptr())
