"""Attention of a prompt, or of a piece of one: many new tokens of each sequence over all its keys, causal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.laboratory import attention, hopper, paged
from engine.laboratory.op import HOPPER, Call, Cost, Field, Launch, Op, first_rows

if TYPE_CHECKING:
    from engine.laboratory.cases import Case
    from engine.laboratory.paged import Inputs


def pairs(new: int, cached: int, window: int) -> int:
    """How many (query, key) pairs see each other: the sum over i < new of min(cached + i + 1, window).

    >>> pairs(3, 0, 0), pairs(2, 5, 0), pairs(3, 5, 2)
    (6, 13, 6)
    """
    longest = cached + new
    if not window or window >= longest:
        return new * cached + new * (new + 1) // 2
    short = max(0, window - cached)  # queries that see less than the window
    return short * cached + short * (short + 1) // 2 + (new - short) * window


def cost(case: Case) -> Cost:
    """Reads the queries and every key and value that any of them sees once, writes the output.

    Bytes: 2 B N Hq D e + 2 B T Hkv D c, with N new tokens, T = min(cached + new, new + window - 1) keys seen and c
    bytes to a number of the cache, and 8 B T Hkv for scales. Operations: 4 B Hq D for each pair that sees each other.
    """
    new, cached, window = case["new"], case["cached"], case.feature("window") or 0
    seen = min(cached + new, new + window - 1) if window else cached + new
    rows = case["batch"] * seen * case["kv_heads"]
    one_byte = case.feature("kv") is not None
    moved = 2 * case["batch"] * new * case["heads"] * case["dim"] * case.element
    moved += 2 * rows * case["dim"] * (1 if one_byte else case.element) + (8 * rows if one_byte else 0)
    return Cost(moved, 4 * case["batch"] * case["heads"] * case["dim"] * pairs(new, cached, window))


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernel."""
    import torch

    from kernels.prefill.triton import prefill, rows_for, tiles

    pages, batch, new = x.pages(), case["batch"], case["new"]
    group = case["heads"] // case["kv_heads"]
    rows = rows_for(case["dim"], group, case.element)
    device = x.q.device
    cut = tuple(torch.from_numpy(a).to(device) for a in tiles([new] * batch, group, rows))
    lengths = torch.full((batch,), new + case["cached"], dtype=torch.int32, device=device)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * new
    q, how = x.q.flatten(0, 1), x.how(case) | pages.scales
    where = pages.keys, pages.values, pages.tables, lengths, starts, cut
    return Call(lambda: prefill(q, *where, rows=rows, **how)[0], first_rows)


def launches(case: Case) -> list[Launch]:
    """The kernel over the paged cache, and those for Hopper, as far as they take the case."""
    from kernels.attention import stages_for
    from kernels.prefill import triton as prefill

    dim = case["dim"]
    rows = prefill.rows_for(dim, case["heads"] // case["kv_heads"], case.element)
    constants = attention.constants_of(case) | {"BM": rows, "BN": prefill.width_for(dim, case.element)}
    types = attention.types_of(case)
    warps, unaligned = 8 if dim >= 64 else 4, frozenset({"table_row"})
    own = [
        Launch(prefill._prefill, types, constants, warps, stages_for(dim, case.element, is_hopper), unaligned,
               capabilities=capabilities)
        for capabilities, is_hopper in HOPPER
    ]  # fmt: skip
    return [*own, *hopper.launches(case)]


OP = Op(
    name="prefill",
    label="Prompts",
    help="Attention of the tokens of a prompt over each other and over what is cached: a matter of the tensor cores.",
    fields=(
        Field("batch", "Batch", "Sequences.", 1, 4, high=4096),
        Field("new", "New tokens", "Tokens of each sequence that are read at once.", 512, 4096, high=2**18),
        Field("cached", "Cached tokens", "Tokens of each sequence that are in the cache already.", 0, 0, 0, 2**20),
        *paged.HEADS,
    ),
    features=attention.FEATURES,
    rows=lambda case: case["batch"] * case["new"],
    cost=cost,
    inputs=paged.inputs,
    reference=paged.reference,
    sides=attention.attention_sides(ours, *hopper.SIDES),
    launches=launches,
    sweeps=("new", "batch", "cached"),
    check=paged.check_heads,
    held=paged.held,
)
