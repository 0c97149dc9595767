"""Reward models: how good is each step of a solution, or the whole of it. Batch in, batch out.

Two kinds are read from a folder:
- *step reward model*: a causal language model and ``head.safetensors``, the head of ``engine.hazard``; config.json
  holds ``isoquant_reward``. The score of step k is read at the newline token that ends it. One newline is put after the
  last line, so every solution has at least one step.
- *classification head*: any AutoModelForSequenceClassification with one output; its sigmoid is the only step score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from engine.catalog import ModelRef, resolve_reward
from engine.devices import check_fits, does_not_fit, is_out_of_memory, pick_dtype, release
from engine.folders import HEAD_FILE
from engine.hazard import HazardHead, readings
from engine.measure.flops import ModelShape
from engine.measure.memory import weights_bytes
from engine.measure.time import now, synchronise
from engine.models import FITS_ADVICE, ModelHost, files_state, fingerprint, read_weights, shape_of
from engine.sizes import context_of
from engine.tokenizers import ModelTokenizer, load_tokenizer
from spec.choices import Attention, Dtype
from spec.errors import ModelError, shorten, shorten_path

STEP_END = "\n"


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
    """A reward model ready to run. ``head`` is that of a step reward model, None for a classification head."""

    name: str
    model: Any
    tokenizer: ModelTokenizer
    head: HazardHead | None
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
        """Scores of (prompt, solution) pairs, in order, in padded batches of similar length.

        ``on_batch`` is called before each batch and may raise Cancelled. Raises DoesNotFitError.
        """
        read = [self._read(prompt, text) for prompt, text in items]
        order = sorted(range(len(items)), key=lambda i: len(read[i].ids))
        found: list[Scored | None] = [None] * len(items)
        for start in range(0, len(order), batch_size):
            on_batch()
            batch = order[start : start + batch_size]
            for index, steps in zip(batch, self._run([read[i] for i in batch]), strict=True):
                length = len(read[index].ids)
                found[index] = Scored(steps, length, read[index].cut, ((0, length),))
        return [s for s in found if s is not None]

    def _read(self, prompt: str, text: str) -> _Read:
        if self.head is None:
            whole = self.tokenizer.encode(prompt + text)
            ids = whole[: self.context]
            return _Read(ids, 0, [len(ids) - 1], len(ids) < len(whole))
        # A model without a start token has nothing to expect the first token from.
        start = max(1, len(self.tokenizer.encode(prompt)))
        whole = self.tokenizer.encode(prompt + text.removesuffix(STEP_END) + STEP_END)
        ids = whole[: self.context]
        ends = [i for i in range(start, len(ids)) if ids[i] == self._newline]
        return _Read(ids, start, ends, len(ids) < len(whole))

    @cached_property
    def _newline(self) -> int:
        return int(self.tokenizer.inner.convert_tokens_to_ids(self.tokenizer.inner.tokenize(STEP_END)[-1]))

    def _run(self, batch: Sequence[_Read]) -> list[tuple[float, ...]]:
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
    def _forward(self, batch: Sequence[_Read]) -> list[tuple[float, ...]]:
        width = max(len(r.ids) for r in batch)
        pad = self.tokenizer.pad_id
        ids = torch.tensor([r.ids + [pad] * (width - len(r.ids)) for r in batch]).to(self.device)
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in batch]).to(self.device)
        if self.head is None:
            scores = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().sigmoid().tolist()
            return [(s,) for s in scores]
        states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        # All solutions' tokens in one row: what follows costs nothing for prompts and padding.
        flat = [row * width + at for row, r in enumerate(batch) for at in range(r.start, len(r.ids))]
        places = torch.tensor(flat, dtype=torch.long, device=self.device)
        states, tokens = states.flatten(0, 1), ids.flatten()[places]
        read = readings(states[places - 1], states[places], tokens, self.model.get_output_embeddings())
        survived = torch.split(self.head.log_survival(read), [max(0, len(r.ids) - r.start) for r in batch])
        scores = [part.cumsum(0).exp().tolist() for part in survived]
        return [tuple(row[at - r.start] for at in r.ends) for row, r in zip(scores, batch, strict=True)]


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


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt with its solution: token ids, where the solution starts, where scores are read, whether it was cut."""

    ids: list[int]
    start: int
    ends: list[int]
    cut: bool


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
    """Load a reward model folder. Raises ModelError where it is of neither kind, DoesNotFitError."""
    assert ref.path is not None
    assert ref.sizes is not None
    check_fits(f"The weights of {ref.name} in {dtype}", ref.sizes.weights_bytes(dtype), device, FITS_ADVICE)
    started = now()
    if "isoquant_reward" in ref.config:
        model, _ = read_weights(AutoModelForCausalLM, ref.path, device, dtype, Attention.AUTO)
        head = _read_head(ref.path, device, model.config.hidden_size)
        more = head.parameters
    elif _is_classifier(ref.config):
        model, _ = read_weights(AutoModelForSequenceClassification, ref.path, device, dtype, Attention.AUTO)
        head, more = None, 0
    else:
        raise ModelError(
            f"{shorten(ref.name)} is not a reward model: its config has neither isoquant_reward nor a sequence "
            "classification head with one output."
        )
    tokenizer = load_tokenizer(str(ref.path), None)
    model.config.pad_token_id = tokenizer.pad_id  # a classification head finds the last token by it
    synchronise(str(device))
    return RewardModel(
        name=ref.name,
        model=model,
        tokenizer=tokenizer,
        head=head,
        device=device,
        dtype=dtype,
        context=context_of(ref.config),
        load_s=now() - started,
        weights_bytes=weights_bytes(model) + 4 * more,
        shape=_with_head(shape_of(model), more),
        fingerprint=fingerprint(ref),
    )


def _is_classifier(config: dict[str, Any]) -> bool:
    names = config.get("architectures") or []
    labels = config.get("id2label")
    one = config.get("num_labels") == 1 or (isinstance(labels, dict) and len(labels) == 1)
    return one and any(str(n).endswith("ForSequenceClassification") for n in names)


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
