"""What a run will need, before it is started: memory and time, roughly. No torch: the form shows it while one types.

An estimate says what it rests on. Runs that were measured are the best basis; without one the time follows from the
operations and bytes of each decoding step and the rates of the machine, measured or assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.catalog import ModelRef, resolve_model, resolve_reward
from engine.devices import main_memory_bytes
from engine.measure.hardware import cores, gpus
from engine.sizes import BYTES, ModelSizes
from spec.choices import Backend, Batching, Caching, Dtype, KvDtype, PromptStyle
from spec.compression.choices import Structure
from spec.recipe import LowRank, Prune, Quantize, Recipe
from spec.run_spec import RunSpec

PROMPT_TOKENS = 100
SHOT_TOKENS = 150
ENDS_EARLY = 0.5  # of the longest answer allowed, where the model can end by itself
PROCESS_BYTES = {"cpu": 700_000_000, "cuda": 600_000_000}
GPU_SHARE = 0.95
OWN_LAYER = 0.2  # of a layer's fixed time in transformers: what our own runtime takes
OF_CEILING = 0.5  # what a decoding step reaches of the rates of large copies and matrix products


class Fit(StrEnum):
    """``tight``: prompts and weights fit, but not if all answers grow to their limit."""

    YES = "yes"
    TIGHT = "tight"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine can do: operations per second, bytes moved per second, fixed seconds per layer and step."""

    flops: float
    bytes_per_s: float
    layer_s: float

    @classmethod
    def of_ceilings(cls, ceilings: Sequence[Mapping[str, Any]], on_gpu: bool) -> Rates | None:
        """The rates of a calibrated machine, from what ``doctor --calibrate`` stores; None where no device fits.

        A run reaches about ``OF_CEILING`` of a ceiling. A layer's fixed time is not measured and stays assumed.
        """
        for found in ceilings:
            multiplies = found.get("matmul_flop_per_s") or {}
            if str(found.get("device", "")).startswith("cuda") is on_gpu and multiplies:
                flops = max(multiplies.values()) * OF_CEILING
                return cls(flops, found["copy_bytes_per_s"] * OF_CEILING, default_rates(on_gpu).layer_s)
        return None


# Of the weights of a layer, about: those of its MLP, of its attention, all.
SHARE_OF = {Structure.NEURONS: 0.7, Structure.HEADS: 0.3, Structure.LAYERS: 0.9}
KV_BYTE = 1.04  # bytes of a number in one byte, with its share of the scale of a head of about 100
GROUP_BITS = 0.3  # a scale of 16 bits, and a zero point, for each group


@dataclass(frozen=True, slots=True)
class Past:
    """A measured run on the same hardware: its spec, throughput_run_tok_s and tokens_per_problem."""

    spec: RunSpec
    tok_s: float
    tokens_per_problem: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """``needed_bytes`` if all answers reach their limit; ``seconds`` without loading; ``basis`` is one sentence.

    Bytes are None for a model whose size is not known yet, seconds None where the number of problems is not.
    """

    weights_bytes: int | None
    kv_bytes: int | None
    needed_bytes: int | None
    available_bytes: int | None
    fit: Fit
    seconds: float | None
    tokens: int | None
    basis: str


def predict(
    spec: RunSpec,
    *,
    problems: int | None,
    default_max_new_tokens: int,
    past: Sequence[Past] = (),
    rates: Rates | None = None,
    available_bytes: int | None = None,
) -> Estimate:
    """Estimate a run of ``problems`` problems. Raises what ``resolve`` raises for a name that is not valid."""
    ref = resolve_model(spec)
    reward = resolve_reward(name) if (name := spec.strategy.reward_name) else None
    limit = spec.task.max_new_tokens or default_max_new_tokens
    on_gpu = spec.runtime.device != "cpu" and bool(gpus())
    available: int | None = available_bytes if available_bytes is not None else memory_of(on_gpu)
    asked = None if problems is None else min(problems, spec.task.limit or problems) * spec.repeats
    seconds, tokens, basis = _time(spec, ref, reward, asked, limit, past, rates or default_rates(on_gpu), rates is None)
    if ref.sizes is None:
        available = None if ref.kind == "server" else available  # nothing of it takes memory here
        return Estimate(None, None, None, available, Fit.UNKNOWN, seconds, tokens, basis)
    dtype = str(ref.dtype or Dtype.FP32) if spec.precision.weights is Dtype.AUTO else str(spec.precision.weights)
    weights = round(ref.sizes.weights_bytes(dtype) * size_share(spec.compression, dtype))
    if reward and reward.sizes:
        as_saved = spec.precision.weights is Dtype.AUTO
        weights += reward.sizes.weights_bytes(str(reward.dtype or Dtype.FP32) if as_saved else dtype)
    rows = min(spec.runtime.batch_size, max(1, (asked or spec.runtime.batch_size) * spec.strategy.samples))
    per_token = round(ref.sizes.kv_bytes_per_token(dtype) * kv_share(spec, dtype))
    prompt = _prompt_tokens(spec)
    overhead = PROCESS_BYTES["cuda" if on_gpu else "cpu"] + 2 * rows * ref.sizes.vocab * 4
    kv = rows * (prompt + limit) * per_token
    least = weights + rows * prompt * per_token + overhead
    needed = weights + kv + overhead
    fit = Fit.NO if least > available else Fit.TIGHT if needed > available else Fit.YES
    return Estimate(weights, kv, needed, available, fit, seconds, tokens, basis)


