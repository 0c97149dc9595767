"""Reward models: how good is each step of a solution, or the whole of it. Batch in, batch out.

What a folder or hub id holds is told by its config.json (``engine.reward_kinds``): ``isoquant_reward`` names the kind
and its words; without it the architectures are recognised that process reward models are published in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from engine.catalog import ModelRef, resolve_reward
from engine.devices import check_fits, does_not_fit, is_out_of_memory, pick_dtype, release
from engine.fingerprints import files_state, fingerprint
from engine.folders import HEAD_FILE, weight_files
from engine.hazard import HazardHead
from engine.measure.flops import ModelShape
from engine.measure.memory import weights_bytes
from engine.measure.time import now, synchronise
from engine.model_files import read_weights
from engine.models import FITS_ADVICE, ModelHost, shape_of
from engine.reward_kinds import Hazard, Kind, Laid, Separator, Tag, Whole, read, scores, wanted
from engine.sizes import context_of
from engine.tokenizers import ModelTokenizer, load_tokenizer
from spec.choices import Attention, Dtype
from spec.errors import ModelError, shorten, shorten_path

# Published models whose config does not say how they are asked.
MATH_SHEPHERD = {"kind": "tag", "word": "ки", "good": "+", "bad": "-"}
QWEN_PRM = {"kind": "separator", "token": "<extra_0>"}
KNOWN = "hazard, tag, separator"


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores from 0 to 1 of one solution's steps.

    ``tokens``: of prompt and solution as far as they were read; ``spans``: (first, end) runs of them that were
    processed for it, the rest was found computed. ``cut``: the solution is longer than the reward model's context, and
    what stands beyond it was not read.
    """

    steps: tuple[float, ...]
    tokens: int
    cut: bool = False
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class RewardModel:
    """A reward model ready to run: ``model`` is its trunk, with an output head where its kind reads one."""

    name: str
    model: Any
    tokenizer: ModelTokenizer
    kind: Kind
    device: torch.device
    dtype: Dtype
    context: int | None
    load_s: float
    weights_bytes: int
    shape: ModelShape
    fingerprint: str
    warm: bool = False

    def score(
        self, items: Sequence[tuple[str, str]], batch_size: int, on_batch: Callable[[], None] = lambda: None
    ) -> list[Scored]:
        """Scores of (prompt, solution) pairs, in order, in padded batches of similar length, each read whole.

        ``on_batch`` is called before each batch and may raise Cancelled. Raises DoesNotFitError.
        """
        texts = [self.kind.lay_out(prompt, text) for prompt, text in items]
        order = sorted(range(len(items)), key=lambda i: len(texts[i].ids))
        found: list[Scored | None] = [None] * len(items)
        for start in range(0, len(order), batch_size):
            on_batch()
            batch = order[start : start + batch_size]
            for index, steps in zip(batch, self._run([texts[i] for i in batch]), strict=True):
                length = len(texts[index].ids)
                found[index] = Scored(steps, length, texts[index].cut, ((0, length),))
        return [s for s in found if s is not None]

    def _run(self, batch: Sequence[Laid]) -> list[tuple[float, ...]]:
        try:
            return self._forward(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release(self.device)
            advice = f"try batch size {max(1, len(batch) // 2)}."
            raise does_not_fit(
                f"{len(batch)} solutions in {self.name} at once", None, None, self.device, advice
            ) from None

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Laid]) -> list[tuple[float, ...]]:
        width = max(len(r.ids) for r in batch)
        pad = self.tokenizer.pad_id
        ids = torch.tensor([r.ids + [pad] * (width - len(r.ids)) for r in batch]).to(self.device)
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in batch]).to(self.device)
        states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        some = [wanted(self.kind, laid, ()) for laid in batch]
        parts = [row[torch.tensor(list(w.positions), dtype=torch.long)] for row, w in zip(states, some, strict=True)]
        return [scores(self.kind, values) for values in read(self.kind, batch, some, parts)]


@dataclass(frozen=True, slots=True)
class PaddedJudge:
    """A reward model that reads every solution for itself, in padded batches; see ``engine.scheduler.Judge``."""

    reward: RewardModel
    batch_size: int

    def score(self, items: list[tuple[str, str]], on_step: Callable[[int], None]) -> list[Scored]:
        """See Judge."""
        return self.reward.score(items, self.batch_size, lambda: on_step(0))

    def forget(self) -> None:
        """See Judge: nothing is kept."""

    def close(self) -> None:
        """See Judge."""


def get_reward(host: ModelHost, name: str, device: torch.device, weights: Dtype = Dtype.AUTO) -> RewardModel:
    """The reward model of that name from the host, in the number format that the run asks of its weights.

    ``auto`` is the format it was saved in. Whoever asks for fp32 on a processor that emulates bf16 means the scoring
    too: in bf16 it took most of the time of a weighted vote there.
    """
    ref = resolve_reward(name)
    dtype = pick_dtype(weights, ref.dtype, device)
    key = ("reward", name, str(ref.path), str(device), dtype, files_state(ref))
    model: RewardModel = host.keep_or_load(key, lambda: load_reward(ref, device, dtype))
    return model


