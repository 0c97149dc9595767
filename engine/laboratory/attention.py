"""The sides of attention, for a decoding step and for a prompt: ours, and what PyTorch offers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engine.laboratory import sides
from engine.laboratory.op import ALIBI, KV, PAGE, SINKS, SOFTCAP, WINDOW, Call, Side, first_rows
from engine.laboratory.paged import Inputs, all_tokens, new_tokens, pointer, tree

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case

FEATURES = (WINDOW, SOFTCAP, SINKS, ALIBI, KV)


def tokens_first(found: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of [batch, heads, new, dim]."""
    return (found.transpose(1, 2).flatten(0, 1)[rows],)


def native(case: Case, x: Inputs) -> Call:
    """The C++ kernel, with the conversions to and from fp32 that the runtime makes."""
    import numpy as np

    from kernels.native import ops

    new, total, heads = new_tokens(case), all_tokens(case), case["heads"]
    pages = x.pages(transposed=True)
    positions = np.tile(np.arange(total - new, total, dtype=np.int32), case["batch"])
    slots = np.repeat(np.arange(case["batch"], dtype=np.int32), new)
    tables = pages.tables.numpy()
    rows, scratch = ops.Rows.of(positions, slots, tables), ops.Scratch()
    how = x.how(case)
    sinks = None if x.sinks is None else x.sinks.data_ptr()
    shape = ops.Heads(heads, case["kv_heads"], case["dim"], how["scale"], how["softcap"], how["window"], sinks)
    q = x.q.flatten(0, 1)
    cache = ops.Cache.of(pages.keys, pages.values, *pages.scales.values())
    alive = positions, slots, tables, x, pages  # the structures hold addresses only, so `run` must keep what lies there

    def run() -> torch.Tensor:
        assert alive
        out = ops.attend(q.float().contiguous(), pages.keys.dtype, cache, rows, shape, scratch)
        return out.view(q.shape).to(q.dtype)

    return Call(run, first_rows)


def gathered(case: Case, x: Inputs) -> Call:
    """The runtime's plain PyTorch path over the same blocks."""
    import numpy as np

    from engine.runtime.attention import gathered as plain
    from engine.runtime.batch import Batch, Ragged
    from engine.runtime.kv_cache import KvCache, KvShape

    new, total = new_tokens(case), all_tokens(case)
    pages = x.pages(transposed=not x.q.is_cuda)
    kv = KvCache([KvShape(case["kv_heads"], case["dim"], case["dim"])], 1, x.k.dtype, x.k.device, x.q.is_cuda)
    kv.keys[0], kv.values[0] = pages.keys, pages.values
    positions = np.tile(np.arange(total - new, total, dtype=np.int32), case["batch"])
    slots = np.repeat(np.arange(case["batch"], dtype=np.int32), new)
    batch = Batch(positions, positions, slots, pages.tables.cpu().numpy(), slots)
    ragged = Ragged.of(batch, x.q.device)
    how = x.how(case)
    q = x.q.flatten(0, 1)
    which = how["scale"], how["window"], how["softcap"], x.sinks
    return Call(lambda: plain(q, kv, 0, ragged, *which), first_rows)


def bias_of(case: Case, x: Inputs) -> torch.Tensor | None:
    """What is added to the scores [1, 1 or heads, new, tokens], -inf where a token does not see; None for nothing."""
    import torch

    new, total = new_tokens(case), all_tokens(case)
    at = torch.arange(total, device=x.q.device)
    mine = torch.arange(total - new, total, device=x.q.device)[:, None]
    seen = at <= mine
    if (mask := tree(case, x)) is not None:  # the same for each sequence
        bits = mask[0][:, None] >> (at - (total - new)).clamp(min=0)
        seen = (at < total - new) | (bits & 1 == 1)
    if window := case.feature("window"):
        seen = seen & (at > mine - window)
    if x.slopes is None and bool(seen.all()):
        return None
    bias = torch.zeros(1, 1, new, total, device=x.q.device).masked_fill(~seen, float("-inf"))
    return bias if x.slopes is None else bias + x.slopes[None, :, None, None] * (at - mine)


