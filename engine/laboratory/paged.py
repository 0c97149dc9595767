"""Inputs of attention: the same keys and values dense, as PyTorch takes them, and in blocks, as our kernels do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.laboratory import sides
from engine.laboratory.op import PAGE, Field
from spec.errors import SpecError

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case

HEADS = (
    Field("heads", "Query heads", "Heads of the queries.", 32, 32, high=256, model="heads"),
    Field("kv_heads", "Key/value heads", "Heads of keys and values.", 8, 8, high=256, model="kv_heads"),
    Field("dim", "Head width", "Numbers in a head.", 64, 128, low=16, high=512, model="dim"),
)


def check_heads(case: Case) -> None:
    """Raise SpecError for heads that do not go together."""
    if case["heads"] % case["kv_heads"]:
        raise SpecError(
            f"{case['heads']} query heads cannot share {case['kv_heads']} key/value heads evenly; "
            f"choose kv_heads that divides {case['heads']}.",
            field="kv_heads",
        )
    if case["dim"] % 2:
        raise SpecError(f"dim must be even, not {case['dim']}.", field="dim")


def one_byte(word: str) -> torch.dtype:
    """The torch type of ``int8`` or ``fp8``."""
    import torch

    return {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[word]


def pointer(word: str) -> str:
    """The same as Triton writes a pointer to it."""
    return {"int8": "*i8", "fp8": "*fp8e4nv"}[word]


def new_tokens(case: Case) -> int:
    """Of each sequence."""
    return case["new"] if case.op == "prefill" else case.feature("tree") or 1


def all_tokens(case: Case) -> int:
    """Of each sequence, cached ones included."""
    if case.op == "shared":
        return case["prefix"] + case["suffix"]
    return case["new"] + case["cached"] if case.op == "prefill" else case["context"]


def held(case: Case) -> int:
    """Keys and values of each sequence, those that a window hides too: dense, and once more in blocks."""
    return 4 * case["batch"] * all_tokens(case) * case["kv_heads"] * case["dim"] * case.element


def ancestors(count: int) -> list[int]:
    """Of each token of a draft's binary tree the bits of those on the way to the root, its own included.

    >>> [f"{bits:b}" for bits in ancestors(4)]
    ['1', '11', '101', '1011']
    """
    found: list[int] = []
    for token in range(count):
        found.append((found[(token - 1) // 2] if token else 0) | 1 << token)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """``keys`` [blocks, kv heads, 16, dim] or, ``transposed``, [blocks, kv heads, dim, 16]; ``values`` as the former.

    ``tables`` int32 [sequences, width]; ``scales``: key_scales and value_scales [blocks, kv heads, 16], or nothing.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    scales: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """One set of inputs.

    Attributes:
        q: [batch, new, heads, dim]; k, v: [batch, kv heads, tokens, dim], rounded as a cache of one byte holds them.
        codes: for such a cache k, v [batch, kv heads, tokens, dim] of one byte, and their scales without ``dim``.
        sinks, slopes: fp32 [heads] where asked for.
        order: a place for each block.
        shared: so many of the first blocks of a sequence are the same for all; each one's own copies lie idle.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    codes: tuple[torch.Tensor, ...] | None
    sinks: torch.Tensor | None
    slopes: torch.Tensor | None
    order: torch.Tensor
    shared: int = 0

    def pages(self, transposed: bool = False) -> Pages:
        """Keys and values in blocks, which lie in random order."""
        k, v, *scales = self.codes or (self.k, self.v)
        keys = self._blocks(k)
        tables = self.order.view(len(self.q), -1).int()
        tables[:, : self.shared] = tables[0, : self.shared].clone()
        return Pages(
            keys.transpose(2, 3).contiguous() if transposed else keys,
            self._blocks(v),
            tables,
            dict(zip(("key_scales", "value_scales"), (self._blocks(s) for s in scales), strict=False)),
        )

    def _blocks(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, kv heads, tokens, ...] -> [blocks, kv heads, 16, ...]; behind the end there are zeros."""
        import torch

        batch, heads, tokens, *rest = x.shape
        width = -(-tokens // PAGE)
        whole = torch.zeros(batch, heads, width * PAGE, *rest, device=x.device).to(x.dtype)
        whole[:, :, :tokens] = x
        blocks = whole.view(batch, heads, width, PAGE, *rest).transpose(1, 2).reshape(-1, heads, PAGE, *rest)
        found = torch.empty(blocks.shape, dtype=x.dtype, device=x.device)  # not empty_like: it would keep odd strides
        found[self.order] = blocks
        return found

    def how(self, case: Case) -> dict[str, Any]:
        """What our kernels and their references take besides the tensors."""
        found: dict[str, Any] = {"scale": case["dim"] ** -0.5, "window": case.feature("window") or 0}
        found["softcap"] = float(case.feature("softcap") or 0)
        return found | {"sinks": self.sinks, "slopes": self.slopes}


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random queries, keys and values."""
    make = sides.random(device, seed, case.dtype)
    batch, total = case["batch"], all_tokens(case)
    q = make(batch, new_tokens(case), case["heads"], case["dim"])
    k, v = (make(batch, case["kv_heads"], total, case["dim"]) for _ in "kv")
    return inputs_of(case, seed, q, k, v)


def inputs_of(case: Case, seed: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shared: int = 0) -> Inputs:
    """What else a case asks for, beside its queries, keys and values as ``Inputs`` has them."""
    import torch

    device, batch, heads, total = q.device, len(q), case["heads"], k.shape[2]
    codes = None
    if word := case.feature("kv"):
        (kc, ks), (vc, vs) = (_quantized(x, word) for x in (k, v))
        codes = kc, vc, ks, vs
        k, v = ((c.float() * s[..., None]).to(k.dtype) for c, s in ((kc, ks), (vc, vs)))
    sinks = sides.random(device, seed + 1, "fp32")(heads) if case.feature("sinks") else None
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=device) / heads) if case.feature("alibi") else None
    blocks = batch * -(-total // PAGE)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).to(device)
    return Inputs(q, k, v, codes, sinks, slopes, order, shared)


def _quantized(x: torch.Tensor, word: str) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.float().abs().amax(-1) / (127.0 if word == "int8" else 448.0)
    wide = x.float() / scale[..., None]
    return (wide.round() if word == "int8" else wide).to(one_byte(word)), scale


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Some of the tokens [batch x new] in fp64, each as a decoding step of its own over what it sees.

    But for a tree, whose tokens see what no length can say: it is computed whole.
    """
    import torch

    from kernels.decode import reference as plain

    new, pages = new_tokens(case), x.pages()
    of, at = torch.div(rows, new, rounding_mode="floor"), rows % new
    mask = tree(case, x)
    if mask is None:
        q, lengths, at = x.q[of, at][:, None], (all_tokens(case) - new + at + 1).int(), at * 0
    else:
        q, mask, lengths = x.q[of], mask[of], torch.full_like(of, all_tokens(case)).int()
    found, _ = plain.decode(
        q, pages.keys, pages.values, pages.tables[of], lengths, tree=mask, **x.how(case), **pages.scales
    )
    return (found[torch.arange(len(rows), device=rows.device), at],)


def tree(case: Case, x: Inputs) -> torch.Tensor | None:
    """int64 [batch, new], which new tokens each of them sees; None where each sees those before it."""
    import torch

    if not case.feature("tree"):
        return None
    return torch.tensor([ancestors(new_tokens(case))] * len(x.q), dtype=torch.int64, device=x.q.device)
