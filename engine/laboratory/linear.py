"""A linear layer over a weight in int8, int4, nf4 or fp8: while a model decodes, a matter of the weight's bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.laboratory import sides
from engine.laboratory.linear_launches import GROUP, launches
from engine.laboratory.op import Call, Cost, Feature, Field, Op, Side, first_rows
from spec.errors import SpecError

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case
    from engine.laboratory.device import Device
    from kernels.linear.packing import PackedBytes, PackedWeight
    from kernels.linear.weight import QuantizedWeight

HALF_BYTE = ("int4", "nf4")
DISTINCT = 512  # rows of a weight
WEIGHT = Feature(
    "weight", "Weight",
    f"What the weight is stored as: int8 and fp8 with a scale for each row, int4 and nf4 with one for each {GROUP}.",
    ("int8", "int4", "nf4", "fp8"), always=True,
)  # fmt: skip
ACTIVATIONS = Feature(
    "activations",
    "Activations",
    "Rows are rounded to int8 first, each in a step of its own; for int8 weights.",
    ("int8",),
)


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The weight [outputs, inputs] four times, and what goes in.

    Attributes:
        x: [rows, inputs].
        weight: as it is kept.
        packed: as our kernels read it.
        codes: int8 or fp8 [outputs, inputs], around 0 but for nf4, and ``scales``, fp32 [outputs, groups].
        whole: the same numbers in the case's format.
    """

    x: torch.Tensor
    weight: QuantizedWeight
    packed: PackedWeight | PackedBytes
    codes: torch.Tensor
    scales: torch.Tensor
    whole: torch.Tensor


def cost(case: Case) -> Cost:
    """Reads x and the weight with its scales, writes the product.

    Bytes: M K e + M N e + K N w + s, with w = 1 byte to a weight of int8 and fp8 and s = 4 N for its scales, and for
    int4 and nf4 w = 1/2 and s = 2 N K / 128. Operations: 2 M K N; converting the weight is not counted.
    """
    rows, inputs, outputs = case["rows"], case["inputs"], case["outputs"]
    if case.feature("weight") in HALF_BYTE:
        weight = inputs * outputs // 2 + 2 * outputs * inputs // GROUP
    else:
        weight = inputs * outputs + 4 * outputs
    return Cost(rows * (inputs + outputs) * case.element + weight, 2 * rows * inputs * outputs)


def held(case: Case) -> int:
    """The weight as it is kept, packed, as codes, whole, and as a side packs it."""
    return case["inputs"] * case["outputs"] * (4 + case.element)


