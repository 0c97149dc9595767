"""A linear layer over a weight in int8, int4 or fp8: while a model decodes, a matter of the weight's bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.laboratory import decode, sides
from engine.laboratory.op import Call, Cost, Feature, Field, Launch, Op, Side, first_rows
from spec.errors import SpecError

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case
    from engine.laboratory.device import Device
    from kernels.linear.packing import PackedWeight

GROUP = 128  # weights of int4 that share a scale
DISTINCT = 512  # rows of a weight
WEIGHT = Feature(
    "weight", "Weight",
    f"What the weight is stored as: int8 and fp8 with a scale for each row, int4 with one for each {GROUP} numbers.",
    ("int8", "int4", "fp8"), always=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The weight [outputs, inputs] three times, and what goes in.

    Attributes:
        x: [rows, inputs].
        packed: as our kernels read it.
        codes: int8 or fp8 [outputs, inputs] around 0, and ``scales``, fp32 [outputs, groups].
        whole: the same numbers in the case's format.
    """

    x: torch.Tensor
    packed: PackedWeight
    codes: torch.Tensor
    scales: torch.Tensor
    whole: torch.Tensor


def cost(case: Case) -> Cost:
    """Reads x and the weight with its scales, writes the product.

    Bytes: M K e + M N e + K N w + s, with w = 1 byte to a weight of int8 and fp8 and s = 4 N for its scales, and for
    int4 w = 1/2 and s = 2 N K / 128. Operations: 2 M K N; converting the weight is not counted.
    """
    rows, inputs, outputs = case["rows"], case["inputs"], case["outputs"]
    if case.feature("weight") == "int4":
        weight = inputs * outputs // 2 + 2 * outputs * inputs // GROUP
    else:
        weight = inputs * outputs + 4 * outputs
    return Cost(rows * (inputs + outputs) * case.element + weight, 2 * rows * inputs * outputs)


def held(case: Case) -> int:
    """The weight packed, as codes, whole, and as a side packs it."""
    return case["inputs"] * case["outputs"] * (3 + case.element)


def check(case: Case) -> None:
    """Raise SpecError for a weight that its groups do not divide."""
    if case.feature("weight") == "int4" and case["inputs"] % GROUP:
        raise SpecError(
            f"inputs of an int4 weight must be a multiple of {GROUP}, not {case['inputs']}.", field="inputs"
        )


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random numbers, and a random weight rounded to its kind.

    Its rows repeat after ``DISTINCT``: rounding more of them would take longer than all that is measured.
    """
    import torch

    from kernels.linear.packing import Kind, PackedWeight, dequantize, quantize

    kind, columns, outputs = Kind(case.feature("weight")), case["inputs"], case["outputs"]
    weight = sides.random(device, seed, "fp32")(min(outputs, DISTINCT), columns)
    few = quantize(weight, kind, group=GROUP if kind == Kind.INT4 else -1)
    numbers, scales = dequantize(few), few.scales.T.float()
    codes = (numbers.view(*scales.shape, -1) / scales[..., None]).round().to(torch.int8).view(weight.shape)
    if kind == Kind.FP8:
        codes = few.data[:, :columns]
    again = torch.arange(outputs, device=device) % len(weight)
    packed = PackedWeight(kind, few.data[again], few.scales[:, again].contiguous(), None, few.group, (outputs, columns))
    x = sides.random(device, seed + 1, case.dtype)(case["rows"], columns)
    return Inputs(x, packed, codes[again], scales[again], numbers.to(x.dtype)[again])


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In fp64, over the numbers that the stored weight stands for."""
    from kernels.linear import reference as plain

    return (plain.linear(x.x[rows], x.packed),)


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernels."""
    from kernels.linear.triton import linear

    return Call(lambda: linear(x.x, x.packed), first_rows)


def eager(case: Case, x: Inputs) -> Call:
    """Makes the weight whole in each call, its scales in the number format of ``x``, as without a kernel of its own."""
    import torch
    from torch.nn.functional import linear

    shape, kind, groups = x.codes.shape, x.x.dtype, x.scales.shape[1]
    scales, pairs = x.scales.to(kind)[..., None], None
    if case.feature("weight") == "int4":
        unsigned = (x.codes + 8).to(torch.uint8)
        pairs = unsigned[:, ::2] | unsigned[:, 1::2] << 4

    def run() -> torch.Tensor:
        if pairs is None:
            numbers = x.codes.to(kind)
        else:
            numbers = torch.stack([pairs & 15, pairs >> 4], -1).to(kind) - 8
        return linear(x.x, (numbers.view(shape[0], groups, -1) * scales).view(shape))

    return Call(run, first_rows)


def unquantized(case: Case, x: Inputs) -> Call:
    """One matrix product over the whole weight."""
    from torch.nn.functional import linear

    return Call(lambda: linear(x.x, x.whole), first_rows)


def other_bytes(case: Case) -> str:
    """What the unquantized weight costs."""
    whole = (case["rows"] * (case["inputs"] + case["outputs"]) + case["inputs"] * case["outputs"]) * case.element
    times = whole / case.cost().bytes_moved
    return f"it moves {whole / 1e6:.1f} MB, {times:.1f} times what bytes/s and the share of the copy count"


def packed(case: Case, x: Inputs) -> Call:
    """PyTorch's own products over packed weights."""
    import torch

    scales = x.scales.to(x.x.dtype)
    if case.feature("weight") == "int8":
        flat = scales[:, 0].contiguous()
        return Call(lambda: torch._weight_int8pack_mm(x.x, x.codes, flat), first_rows)
    data = torch._convert_weight_to_int4pack_for_cpu(x.codes.int() + 8, 1)
    both = torch.stack([scales.T, torch.zeros_like(scales.T)], -1).contiguous()  # what a number is above (code - 8)
    return Call(lambda: torch._weight_int4pack_mm_for_cpu(x.x, data, GROUP, both), first_rows)


