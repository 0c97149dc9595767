"""Attention of a decoding step: one new token of each sequence over all its keys, or the tree of a draft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.laboratory import attention, paged, sides
from engine.laboratory.op import HOPPER, TREE, Call, Cost, Field, Launch, Op, first_rows
from spec.errors import SpecError

if TYPE_CHECKING:
    from engine.laboratory.cases import Case
    from engine.laboratory.paged import Inputs

UNITS = 132  # multiprocessors of an H100 or H200, which decide whether the keys are split
MOST_NEW = 63  # tokens of a tree, whose ancestors are the bits of one number


def cost(case: Case) -> Cost:
    """Reads the queries and every key and value that is seen, writes the output.

    Bytes: 2 B N Hq D e + 2 B S Hkv D c, with N = 1 new token or those of a tree, S = min(context, window + N - 1) keys
    seen and c bytes to a number of the cache, and 8 B S Hkv for the scales of a cache of one byte. Operations:
    4 B Hq S D, two matrix products; with a tree 4 B Hq D for each pair that sees each other, where each token sees what
    is before the tree, and its ancestors.
    """
    new, context = paged.new_tokens(case), case["context"]
    window = case.feature("window") or context
    rows = case["batch"] * min(context, window + new - 1) * case["kv_heads"]
    one_byte = case.feature("kv") is not None
    moved = 2 * case["batch"] * new * case["heads"] * case["dim"] * case.element
    moved += 2 * rows * case["dim"] * (1 if one_byte else case.element) + (8 * rows if one_byte else 0)
    return Cost(moved, 4 * case["batch"] * case["heads"] * case["dim"] * pairs(new, context - new, window))


def pairs(new: int, before: int, window: int) -> int:
    """How many (query, key) pairs of a draft's tree see each other behind ``before`` tokens; a window counts places.

    >>> pairs(1, 9, 10), pairs(3, 5, 8), pairs(3, 5, 2)
    (10, 20, 5)
    """
    bits = paged.ancestors(new)
    inside = sum((seen >> max(0, i - window + 1)).bit_count() for i, seen in enumerate(bits))
    return inside + sum(min(before, max(0, window - 1 - i)) for i in range(new))


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernel."""
    import torch

    from kernels.decode.triton import decode

    pages = x.pages()
    lengths = torch.full((case["batch"],), paged.all_tokens(case), dtype=torch.int32, device=x.q.device)
    how = x.how(case) | pages.scales | {"tree": paged.tree(case, x)}
    return Call(
        lambda: decode(x.q, pages.keys, pages.values, pages.tables, lengths, **how)[0],
        lambda found, rows: first_rows(found.flatten(0, 1), rows),
    )


def launches(case: Case) -> list[Launch]:
    """The kernel that reads the keys, split over several programs where a GPU would otherwise stand idle."""
    from kernels.attention import tile_for
    from kernels.decode import triton as decode

    dim = case["dim"]
    new, group = paged.new_tokens(case), case["heads"] // case["kv_heads"]
    rows = max(16, sides.power_of_2(group * new))
    tile = tile_for(dim, case.element, case.feature("kv") is not None)
    constants = attention.constants_of(case) | {"NEW": new, "ROWS": rows, "BN": tile}
    constants["HAS_TREE"] = case.feature("tree") is not None
    splits = decode.resident_for(rows, dim) * UNITS // (case["batch"] * case["kv_heads"])
    constants["SINGLE"] = splits < 2 or case["context"] < 2 * decode.LEAST
    unaligned = frozenset({"splits", "table_row"})
    types = attention.types_of(case)
    warps = decode.warps_for(rows, case.element)
    return [
        Launch(decode._attend, types, constants, warps, decode.stages_for_decoding(dim, case.element, hopper),
               unaligned, capabilities=capabilities)
        for capabilities, hopper in HOPPER
    ]  # fmt: skip


def check(case: Case) -> None:
    """Raise SpecError for heads that do not go together, and for a tree that does not fit."""
    paged.check_heads(case)
    new = paged.new_tokens(case)
    if new > min(MOST_NEW, case["context"]):
        raise SpecError(
            f"A draft's tree has at most {MOST_NEW} tokens, no more than the context of {case['context']}, not {new}.",
            field="features",
        )


OP = Op(
    name="decode",
    label="Decoding",
    help="Attention of one new token of each sequence, or a draft's tree of tokens, over all keys and values it has "
    "so far: a matter of memory bandwidth.",
    fields=(
        Field("batch", "Batch", "Sequences.", 8, 32, high=4096),
        Field("context", "Context", "Tokens of each sequence, new ones included.", 1024, 4096, high=2**20),
        *paged.HEADS,
    ),
    features=(*attention.FEATURES, TREE),
    rows=lambda case: case["batch"] * paged.new_tokens(case),
    cost=cost,
    inputs=paged.inputs,
    reference=paged.reference,
    sides=attention.attention_sides(ours),
    launches=launches,
    sweeps=("batch", "context"),
    check=check,
    held=paged.held,
)
