"""Attention of a decoding step over a prefix that all sequences share: samples of one prompt, branches of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.laboratory import attention, decode, paged, sides
from engine.laboratory.op import (
    HOPPER,
    KV,
    PAGE,
    SINKS,
    SOFTCAP,
    WINDOW,
    Call,
    Cost,
    Field,
    Launch,
    Op,
    Side,
    first_rows,
)

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case
    from engine.laboratory.paged import Inputs


def cost(case: Case) -> Cost:
    """Reads the queries, the prefix once for all sequences, what each has for itself, and writes the output.

    Bytes: 2 B Hq D e + 2 (P + B S) Hkv D c, with S = min(suffix, window) own keys and P = min(prefix, window - S) of
    the prefix seen, c bytes to a number of the cache, and 8 (P + B S) Hkv for the scales of a cache of one byte.
    Operations: 4 B Hq (P + S) D, as if nothing were shared.
    """
    window = case.feature("window") or paged.all_tokens(case)
    own = min(case["suffix"], window)
    prefix = min(case["prefix"], window - own)
    rows = (prefix + case["batch"] * own) * case["kv_heads"]
    one_byte = case.feature("kv") is not None
    moved = 2 * case["batch"] * case["heads"] * case["dim"] * case.element
    moved += 2 * rows * case["dim"] * (1 if one_byte else case.element) + (8 * rows if one_byte else 0)
    return Cost(moved, 4 * case["batch"] * case["heads"] * (prefix + own) * case["dim"])


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random numbers, those of the prefix the same for each sequence; only its whole blocks are shared in the cache."""
    import torch

    make = sides.random(device, seed, case.dtype)
    batch, kv_heads, dim = case["batch"], case["kv_heads"], case["dim"]
    q = make(batch, 1, case["heads"], dim)
    k, v = (
        torch.cat(
            [
                make(1, kv_heads, case["prefix"], dim).expand(batch, -1, -1, -1),
                make(batch, kv_heads, case["suffix"], dim),
            ],
            2,
        )
        for _ in "kv"
    )
    return paged.inputs_of(case, seed, q, k, v, shared=case["prefix"] // PAGE)


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernels that read shared keys once, by a plan made beforehand."""
    import torch

    from kernels.forest.plan import plan
    from kernels.forest.triton import forest, size_for

    pages = x.pages()
    lengths = torch.full((case["batch"],), paged.all_tokens(case), dtype=torch.int32)
    size = size_for(case["batch"], case["heads"], case["kv_heads"], case["dim"], x.q.dtype, x.q.device)
    work = torch.from_numpy(plan(pages.tables.cpu().numpy(), lengths.numpy(), size).flat).to(x.q.device)
    where = pages.keys, pages.values, pages.tables, lengths.to(x.q.device), work, size
    how = x.how(case) | pages.scales
    return Call(lambda: forest(x.q[:, 0], *where, **how)[0], first_rows)


def launches(case: Case) -> list[Launch]:
    """Shared keys, in tiles of more rows where the GPU is a Hopper, each sequence's own ones, and the merge."""
    from kernels.forest import triton as forest
    from kernels.forest.plan import Size

    dim, heads = case["dim"], case["heads"]
    types = attention.types_of(case) | dict.fromkeys(("ITEMS", "ORDER"), "*i32")
    common = attention.constants_of(case)
    found = []
    for capabilities, hopper in HOPPER:
        most = 16 if case.dtype == "fp32" else 128 if hopper and dim <= 128 else 64
        size = Size.fitting(case["batch"], heads, case["kv_heads"], units=decode.UNITS, most=most)
        for name, rows in (("shared keys", size.rows), ("own keys", size.narrow_rows)):
            tuned = forest.tuned(rows, dim, case.element, hopper, case.feature("kv") is not None)
            constants = common | {"ROWS": rows, "BN": tuned["BN"]}
            constants = {n: c for n, c in constants.items() if n in forest._attend.arg_names}
            found.append(
                Launch(forest._attend, types, constants, tuned["num_warps"], tuned["num_stages"],
                       frozenset({"table_row"}), name=name, capabilities=capabilities)
            )  # fmt: skip
    pad = sides.power_of_2(dim)
    constants = {"HEADS": heads, "DV": dim, "DV_PAD": pad, "MANY": forest.MERGED, "HAS_SINKS": common["HAS_SINKS"]}
    return [*found, Launch(forest._merge, types, constants, 1 if dim <= 64 else 4)]


_forest, *_others = attention.attention_sides(ours)

OP = Op(
    name="shared",
    label="Shared prefix",
    help="Attention of one new token of each sequence, all with a prefix in common: samples of one prompt, branches of "
    "a search.",
    fields=(
        Field("batch", "Batch", "Sequences.", 8, 64, high=4096),
        Field("prefix", "Prefix", "Tokens that all sequences have in common.", 1024, 8192),
        Field("suffix", "Suffix", "Tokens that each sequence has for itself, the new one included.", 32, 128),
        *paged.HEADS,
    ),
    features=(WINDOW, SOFTCAP, SINKS, KV),
    rows=lambda case: case["batch"],
    cost=cost,
    inputs=inputs,
    reference=paged.reference,
    sides=(
        Side("triton", _forest.label, True, "Reads the prefix once; its plan is not timed.", sides.triton, ours),
        Side(
            "unshared", "Isoquant, Triton unshared", True, "Our decoding kernel: each sequence reads all its keys.",
            sides.triton, decode.ours,
        ),
        *_others,
    ),
    launches=launches,
    sweeps=("batch", "prefix", "suffix"),
    check=paged.check_heads,
    held=paged.held,
)  # fmt: skip