def scores(case: Case) -> int:
    """Bytes of all scores, in the case's format and in fp32, and of keys and values repeated for each query head."""
    pairs = case["batch"] * case["heads"] * new_tokens(case) * all_tokens(case)
    repeated = 2 * case["batch"] * case["heads"] * all_tokens(case) * case["dim"] * case.element
    return pairs * (case.element + 4) + (repeated if case["heads"] > case["kv_heads"] else 0)


def eager(case: Case, x: Inputs) -> Call:
    """As transformers' eager attention has it: keys and values repeated, softmax in fp32."""
    import torch

    q, group = x.q.transpose(1, 2).contiguous(), case["heads"] // case["kv_heads"]
    how, bias = x.how(case), bias_of(case, x)
    bias = None if bias is None else bias.to(q.dtype)
    sink = None if x.sinks is None else x.sinks.to(q.dtype).view(1, -1, 1, 1).expand(*q.shape[:3], 1)

    def run() -> torch.Tensor:
        keys, values = (y.repeat_interleave(group, 1) if group > 1 else y for y in (x.k, x.v))
        scores = q @ keys.transpose(2, 3) * how["scale"]
        if how["softcap"]:
            scores = torch.tanh(scores / how["softcap"]) * how["softcap"]
        if bias is not None:
            scores = scores + bias
        if sink is None:
            weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        else:
            weights = torch.cat([scores, sink], -1).softmax(-1, dtype=torch.float32)[..., :-1].to(q.dtype)
        return weights @ values

    return Call(run, tokens_first)


def _reach(case: Case) -> int:
    """Keys of a sequence, those of a decoding step only as far as any of its tokens sees."""
    window = case.feature("window")
    if case.op == "prefill" or not window:
        return all_tokens(case)
    return min(all_tokens(case), window + new_tokens(case) - 1)


