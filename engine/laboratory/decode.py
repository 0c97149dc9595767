"""Attention of a decoding step: one new token of each sequence over all its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.laboratory import attention, paged, sides
from engine.laboratory.op import Call, Cost, Field, Launch, Op, first_rows

if TYPE_CHECKING:
    from engine.laboratory.cases import Case
    from engine.laboratory.paged import Inputs

UNITS = 132  # multiprocessors of an H100 or H200, which decide whether the keys are split


def cost(case: Case) -> Cost:
    """Reads the queries and every key and value that is seen, writes the output.

    Bytes: 2 B Hq D e + 2 B S Hkv D c, with S = min(context, window) keys seen and c bytes to a number of the cache,
    and 8 B S Hkv for the scales of a cache of one byte. Operations: 4 B Hq S D, two matrix products.
    """
    seen = min(case["context"], case.feature("window") or case["context"])
    rows = case["batch"] * seen * case["kv_heads"]
    one_byte = case.feature("kv") is not None
    moved = 2 * case["batch"] * case["heads"] * case["dim"] * case.element
    moved += 2 * rows * case["dim"] * (1 if one_byte else case.element) + (8 * rows if one_byte else 0)
    return Cost(moved, 4 * case["batch"] * case["heads"] * seen * case["dim"])


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernel."""
    import torch

    from kernels.decode.triton import decode

    pages = x.pages()
    lengths = torch.full((case["batch"],), case["context"], dtype=torch.int32, device=x.q.device)
    how = x.how(case) | pages.scales
    return Call(
        lambda: decode(x.q, pages.keys, pages.values, pages.tables, lengths, **how)[0],
        lambda found, rows: first_rows(found[:, 0], rows),
    )


def launches(case: Case) -> list[Launch]:
    """The kernel that reads the keys, split over several programs where a GPU would otherwise stand idle."""
    from kernels.decode import triton as decode

    dim = case["dim"]
    group = case["heads"] // case["kv_heads"]
    rows = max(16, sides.power_of_2(group))
    constants = attention.constants_of(case) | {"NEW": 1, "ROWS": rows, "BN": decode.TILE, "HAS_TREE": False}
    filled = case["batch"] * case["kv_heads"] >= 2 * UNITS
    constants["SINGLE"] = filled or case["context"] < 2 * decode.LEAST
    unaligned = frozenset({"splits", "table_row"})
    types = attention.types_of(case)
    return [Launch(decode._attend, types, constants, 4, 3 if dim <= 128 else 2, unaligned)]


OP = Op(
    name="decode",
    label="Decode attention",
    help="One new token of each sequence over all keys and values that it has so far: a matter of memory bandwidth.",
    fields=(
        Field("batch", "Batch", "Sequences.", 8, 32, high=4096),
        Field("context", "Context", "Tokens of each sequence, the new one included.", 1024, 4096, high=2**20),
        *paged.HEADS,
    ),
    features=attention.FEATURES,
    rows=lambda case: case["batch"],
    cost=cost,
    inputs=paged.inputs,
    reference=paged.reference,
    sides=attention.attention_sides(ours),
    launches=launches,
    sweeps=("batch", "context"),
    check=paged.check_heads,
)
