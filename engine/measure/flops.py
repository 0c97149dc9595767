"""Compute of a run, counted from the architecture and the tokens: exact for the formula, never sampled.

A forward pass of one token costs 2 N operations (a multiplication and an addition per parameter: Kaplan et al. 2020,
arXiv 2001.08361, section 2.1) plus attention: queries times keys and weights times values, 2 H D each for every
position attended to, so 4 L H D c with L layers, H heads of width D and c positions (same source, their table 1, where
c is the context length). Softmax, norms and activations are left out, as there.

Three accountings (docs/metrics.md): ``generated`` is the convention of the inference-scaling paper; ``total`` adds
prompts, attention and verifier; ``no_reuse`` charges every sample its own prompt. Padding is not counted. Reading the
prompt gives the first token and the last token is never read, so ``total`` charges T - 1 steps for T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spec.results import Answer

# The names that configs have for these; engine.sizes reads the same ones from a config.json.
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the formulas need of a model.

    Attributes:
        parameters: all of them, tied weights once.
        active_parameters: N, those that take part in one token's forward pass: embedding look-ups left out (a tied
            output head counts), of routed experts only those a token is sent to. None where that cannot be told.
        heads: query heads, of width ``head_dim``.
        windows: per layer, how many positions it attends to at most; None for all.
        reason: why ``active_parameters`` is None.
    """

    parameters: int
    active_parameters: int | None
    heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    reason: str | None = None

    @property
    def layers(self) -> int:
        """How many layers attend."""
        return len(self.windows)


def model_shape(model: Any) -> ModelShape:
    """The shape of a transformers model (a PreTrainedModel), from its modules and its config."""
    from torch import nn

    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    looked_up = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        looked_up.pop(id(head.weight), None)
    active: int | None = parameters - sum(looked_up.values())
    reason = None
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    if routed and active is not None:
        share = _active_share(config)
        if share is None:
            active, reason = None, "the model routes tokens to experts but its config does not say how many"
        else:
            active -= round(routed * (1 - share))
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelShape(parameters, active, heads, head_dim, _windows(config), reason)


def _active_share(config: Any) -> float | None:
    chosen = next((getattr(config, n) for n in EXPERTS_PER_TOKEN if getattr(config, n, None)), None)
    experts = next((getattr(config, n) for n in EXPERTS if getattr(config, n, None)), None)
    return chosen / experts if chosen and experts else None


def _windows(config: Any) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def attended(first: int, tokens: int, window: int | None = None) -> int:
    """Positions attended to in all by ``tokens`` tokens of one sequence, the first of which attends to ``first``.

    >>> attended(1, 4), attended(1, 4, window=2), attended(10, 1)
    (10, 7, 10)
    """
    last = first + tokens - 1
    if window is None or last <= window:
        return (first + last) * tokens // 2
    growing = max(0, min(tokens, window - first + 1))
    return (2 * first + growing - 1) * growing // 2 + window * (tokens - growing)


def forward_flops(shape: ModelShape, tokens: int, context: int = 0) -> float | None:
    """Operations to process ``tokens`` tokens that follow ``context`` cached ones; None where N is not known."""
    if shape.active_parameters is None:
        return None
    attention = sum(attended(context + 1, tokens, window) for window in shape.windows)
    return 2.0 * shape.active_parameters * tokens + 4.0 * shape.heads * shape.head_dim * attention


@dataclass(frozen=True, slots=True)
class Flops:
    """The three accountings of one run."""

    generated: float
    total: float
    no_reuse: float


def count_flops(
    answers: Iterable[Answer],
    model: ModelShape,
    verifier: ModelShape | None = None,
) -> Flops | None:
    """The compute of all answers; None where the active parameters of a model are not known.

    Every sample is taken to have processed its own copy of the prompt.
    """
    if model.active_parameters is None or (verifier is not None and verifier.active_parameters is None):
        return None
    generated = total = no_reuse = 0.0
    for answer in answers:
        n = max(1, len(answer.candidates))
        length = answer.tokens_prompt // n
        decode = sum(forward_flops(model, max(0, c.tokens - 1), context=length) or 0.0 for c in answer.candidates)
        scored = _scored(answer, length, verifier)
        prompt = forward_flops(model, length) or 0.0
        generated += 2.0 * model.active_parameters * answer.tokens_generated
        total += decode + scored + (prompt * answer.tokens_prompt / length if length else 0.0)
        no_reuse += decode + scored + prompt * n
    return Flops(generated, total, no_reuse)


def _scored(answer: Answer, prompt: int, verifier: ModelShape | None) -> float:
    """What the verifier cost: only the sum of its tokens is recorded, so each candidate has its share by length."""
    if verifier is None or not answer.tokens_verifier:
        return 0.0
    total, left, cost = answer.tokens_verifier, answer.tokens_verifier, 0.0
    lengths = [max(1, prompt + c.tokens) for c in answer.candidates] or [1]
    for length in lengths[:-1]:
        share = min(left, round(total * length / sum(lengths)))
        cost += forward_flops(verifier, share) or 0.0
        left -= share
    return cost + (forward_flops(verifier, left) or 0.0)