def memory_of(on_gpu: bool, index: int = 0) -> int:
    """Bytes that a run could take on this machine: nearly all of a GPU's memory, or what main memory has free."""
    if on_gpu:
        return int(gpus()[index]["memory_gib"] * 2**30 * GPU_SHARE)
    return main_memory_bytes()


def default_rates(on_gpu: bool) -> Rates:
    """Cautious rates of a present-day GPU or of this machine's cores, used until the machine has been calibrated."""
    if on_gpu:
        return Rates(flops=100e12, bytes_per_s=1e12, layer_s=0.6e-3)
    return Rates(flops=20e9 * cores(), bytes_per_s=10e9, layer_s=0.35e-3)


def _time(
    spec: RunSpec,
    ref: ModelRef,
    reward: ModelRef | None,
    asked: int | None,
    limit: int,
    past: Sequence[Past],
    rates: Rates,
    assumed: bool,
) -> tuple[float | None, int | None, str]:
    """(seconds, generated tokens, basis)."""
    if asked is None:
        return None, None, "The number of problems is not known."
    if near := _nearest(spec, past):
        each = near.tokens_per_problem / near.spec.strategy.samples * spec.strategy.samples
        same = near.spec.runtime.batch_size == spec.runtime.batch_size
        note = "" if same else f" at batch size {near.spec.runtime.batch_size}"
        basis = f"Estimated from a measured run of {near.spec.model} with {near.spec.strategy}{note}."
        return asked * each / near.tok_s, round(asked * each), basis
    if ref.kind == "server":
        return None, None, "A server tells nothing to estimate from; once a run was measured there, its speed is known."
    if ref.sizes is None:
        return None, None, "The model is not on this machine yet, so its size is not known."
    answer = limit if ref.kind == "shape" else max(1, round(limit * ENDS_EARLY))
    sequences = asked * spec.strategy.samples
    own = spec.runtime.backend is Backend.ISOQUANT
    prompt = _prompt_tokens(spec)
    dtype = ref.dtype or "fp32" if spec.precision.weights is Dtype.AUTO else str(spec.precision.weights)
    if own and spec.runtime.batching is not Batching.STATIC:
        steps = max(answer, math.ceil(sequences * answer / spec.runtime.batch_size))
    else:
        # A static batch runs until its last answer ends, which is near the limit once there are a few.
        batches = math.ceil(sequences / spec.runtime.batch_size)
        steps = batches * (limit if sequences > 1 else answer)
    fixed = rates.layer_s * (OWN_LAYER if own else 1.0)
    read = _active(ref.sizes) * BYTES[dtype] * size_share(spec.compression, dtype)
    step_s = ref.sizes.layers * fixed + read / rates.bytes_per_s
    shared = own and spec.runtime.caching in (Caching.AUTO, Caching.PREFIX)
    work = 2.0 * _active(ref.sizes) * ((asked if shared else sequences) * prompt + sequences * answer)
    if reward and reward.sizes:
        work += 2.0 * _active(reward.sizes) * sequences * (prompt + answer)
    origin = "assumed rates of this kind of machine" if assumed else "this machine's calibrated rates"
    return (
        steps * step_s + work / rates.flops,
        sequences * answer,
        f"Estimated from {origin}; no similar run is stored.",
    )


def size_share(recipe: Recipe, dtype: str) -> float:
    """About what share of the weights' bytes a recipe leaves; what it cannot tell beforehand it leaves whole."""
    share = 1.0
    for step in recipe.work:
        if isinstance(step, Prune) and step.shrinks:
            share *= 1 - step.level * SHARE_OF[step.structure]
        elif isinstance(step, LowRank):
            share *= min(1.0, 1.3 * step.ratio)  # of matrices three times as wide as high, as in most MLPs
        elif isinstance(step, Quantize):
            scales = 0.0 if step.bits == 8 else GROUP_BITS
            share *= (getattr(step, "size", step.bits) + scales) / (8 * BYTES[dtype])
    return share


def kv_share(spec: RunSpec, dtype: str) -> float:
    """About what share of the KV cache's bytes pruned heads and layers and a smaller format leave."""
    share = 1.0 if spec.precision.kv_cache is KvDtype.AUTO else KV_BYTE / BYTES[dtype]
    for step in spec.compression.work:
        if isinstance(step, Prune) and step.structure in (Structure.HEADS, Structure.LAYERS):
            share *= 1 - step.level
    return share


def _active(sizes: ModelSizes) -> int:
    """Parameters that a token visits; all of them where that is not known, for an estimate had better be too long."""
    return sizes.parameters if sizes.active is None else sizes.active


def _nearest(spec: RunSpec, past: Sequence[Past]) -> Past | None:
    """The measured run most like ``spec``: same model, number format, device and task kind; then the batch size."""
    alike = [
        p
        for p in past
        if (p.spec.model, p.spec.precision, p.spec.compression, p.spec.runtime.device, p.spec.task.kind)
        == (spec.model, spec.precision, spec.compression, spec.runtime.device, spec.task.kind)
        and p.tok_s > 0
    ]
    return min(alike, key=lambda p: _distance(spec, p.spec), default=None)


def _distance(a: RunSpec, b: RunSpec) -> tuple[float, bool, float]:
    return (
        abs(math.log2(a.runtime.batch_size / b.runtime.batch_size)),
        a.strategy.name != b.strategy.name,
        abs(math.log2(a.strategy.samples / b.strategy.samples)),
    )


def _prompt_tokens(spec: RunSpec) -> int:
    return PROMPT_TOKENS + (spec.task.shots * SHOT_TOKENS if spec.task.prompt_style is PromptStyle.FEW_SHOT else 0)
