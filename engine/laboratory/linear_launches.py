"""Which Triton kernels a quantized linear layer launches, and how: what the compiler is asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.laboratory import decode, sides
from engine.laboratory.op import HOPPER, Launch

if TYPE_CHECKING:
    from engine.laboratory.cases import Case

GROUP = 128  # weights of half a byte that share a scale


def launches(case: Case) -> list[Launch]:
    """The kernel for so many rows; for very many the one that makes the weight whole, before cuBLAS."""
    if case.feature("activations"):
        return launches_of_bytes(case)
    from kernels.linear import launching
    from kernels.linear import triton as linear
    from kernels.linear.packing import PLANES, lane
    from kernels.linear.weight import Kind

    kind, rows, outputs = Kind(case.feature("weight")), case["rows"], case["outputs"]
    group = GROUP if kind.is_half_byte else -1
    chunks = -(-case["inputs"] // (lane(kind) * PLANES[kind]))
    number = sides.pointer(case.dtype)
    types = dict.fromkeys(("x_row", "M", "N", "K", "chunks", "each", "splits"), "i32")
    types |= dict.fromkeys(("X", "BIAS", "OUT"), number) | {"PARTS": "*fp32"}
    types |= {"W": "*i16", "SCALES": "*fp32", "ZEROS": number}
    if kind == Kind.FP8:
        types["W"] = "*fp8e4nv"
    if group != -1:
        types["SCALES"] = "*bf16"
    common = launching.constants(kind, group, has_zeros=False) | {"UPCAST": False}
    numbers = {"x_row": case["inputs"], "M": rows, "N": outputs, "K": case["inputs"], "chunks": chunks}
    unaligned = frozenset({"splits"} | {name for name, n in numbers.items() if n % 16})

    if rows == 1 or (case.dtype == "fp32" and rows <= linear.VECTORS):
        words = types | ({} if kind == Kind.FP8 else {"W": "*i32"})
        warps = min(4, sides.power_of_2(-(-chunks // 32)))
        bn = next((bn for bn in (4, 2) if outputs >= bn * 4 * decode.UNITS), 1)
        constants = common | {"HAS_BIAS": False, "BN": bn, "BC": 32 * warps}
        return [Launch(linear._vector, words, constants, warps, unaligned=unaligned)]
    if case.dtype == "fp32" or rows > linear.MANY:
        constants = common | {"BC": 128}
        return [Launch(linear._dequantize, types, constants, 4, unaligned=unaligned)]
    if rows > linear.ROWS:
        return launches_of_many(case, types, common, unaligned)
    bm = 16 if rows <= 16 else 32
    bn = 128 if outputs >= 2048 and group in (-1, 128) else 64
    tiles, spans = -(-rows // bm) * -(-outputs // bn), -(-chunks // linear.SPAN)
    _, splits = launching.divide(spans, -(-2 * decode.UNITS // tiles), linear.LEAST)
    piece, pieces = linear.pieces(kind, group)
    constants = common | {"HAS_BIAS": False, "BM": bm, "BN": bn, "PIECE": piece, "PIECES": pieces}
    to = {"OUT": number if splits == 1 else "*fp32"}
    found = [Launch(linear._rows, types | to, constants, 4, linear.stages(bm, group), unaligned)]
    if splits > 1:
        found.append(Launch(launching._sum, types, {"HAS_BIAS": False, "BN": 256}, 2, unaligned=unaligned))
    return found


def launches_of_many(
    case: Case, types: dict[str, str], common: dict[str, Any], unaligned: frozenset[str]
) -> list[Launch]:
    """The product that converts the weight in registers, and the sum of its splits."""
    from kernels.linear import launching, mixed

    found = []
    for capabilities, hopper in HOPPER:
        how = mixed.tile(case["rows"], hopper)
        each, splits = mixed.split_for(case["rows"], case["outputs"], case["inputs"], how, decode.UNITS)
        to = {"OUT": types["OUT"] if splits == 1 else "*fp32"}
        constants = common | {"HAS_BIAS": False, "BM": how.bm, "BN": how.bn, "SPAN": how.bk}
        odd = unaligned | ({"each"} if each % 16 else set())
        found.append(
            Launch(mixed._mixed, types | to, constants, how.warps, how.stages, odd, how.registers,
                   capabilities=capabilities)
        )  # fmt: skip
        if splits > 1:
            summed = {"HAS_BIAS": False, "BN": 256}
            found.append(Launch(launching._sum, types, summed, 2, unaligned=unaligned, capabilities=capabilities))
    return found


def launches_of_bytes(case: Case) -> list[Launch]:
    """Rows to codes, their product, and, where programs share a row of the weight, the sum of their parts."""
    from kernels.linear import dynamic

    rows, outputs, filled = case["rows"], case["outputs"], case["inputs"] + -case["inputs"] % 16
    how, number = dynamic.tile(rows), sides.pointer(case.dtype)
    types = dict.fromkeys(("x_row", "M", "N", "K", "FILLED", "each", "splits"), "i32")
    types |= {"CODES": "*i8", "W": "*i8", "STEP": number, "STEPS": "*fp32", "SCALES": "*fp32", "BIAS": number}
    unaligned = frozenset(
        {"splits"} | {n for n, v in (("M", rows), ("N", outputs), ("x_row", case["inputs"])) if v % 16}
    )
    splits = dynamic.split_for(rows, outputs, filled, decode.UNITS)[1]
    tile = {"HAS_BIAS": False, "WHOLE": splits == 1, "BM": how.bm, "BN": how.bn, "BK": how.bk}
    bk = min(2048, sides.power_of_2(filled))
    to_codes = frozenset({"K"} if case["inputs"] % 16 else ()) | unaligned
    found = [
        Launch(dynamic._quantize, types | {"X": number}, {"STATIC": False, "BK": bk}, 4, unaligned=to_codes),
        Launch(dynamic._multiply, types | {"X": "*i8", "OUT": number if splits == 1 else "*i32"}, tile, how.warps,
               how.stages, unaligned),
    ]  # fmt: skip
    if splits > 1:
        parts = types | {"PARTS": "*i32", "OUT": number}
        found.append(Launch(dynamic._sum, parts, {"HAS_BIAS": False, "BN": 256}, 2, unaligned=unaligned))
    return found