def packed_reason(case: Case, device: Device) -> str | None:
    """Why PyTorch's packed products cannot run."""
    if device.on_gpu:
        return "PyTorch's packed products are measured on processors only"
    if case.feature("weight") == "fp8":
        return "PyTorch offers no packed product of fp8"
    if case.feature("weight") == "int4" and case["outputs"] % 16:
        return "PyTorch packs int4 for multiples of 16 outputs only"
    return None


def launches(case: Case) -> list[Launch]:
    """The kernel for one row or that for a few; for many the one that makes the weight whole, before cuBLAS."""
    from kernels.linear import triton as linear
    from kernels.linear.packing import Kind

    kind, rows, outputs = Kind(case.feature("weight")), case["rows"], case["outputs"]
    group = GROUP if kind == Kind.INT4 else -1
    chunks = -(-case["inputs"] // kind.chunk)
    number = sides.pointer(case.dtype)
    types = dict.fromkeys(("x_row", "M", "N", "K", "chunks", "each", "splits"), "i32")
    types |= dict.fromkeys(("X", "BIAS", "OUT"), number) | {"PARTS": "*fp32"}
    types |= {"W": "*i16", "SCALES": "*fp32", "ZEROS": number}
    if kind == Kind.FP8:
        types["W"] = "*fp8e4nv"
    if group != -1:
        types["SCALES"] = "*bf16"
    common = {"PLANES": kind.planes, "LANE": kind.chunk // kind.planes, "GROUP": group, "HAS_ZEROS": False}
    numbers = {"x_row": case["inputs"], "M": rows, "N": outputs, "K": case["inputs"], "chunks": chunks}
    unaligned = frozenset({"splits"} | {name for name, n in numbers.items() if n % 16})

    if rows == 1 or (case.dtype == "fp32" and rows <= linear.VECTORS):
        words = types | ({} if kind == Kind.FP8 else {"W": "*i32"})
        warps = min(4, sides.power_of_2(-(-chunks // 32)))
        bn = next((bn for bn in (4, 2) if outputs >= bn * 4 * decode.UNITS), 1)
        constants = common | {"HAS_BIAS": False, "BN": bn, "BC": 32 * warps}
        return [Launch(linear._vector, words, constants, warps, unaligned=unaligned)]
    if case.dtype == "fp32" or rows > linear.ROWS:
        constants = common | {"BC": 128, "UPCAST": False}
        return [Launch(linear._dequantize, types, constants, 4, unaligned=unaligned)]
    bm = 16 if rows <= 16 else 32
    bn = 128 if outputs >= 2048 and group in (-1, 128) else 64
    tiles, spans = -(-rows // bm) * -(-outputs // bn), -(-chunks // linear.SPAN)
    splits = max(1, min(-(-2 * decode.UNITS // tiles), spans // linear.LEAST))
    splits = -(-spans // -(-spans // splits))
    piece, pieces = linear.pieces(common["LANE"], kind.planes, group)
    constants = common | {"HAS_BIAS": False, "BM": bm, "BN": bn, "PIECE": piece, "PIECES": pieces, "UPCAST": False}
    to = {"OUT": number if splits == 1 else "*fp32"}
    found = [Launch(linear._rows, types | to, constants, 4, 4 if bm == 16 else 3, unaligned)]
    if splits > 1:
        found.append(Launch(linear._sum, types, {"HAS_BIAS": False, "BN": 256}, 2, unaligned=unaligned))
    return found


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
    features=(WEIGHT,),
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
            sides.always, unquantized, other_bytes,
        ),
        Side("packed", "PyTorch, packed", False, "PyTorch's own products over int8 and int4.", packed_reason, packed),
    ),
    launches=launches,
    sweeps=("rows", "outputs", "inputs"),
    check=check,
    held=held,
)  # fmt: skip