def load_reward(ref: ModelRef, device: torch.device, dtype: Dtype) -> RewardModel:
    """Load a reward model folder. Raises ModelError where it is of no known kind, DoesNotFitError."""
    assert ref.path is not None
    assert ref.sizes is not None
    asked = _how(ref)
    check_fits(f"The weights of {ref.name} in {dtype}", ref.sizes.weights_bytes(dtype), device, FITS_ADVICE)
    started = now()
    tokenizer = load_tokenizer(str(ref.path), None)
    model, kind = _load(ref, asked, tokenizer, device, dtype)
    model.config.pad_token_id = tokenizer.pad_id  # a classification head finds the last token by it
    synchronise(str(device))
    return RewardModel(
        name=ref.name,
        model=model,
        tokenizer=tokenizer,
        kind=kind,
        device=device,
        dtype=dtype,
        context=context_of(ref.config),
        load_s=now() - started,
        weights_bytes=weights_bytes(model) + 4 * kind.parameters,
        shape=_with_head(shape_of(model), kind.parameters),
        fingerprint=fingerprint(ref),
    )


def _how(ref: ModelRef) -> dict[str, Any]:
    """How a model is asked: what its config says, or what is known of its architecture. Raises ModelError."""
    said, names = ref.config.get("isoquant_reward"), [str(n) for n in ref.config.get("architectures") or []]
    if isinstance(said, dict) and said.get("kind") in KNOWN.split(", "):
        return said
    if said is not None:
        raise ModelError(f"isoquant_reward in {shorten(ref.name)} must be an object whose kind is one of: {KNOWN}.")
    if any(n.endswith("ForProcessRewardModel") for n in names):
        return QWEN_PRM
    if "math-shepherd" in ref.name.lower():
        return MATH_SHEPHERD
    labels = ref.config.get("id2label")
    one = ref.config.get("num_labels") == 1 or (isinstance(labels, dict) and len(labels) == 1)
    if one and any(n.endswith("ForSequenceClassification") for n in names):
        return {"kind": "whole"}
    raise ModelError(
        f"{shorten(ref.name)} is not a reward model: its config has neither isoquant_reward nor a sequence "
        "classification head with one output, nor an architecture of published process reward models."
    )


def _load(
    ref: ModelRef, asked: dict[str, Any], tokenizer: ModelTokenizer, device: torch.device, dtype: Dtype
) -> tuple[Any, Kind]:
    assert ref.path is not None
    context = context_of(ref.config)
    match asked["kind"]:
        case "whole":
            model, _ = read_weights(AutoModelForSequenceClassification, ref.path, device, dtype, Attention.AUTO)
            if not hasattr(model, "score"):
                raise ModelError(f"{shorten(ref.name)} has no head named score; only causal classifiers have one.")
            return model, Whole(tokenizer, context, model.score)
        case "separator":
            model, _ = read_weights(AutoModel, ref.path, device, dtype, Attention.AUTO)
            return model, Separator(tokenizer, context, _read_score(ref.path, model), str(asked["token"]))
        case "tag":
            model, _ = read_weights(AutoModelForCausalLM, ref.path, device, dtype, Attention.AUTO)
            words = (str(asked[name]) for name in ("word", "good", "bad"))
            return model, Tag(tokenizer, context, model.get_output_embeddings(), *words)
        case _:
            model, _ = read_weights(AutoModelForCausalLM, ref.path, device, dtype, Attention.AUTO)
            head = _read_head(ref.path, device, model.config.hidden_size)
            return model, Hazard(tokenizer, context, head, model.get_output_embeddings())


def _with_head(shape: ModelShape, parameters: int) -> ModelShape:
    active = shape.active_parameters
    return replace(
        shape,
        parameters=shape.parameters + parameters,
        active_parameters=None if active is None else active + parameters,
    )


def _read_head(folder: Path, device: torch.device, hidden: int) -> HazardHead:
    try:
        return HazardHead.of(load_file(folder / HEAD_FILE), hidden, device)
    except ValueError as error:
        raise ModelError(f"{HEAD_FILE} in {shorten_path(folder)} {error}.") from None
    except Exception as error:
        raise ModelError(
            f"{HEAD_FILE} in {shorten_path(folder)} cannot be read ({type(error).__name__}); a step reward model "
            "needs it."
        ) from None


def _read_score(folder: Path, model: Any) -> torch.nn.Module:
    """The head of two classes beside a trunk: ``score``, linear, or two of these around a ReLU (Qwen2.5-Math-PRM)."""
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        found |= {k.removeprefix("score."): v for k, v in load_file(file).items() if k.startswith("score.")}
    if "weight" in found:
        head: torch.nn.Module = torch.nn.Linear(model.config.hidden_size, 2, bias="bias" in found)
    else:
        size = model.config.hidden_size
        head = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 2))
    try:
        head.load_state_dict(found)
    except RuntimeError:
        raise ModelError(
            f"The weights in {shorten_path(folder)} hold no head named score that ends in two classes; a reward model "
            "with separators needs one."
        ) from None
    return head.to(device=model.device, dtype=model.dtype).eval()