def check(case: Case) -> None:
    """Raise SpecError for a weight that its groups do not divide."""
    kind = case.feature("weight")
    if kind in HALF_BYTE and case["inputs"] % GROUP:
        raise SpecError(
            f"inputs of an {kind} weight must be a multiple of {GROUP}, not {case['inputs']}.", field="inputs"
        )
    if case.feature("activations") and kind != "int8":
        raise SpecError(f"activations in int8 need a weight in int8, not {kind}.", field="activations")


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random numbers, and a random weight rounded to its kind.

    Its rows repeat after ``DISTINCT``: rounding more of them would take longer than all that is measured.
    """
    import torch

    from kernels.linear.packing import pack, pack_bytes
    from kernels.linear.weight import Kind, codes_of, dequantize, quantize

    kind, columns, outputs = Kind(case.feature("weight")), case["inputs"], case["outputs"]
    whole = sides.random(device, seed, "fp32")(min(outputs, DISTINCT), columns)
    few = quantize(whole, kind, group=GROUP if kind.is_half_byte else -1)
    again = torch.arange(outputs, device=device) % len(whole)
    weight = replace(few, **{name: t[again] for name, t in few.tensors.items()}, shape=(outputs, columns))
    x = sides.random(device, seed + 1, case.dtype)(case["rows"], columns)
    packed = pack_bytes(weight) if case.feature("activations") else pack(weight)
    return Inputs(x, weight, packed, codes_of(weight), weight.scales.float(), dequantize(few, x.dtype)[again])


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In fp64, over the numbers that the stored weight stands for."""
    from kernels.linear import reference as plain

    compute = plain.linear_of_bytes if case.feature("activations") else plain.linear
    return (compute(x.x[rows], x.weight),)


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernels."""
    from kernels.linear import dynamic
    from kernels.linear import triton as weights

    linear = dynamic.linear if case.feature("activations") else weights.linear
    return Call(lambda: linear(x.x, x.packed), first_rows)


def eager(case: Case, x: Inputs) -> Call:
    """Makes the weight whole in each call, its scales in the number format of ``x``, as without a kernel of its own."""
    import torch
    from torch.nn.functional import linear

    from kernels.linear.reference import quantize_rows
    from kernels.linear.weight import NF4

    if case.feature("activations"):
        flat = x.scales[:, 0]

        def of_bytes() -> torch.Tensor:
            codes, steps = quantize_rows(x.x)
            return (linear(codes.float(), x.codes.float()) * steps[:, None] * flat).to(x.x.dtype)

        return Call(of_bytes, first_rows)

    stored, dtype = x.weight, x.x.dtype
    scales, table = x.scales.to(dtype)[..., None], torch.tensor(NF4, dtype=dtype, device=x.x.device)

    def run() -> torch.Tensor:
        if not stored.kind.is_half_byte:
            numbers = stored.codes.to(dtype)
        else:
            codes = torch.stack([stored.codes & 15, stored.codes >> 4], -1)
            numbers = table[codes.int()] if stored.kind == "nf4" else codes.to(dtype) - 8
        return linear(x.x, (numbers.view(*x.scales.shape, -1) * scales).view(stored.shape))

    return Call(run, first_rows)


def unquantized(case: Case, x: Inputs) -> Call:
    """One matrix product over the whole weight."""
    from torch.nn.functional import linear

    return Call(lambda: linear(x.x, x.whole), first_rows)


def unrounded(case: Case, device: Device) -> str | None:
    """Why the product over the whole weight does not stand beside the others."""
    return "it takes rows as they come, and here they are rounded" if case.feature("activations") else None


def other_bytes(case: Case) -> str:
    """What the unquantized weight costs."""
    whole = (case["rows"] * (case["inputs"] + case["outputs"]) + case["inputs"] * case["outputs"]) * case.element
    times = whole / case.cost().bytes_moved
    return f"it moves {_bytes(whole)}, {times:.1f} times what bytes/s and the share of the copy count"


def _bytes(count: int) -> str:
    """In the unit that fits, from bytes to gigabytes."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def packed(case: Case, x: Inputs) -> Call:
    """PyTorch's own products over packed weights."""
    import torch

    from kernels.linear.reference import quantize_rows

    if case.feature("activations"):
        flat, turned = x.scales[:, 0], x.codes.T

        def of_bytes() -> torch.Tensor:
            codes, steps = quantize_rows(x.x)
            return (torch._int_mm(codes, turned).float() * steps[:, None] * flat).to(x.x.dtype)

        return Call(of_bytes, first_rows)
    scales = x.scales.to(x.x.dtype)
    if case.feature("weight") == "int8":
        flat = scales[:, 0].contiguous()
        return Call(lambda: torch._weight_int8pack_mm(x.x, x.codes, flat), first_rows)
    data = torch._convert_weight_to_int4pack_for_cpu(x.codes.int() + 8, 1)
    both = torch.stack([scales.T, torch.zeros_like(scales.T)], -1).contiguous()  # what a number is above (code - 8)
    return Call(lambda: torch._weight_int4pack_mm_for_cpu(x.x, data, GROUP, both), first_rows)


def packed_reason(case: Case, device: Device) -> str | None:
    """Why PyTorch's packed products cannot run."""
    if case.feature("activations"):
        if device.on_gpu and (case["rows"] <= 16 or case["inputs"] % 8 or case["outputs"] % 8):
            return "PyTorch multiplies bytes on a GPU for more than 16 rows, inputs and outputs in steps of 8"
        return None
    if device.on_gpu:
        return "PyTorch's packed products are measured on processors only"
    if case.feature("weight") == "fp8":
        return "PyTorch offers no packed product of fp8"
    if case.feature("weight") == "nf4":
        return "PyTorch offers no packed product of nf4"
    if case.feature("weight") == "int4" and case["outputs"] % 16:
        return "PyTorch packs int4 for multiples of 16 outputs only"
    return None


OP = Op(
    name="linear",
    label="Quantized linear",
    help="A product with a weight of one byte or half a byte to a number: a matter of the weight's bytes in few rows.",
    fields=(
        Field("rows", "Rows", "Rows: the tokens of a step, or sequences that are sampled.", 1, 1, high=2**14),
        Field("inputs", "Inputs", "Columns of the weight: what goes in.", 2048, 4096, high=2**17, model="hidden"),
        Field("outputs", "Outputs", "Rows of the weight: what comes out.", 8192, 14_336, high=2**18,
              model="inner"),
    ),
    features=(WEIGHT, ACTIVATIONS),
    rows=lambda case: case["rows"],
    cost=cost,
    inputs=inputs,
    reference=reference,
    sides=(
        Side("triton", "Isoquant, Triton", True, "Converts the weight as it reads it.", sides.triton, ours),
        Side("eager", "PyTorch, dequantize", False, "Makes the weight whole in each call.", sides.always, eager),
        Side(
            "unquantized", "PyTorch, unquantized weight", False,
            "One product over the same weight in the number format of x: other bytes, and nothing to convert.",
            unrounded, unquantized, other_bytes,
        ),
        Side("packed", "PyTorch, packed", False, "PyTorch's own products over int8 and int4.", packed_reason, packed),
    ),
    launches=launches,
    sweeps=("rows", "outputs", "inputs"),
    check=check,
    held=held,
)  # fmt: skip
