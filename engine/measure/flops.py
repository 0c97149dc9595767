"""Compute of a run, counted from the architecture and the tokens: exact for the formula, never sampled.

A forward pass of one token costs 2 N operations (a multiplication and an addition per parameter: Kaplan et al. 2020,
arXiv 2001.08361, section 2.1) plus attention: queries times keys and weights times values, 2 H D each for every
position attended to, so 4 L H D c with L layers, H heads of width D and c positions (same source, their table 1, where
c is the context length). Softmax, norms and activations are left out, as there.

Three accountings (docs/metrics.md, ``engine.measure.account``): ``generated`` is the convention of the
inference-scaling paper; ``total`` counts every position that a model processed, prompts, verifiers and drafts included;
``no_reuse`` adds what was found computed. Padding is not counted. Reading the prompt gives the first token and the last
token is never read, so T tokens take T - 1 steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
        heads: query heads, of width ``head_dim``; their mean where pruned layers have different numbers.
        windows: per layer, how many positions it attends to at most; None for all.
        head_parameters: of the output head; ``kv_parameters``: that make one layer's keys and values. Both 0 where
            they are not told apart.
        reason: why ``active_parameters`` is None.
    """

    parameters: int
    active_parameters: int | None
    heads: float
    head_dim: int
    windows: tuple[int | None, ...]
    reason: str | None = None
    head_parameters: int = 0
    kv_parameters: int = 0

    @property
    def layers(self) -> int:
        """How many layers attend."""
        return len(self.windows)


def model_shape(model: Any) -> ModelShape:
    """The shape of a transformers model (a PreTrainedModel), from its modules and its config.

    A quantized weight counts as many parameters as it has numbers; of a pruned or factorized one what is left counts.
    """
    from torch import nn

    config = model.config.get_text_config()
    counted = dict(_counted(model))
    parameters = sum(count for count, _ in counted.values())
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head_size, head_keys = 0, set()
    if head is not None:
        head_keys = {key for key, _ in _own(head, "")}
        head_size = sum(count for key, (count, name) in _own(head, "") if name != "bias")
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding) or _is_lookup(m)]
    looked_up = {key for m in embeddings for key, _ in _own(m, "")} - head_keys
    active: int | None = parameters - sum(counted[key][0] for key in looked_up)
    reason = None
    routed = sum(count for count, name in counted.values() if ".experts." in name)
    if routed and active is not None:
        share = _active_share(config)
        if share is None:
            active, reason = None, "the model routes tokens to experts but its config does not say how many"
        else:
            active -= round(routed * (1 - share))
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    windows = _windows(config)
    made = sum(count for count, name in counted.values() if ".k_proj." in name or ".v_proj." in name)
    wide = [m.out_features for name, m in model.named_modules() if name.endswith(".q_proj")]
    if wide and len(wide) == len(windows):  # pruned layers may have fewer heads than the config says
        mean = sum(wide) / len(wide) / head_dim
    else:
        mean = heads
    return ModelShape(parameters, active, mean, head_dim, windows, reason, head_size, made // max(1, len(windows)))


def _counted(model: Any) -> Iterable[tuple[int, tuple[int, str]]]:
    """Where each tensor of weights lies, with how many numbers it stands for and its name; tied ones have one place."""
    for name, module in model.named_modules():
        yield from _own(module, f"{name}.")


def _own(module: Any, prefix: str) -> Iterable[tuple[int, tuple[int, str]]]:
    for name, parameter in module.named_parameters(recurse=False):
        yield id(parameter), (parameter.numel(), prefix + name)
    weight = getattr(module, "quantized", None)
    if weight is not None:
        yield id(weight.codes), (weight.shape[0] * weight.shape[1], f"{prefix}weight")
        if (bias := getattr(module, "bias", None)) is not None:
            yield id(bias), (bias.numel(), f"{prefix}bias")


def _is_lookup(module: Any) -> bool:
    return getattr(module, "quantized", None) is not None and hasattr(module, "num_embeddings")


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


def spans_flops(shape: ModelShape, spans: Iterable[tuple[int, int]]) -> float | None:
    """Operations to process positions ``first .. end - 1`` of a sequence, for each (first, end) run; None without N."""
    costs = [forward_flops(shape, end - first, context=first) for first, end in spans]
    return None if shape.active_parameters is None else sum(c or 0.0 for c in costs)


def exit_savings(shape: ModelShape, exits: Sequence[int], context: int, first: int = 1) -> float:
    """What early exits spared of the operations of full depth: less what looking for an exit cost, so it can be < 0.

    ``exits``: layers that each token took; the first came from a context of ``context`` tokens at full depth. A token
    that leaves after l of L layers spares the others, but for their keys and values, and has paid for the output head
    after each layer it was looked at, from the ``first`` on, where full depth pays once.
    """
    if shape.active_parameters is None:
        return 0.0
    layers = shape.layers
    layer = (shape.active_parameters - shape.head_parameters) / layers - shape.kv_parameters
    saved = 0.0
    for i, depth in enumerate(exits[1:]):
        skipped = layers - depth
        saved += 2.0 * skipped * layer + 4.0 * shape.heads * shape.head_dim * skipped * (context + i + 1)
        saved -= 2.0 * shape.head_parameters * max(0, depth - first)
    return saved
