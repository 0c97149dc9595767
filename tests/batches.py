"""Small random models of many architectures, and batches over them, for tests of the runtime."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.backends.rows import Grown, Row
from engine.backends.stopping import Endings
from engine.runtime.batcher import Batcher
from engine.runtime.blocks import BLOCK, BlockPool
from engine.runtime.plan import Plan
from engine.runtime.support import ANY, runner_for
from engine.runtime.way import Way
from spec.choices import Attention, Fusion

CPU = torch.device("cpu")
UNFUSED = Way(fusion=Fusion.OFF)
PLAIN = Way(attention=Attention.PLAIN)
VOCAB = 96
NATIVE = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
MODULES = (
    "arcee", "biogpt", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
    "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "ministral", "mixtral",
    "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen3_moe", "seed_oss", "stablelm",
    "starcoder2",
)  # fmt: skip
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16, "sliding_window": 5,
    "use_sliding_window": True, "max_window_layers": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "ffn_dim": 96, "word_embed_proj_dim": 64,
    "rotary_pct": 0.5, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "query_pre_attn_scalar": 16, "n_heads": 4, "n_layers": 2, "d_model": 64,
}  # fmt: skip


def _fixed(config: Any, name: str) -> bool:
    return isinstance(getattr(type(config), name, None), property)


def causal(architecture: str, seed: int = 0, attention: str = "eager", **changes: Any) -> Any:
    """A random model whose outputs vary: every weight is drawn, norms and biases too."""
    default = AutoConfig.for_model(architecture)
    # A name that a config does not have would still be kept, and transformers' cache would act on it.
    wanted = {k: v for k, v in _BASE.items() if hasattr(default, k) and not _fixed(default, k)}
    config = AutoConfig.for_model(architecture, **(wanted | changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.15 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model


@functools.cache
def known(architecture: str) -> Any:
    """The same, made once; whoever changes it leaves it as it was."""
    return causal(architecture)


class Words:
    """Stands in for a tokenizer: a token is a letter; ``ends`` are its end tokens."""

    pad_id = 0

    def __init__(self, ends: Sequence[int] = (2,)) -> None:
        self.stop_ids = frozenset(ends)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(32 + i) for i in ids if i not in self.stop_ids)


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random tokens, no end token among them."""
    g = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(3, VOCAB, (length,), generator=g).tolist())


def row(context: Sequence[int], limit: int = 8, order: Sequence[int] = (), **more: Any) -> Row:
    """A row that grows greedily unless told otherwise."""
    values = {"sampling": None, "key": 0, "start": 0, "stop": ()} | more
    return Row(tuple(context), limit, order=tuple(order), **values)


def batcher(
    model: Any,
    *,
    batch_size: int = 4,
    budget: int = 64,
    blocks: int = 100,
    share: bool = True,
    static: bool = False,
    kv_cache: bool = True,
    way: Way = ANY,
    drafter: Any = None,
    tokenizer: Any = None,
) -> Batcher:
    """A batcher over a model; ``close`` gives the model back, ``seen`` holds the batches that were run."""
    pool = BlockPool(blocks, share=share and kv_cache)
    runner = Spy(runner_for(model, model.device, way), pool)
    runner.allocate(blocks)
    made = Batcher(runner, pool, Endings(tokenizer or Words()), Plan(batch_size, budget, static, kv_cache), drafter)
    made.close, made.runner, made.seen = runner.close, runner, runner.seen
    return made


class Spy:
    """A runner that keeps the batches it is given; each may write only to blocks that one sequence has for itself."""

    def __init__(self, runner: Any, pool: BlockPool | None = None) -> None:
        self.inner = runner
        self.seen: list[Any] = []
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def logits(self, batch: Any) -> Any:
        self._note(batch)
        return self.inner.logits(batch)

    def greedy(self, batch: Any) -> Any:
        self._note(batch)
        return self.inner.greedy(batch)

    def exiting(self, batch: Any, *how: Any) -> Any:
        self._note(batch)
        return self.inner.exiting(batch, *how)

    def _note(self, batch: Any) -> None:
        self.seen.append(replace(batch, tokens=batch.tokens.copy(), positions=batch.positions.copy()))
        places = list(zip(batch.slots.tolist(), batch.positions.tolist(), strict=True))
        assert len(set(places)) == batch.m
        if self._pool is not None:
            for block in {int(batch.tables[slot, at // BLOCK]) for slot, at in places}:
                assert self._pool.refs(block) == 1
                assert not self._pool.is_findable(block)


def quiet(tokens: int) -> None:
    """Nothing to do between steps."""


def drain(
    made: Batcher, rows: Sequence[Row], on_step: Any = quiet, later: Sequence[Row] = (), after: int = 3
) -> list[Grown]:
    """What becomes of the rows, in their order; the ``later`` ones come ``after`` so many steps."""
    made.submit(rows)
    found: dict[Row, Grown] = {}
    for step in range(10_000):
        if step == after:
            made.submit(later)
        if not made.busy and step > after:
            break
        found.update(made.step(on_step))
    assert not made.busy, "it does not come to an end"
    assert made.pool.in_use == 0, "blocks are still held"
    assert made.open == made._plan.batch_size, "a place is lost"
    return [found[r] for r in (*rows, *later)]


def run(model: Any, rows: Sequence[Row], **how: Any) -> list[Grown]:
    """The same with a batcher of its own."""
    made = batcher(model, **how)
    try:
        return drain(made, rows)
    finally:
        made.close()


def ids(grown: Sequence[Grown]) -> list[tuple[int, ...]]:
    """What was written."""
    return [g.extension.ids for g in grown]


def greedy(model: Any, context: Sequence[int], limit: int = 8) -> tuple[int, ...]:
    """transformers' own greedy text."""
    made = model.generate(torch.tensor([list(context)], device=model.device), max_new_tokens=limit, do_sample=False)
    return tuple(made[0, len(context) :].tolist())


@torch.no_grad()
def plain(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """The model's own scores [tokens, vocabulary]."""
    return model(torch.tensor([list(tokens)], device=model.device)).logits[0]