def _sdpa(backend: str | None, case: Case, x: Inputs) -> Call:
    """torch's scaled_dot_product_attention, pinned to one kernel or free to choose."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, bias, causal = x.q.transpose(1, 2).contiguous(), None, False
    k, v = (y[:, :, -_reach(case) :] for y in (x.k, x.v))
    if sides.needs_mask(case):
        bias = bias_of(case, x)
        if bias is not None:
            bias = bias[..., -k.shape[2] :]
            bias = (bias == 0) if x.slopes is None else bias.to(q.dtype)
    elif case.op == "prefill":
        causal = True
    more: dict[str, Any] = {"attn_mask": bias, "is_causal": causal, "scale": case["dim"] ** -0.5}
    if case["heads"] != case["kv_heads"]:
        more["enable_gqa"] = True

    def free() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, **more)

    def pinned() -> torch.Tensor:
        with sdpa_kernel(getattr(SDPBackend, str(backend))):
            return scaled_dot_product_attention(q, k, v, **more)

    return Call(pinned if backend else free, tokens_first)


def flex(case: Case, x: Inputs) -> Call:
    """FlexAttention, compiled by PyTorch into a kernel of its own."""
    q = x.q.transpose(1, 2).contiguous()
    k, v = (y[:, :, -_reach(case) :] for y in (x.k, x.v))
    call, score, mask = _flex_parts(case, str(q.device), k.shape[2])
    more = {"score_mod": score, "block_mask": mask, "scale": case["dim"] ** -0.5, "enable_gqa": True}
    return Call(lambda: call(q, k, v, **more), tokens_first)


@lru_cache(maxsize=1)  # equal for all copies of the inputs, or each of them would be compiled anew
def _flex_parts(case: Case, device: str, total: int) -> tuple[Any, Any, Any]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    new, window = new_tokens(case), case.feature("window") or 2**30
    cap, behind = float(case.feature("softcap") or 0), total - new_tokens(case)
    slopes = 2.0 ** (-8.0 * torch.arange(1, case["heads"] + 1, device=device) / case["heads"])
    alibi = bool(case.feature("alibi"))

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if cap:
            s = torch.tanh(s / cap) * cap
        return s + slopes[h] * (j - i - behind) if alibi else s

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i + behind) & (j > i + behind - window)

    mask = create_block_mask(seen, None, None, new, total, device=device) if case.op == "prefill" else None
    return torch.compile(flex_attention, dynamic=False), score if cap or alibi else None, mask


def attention_sides(ours: Any, *more: Side) -> tuple[Side, ...]:
    """All sides of an attention operation whose Triton kernel ``ours`` calls; ``more`` of our own stand behind it."""
    own = (
        Side("triton", "Isoquant, Triton", True, "Our kernel over the paged cache.", sides.triton, ours),
        *more,
        Side("native", "Isoquant, C++", True, "Our kernel for processors over the paged cache.", sides.native, native),
        Side(
            "gathered",
            "Isoquant, in PyTorch",
            True,
            "The runtime without a kernel of its own: it gathers the blocks, and leaves the rest to PyTorch.",
            sides.gathered,
            gathered,
        ),
        Side("eager", "PyTorch, eager", False, "As transformers has it.", sides.always, eager, memory=scores),
    )
    pinned = (
        ("sdpa", "SDPA", "torch's attention, free to choose its kernel.", None, sides.sdpa),
        ("sdpa-math", "SDPA, math", "Pinned to plain products.", "MATH", sides.sdpa),
        ("sdpa-flash", "SDPA, flash", "Pinned to flash attention.", "FLASH_ATTENTION", sides.sdpa_flash),
        ("sdpa-efficient", "SDPA, efficient", "Pinned to xFormers'.", "EFFICIENT_ATTENTION", sides.sdpa_efficient),
        ("sdpa-cudnn", "SDPA, cuDNN", "Pinned to cuDNN.", "CUDNN_ATTENTION", sides.sdpa_cudnn),
    )
    found = [
        Side(name, label, False, words, reason, lambda case, x, b=backend: _sdpa(b, case, x),
             memory=scores if backend == "MATH" else lambda case: 0)
        for name, label, words, backend, reason in pinned
    ]  # fmt: skip
    own_kernel = Side("flex", "FlexAttention", False, "Compiled by PyTorch.", sides.flex, flex)
    return (*own, *found, own_kernel)


def types_of(case: Case) -> dict[str, str]:
    """Types of the arguments of our attention kernels, for the compiler."""
    kind, word = sides.pointer(case.dtype), case.feature("kv")
    cache = pointer(word) if word else kind
    found = dict.fromkeys(("KEY_SCALES", "VALUE_SCALES", "SLOPES", "SINKS", "LSE", "PARTS", "PART_LSE"), "*fp32")
    found |= dict.fromkeys(("TABLES", "LENGTHS", "STARTS", "TILE_SEQUENCE", "TILE_FIRST"), "*i32") | {"TREE": "*i64"}
    found |= dict.fromkeys(("q_row", "q_new", "q_head", "table_row", "splits"), "i32")
    return found | {"scale": "fp32", "softcap": "fp32", "Q": kind, "OUT": kind, "K": cache, "V": cache}


def constants_of(case: Case) -> dict[str, Any]:
    """Compile-time arguments that both kernels have."""
    dim, pad = case["dim"], max(16, sides.power_of_2(case["dim"]))  # as kernels.attention.padded
    return {
        "GROUP": case["heads"] // case["kv_heads"], "KV_HEADS": case["kv_heads"],
        "D": dim, "D_PAD": pad, "DV": dim, "DV_PAD": pad, "PAGE": PAGE,
        "WINDOW": case.feature("window") or 0, "SOFTCAP": bool(case.feature("softcap")),
        "HAS_SINKS": bool(case.feature("sinks")), "HAS_SLOPES": bool(case.feature("alibi")),
        "QUANTIZED": case.feature("kv") is not None, "UPCAST": False,
    }  # fmt: skip
