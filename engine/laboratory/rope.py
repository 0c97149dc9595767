"""Rotary positions, norms of queries and keys, and the write to the paged cache: what stands before attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.laboratory import paged, sides
from engine.laboratory.op import KV, PAGE, QK_NORM, Call, Cost, Field, Launch, Op, Side

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case

EPS = 1e-6
LARGEST = {"int8": 127.0, "fp8": 448.0}


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """``q``, ``k``, ``v`` [tokens, heads, dim], ``cos``, ``sin`` [tokens, dim], where each token goes, norms [dim]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    blocks: torch.Tensor
    places: torch.Tensor
    norms: dict[str, torch.Tensor]
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """What a side writes to: keys and values [blocks, kv heads, 16, dim], with scales where they have one byte."""

    keys: torch.Tensor
    values: torch.Tensor
    scales: dict[str, torch.Tensor]

    def rows(self, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Some tokens' keys and values as they can be read back, fp64."""
        at = x.blocks[rows].long(), slice(None), x.places[rows].long()
        found = self.keys[at].double(), self.values[at].double()
        if not self.scales:
            return found
        keys, values = (self.scales[n][at].double()[..., None] for n in ("key_scales", "value_scales"))
        return found[0] * keys, found[1] * values


def cost(case: Case) -> Cost:
    """Reads q, k, v, cos and sin, writes q to the side and k and v to the cache.

    Bytes: T (2 Hq D + 2 Hkv D + 2 D) e + T 2 Hkv D c, where a number of the cache has c bytes, and 8 T Hkv for scales
    of a cache of one byte. Operations: 3 for each number that rotates, 4 more where it is normed, 2 for each number
    that is scaled.
    """
    tokens, dim = case["tokens"], case["dim"]
    stored = 2 * case["kv_heads"] * dim
    turning = (case["heads"] + case["kv_heads"]) * dim
    one_byte = case.feature("kv") is not None
    moved = (2 * case["heads"] * dim + stored + 2 * dim) * case.element + stored * (1 if one_byte else case.element)
    flops = turning * (7 if case.feature("qk_norm") else 3)
    if one_byte:
        moved += 8 * case["kv_heads"]
        flops += 2 * stored
    return Cost(tokens * moved, tokens * flops)


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Tokens that go to random places of the cache."""
    import torch

    make = sides.random(device, seed, case.dtype)
    tokens, dim = case["tokens"], case["dim"]
    count = -(-tokens // PAGE) + 1
    places = torch.randperm(count * PAGE, generator=torch.Generator().manual_seed(seed))[:tokens].to(device)
    angles = torch.arange(tokens, device=device)[:, None] / 10_000 ** (
        torch.arange(0, dim, 2, device=device)[None] / dim
    )
    both = torch.cat([angles, angles], -1)
    names = ("q_norm", "k_norm") if case.feature("qk_norm") else ()
    return Inputs(
        make(tokens, case["heads"], dim),
        make(tokens, case["kv_heads"], dim),
        make(tokens, case["kv_heads"], dim),
        both.cos().to(sides.dtype(case.dtype)),
        both.sin().to(sides.dtype(case.dtype)),
        (places // PAGE).int(),
        (places % PAGE).int(),
        {name: make(dim) for name in names},
        count,
    )


def cache(case: Case, x: Inputs) -> Cache:
    """An empty cache."""
    import torch

    shape = x.count, case["kv_heads"], PAGE, case["dim"]
    word = case.feature("kv")
    kind = paged.one_byte(word) if word else x.k.dtype
    names = ("key_scales", "value_scales") if word else ()
    return Cache(
        torch.zeros(shape, device=x.k.device).to(kind),
        torch.zeros(shape, device=x.k.device).to(kind),
        {n: torch.zeros(shape[:3], device=x.k.device) for n in names},
    )


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In fp64: the queries, and keys and values as they should be read back."""
    import torch

    from kernels.rope import reference as plain

    keys = torch.zeros(x.count, case["kv_heads"], PAGE, case["dim"], dtype=torch.float64, device=x.k.device)
    values = torch.zeros_like(keys)
    q = plain.rotate_and_store(
        x.q, x.k, x.v, x.cos, x.sin, x.blocks, x.places, keys, values, eps=EPS, **x.norms
    )  # fmt: skip
    return q[rows], *Cache(keys, values, {}).rows(x, rows)


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernel."""
    from kernels.rope.triton import rotate_and_store

    to = cache(case, x)
    where = x.blocks, x.places, to.keys, to.values
    return Call(
        lambda: rotate_and_store(x.q, x.k, x.v, x.cos, x.sin, *where, eps=EPS, **x.norms, **to.scales),
        lambda q, rows: (q[rows], *to.rows(x, rows)),
    )


def eager(case: Case, x: Inputs) -> Call:
    """As transformers' modules have it, and an indexed write to the same cache."""
    import torch

    to = cache(case, x)
    blocks, places = x.blocks.long(), x.places.long()
    word = case.feature("kv")

    def turned(states: torch.Tensor, name: str) -> torch.Tensor:
        if name in x.norms:
            wide = states.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
            states = x.norms[name] * wide.to(states.dtype)
        first, second = states.chunk(2, -1)
        return states * x.cos[:, None] + torch.cat([-second, first], -1) * x.sin[:, None]

    def put(states: torch.Tensor, target: torch.Tensor, name: str) -> None:
        if word:
            scale = states.float().abs().amax(-1) / LARGEST[word]
            to.scales[name][blocks, :, places] = scale
            wide = states.float() / scale[..., None]
            states = wide.round() if word == "int8" else wide
        target[blocks, :, places] = states.to(target.dtype)

    def run() -> torch.Tensor:
        put(turned(x.k, "k_norm"), to.keys, "key_scales")
        put(x.v, to.values, "value_scales")
        return turned(x.q, "q_norm")

    return Call(run, lambda q, rows: (q[rows], *to.rows(x, rows)))


def launches(case: Case) -> list[Launch]:
    """The one kernel."""
    from kernels.rope import triton as rope

    kind, word = sides.pointer(case.dtype), case.feature("kv")
    stored = paged.pointer(word) if word else kind
    types = dict.fromkeys(("Q", "K", "V", "COS", "SIN", "Q_NORM", "K_NORM", "OUT"), kind)
    types |= {"KEYS": stored, "VALUES": stored, "KEY_SCALES": "*fp32", "VALUE_SCALES": "*fp32"}
    types |= {"BLOCKS": "*i32", "PLACES": "*i32", "q_row": "i32", "k_row": "i32", "v_row": "i32", "eps": "fp32"}
    dim = case["dim"]
    constants: dict[str, Any] = {"HEADS": case["heads"], "KV_HEADS": case["kv_heads"], "D": dim, "DV": dim}
    constants |= {"PAD": sides.power_of_2(dim), "TURNING": dim, "PAGE": PAGE}
    constants |= {"HAS_NORM": bool(case.feature("qk_norm")), "LARGEST": LARGEST.get(word, 0.0)}
    return [Launch(rope._rotate_and_store, types, constants, 1)]


OP = Op(
    name="rope",
    label="Rotary",
    help="Rotary positions, norms of queries and keys where a model has them, and the write to the paged cache.",
    fields=(
        Field("tokens", "Tokens", "Tokens of a step.", 512, 4096, high=2**17),
        *paged.HEADS,
    ),
    features=(QK_NORM, KV),
    rows=lambda case: case["tokens"],
    cost=cost,
    inputs=inputs,
    reference=reference,
    sides=(
        Side("triton", "Isoquant, Triton", True, "One launch.", sides.triton, ours),
        Side("native", "Isoquant, C++", True, "Our own kernel for processors.", sides.inside_native, ours),
        Side("eager", "PyTorch, eager", False, "As transformers has it, some twenty operations.", sides.always, eager),
    ),
    launches=launches,
    sweeps=("tokens",),
    check=paged.check_heads,
)
