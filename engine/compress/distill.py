"""A model that learns from a larger one: its probabilities of every next token, its hidden states, or both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from engine.compress.anatomy import layers_of, state_of
from engine.compress.texts import Batch
from engine.compress.train import fine_tune, start_anew, zeros_in
from engine.compress.work import Work
from spec.compression.choices import Imitation, Start
from spec.compression.train import Distill
from spec.errors import SpecError

PROBE = "Ada has 12 apples.\nSo 3 * 4 = 12."


def distill(work: Work, step: Distill) -> None:
    """Train ``work.model`` to do as the teacher does. Raises SpecError for a teacher of another vocabulary."""
    work.say(f"Loading the teacher {step.teacher}")
    loaded = work.teachers(step.teacher)
    _check_words(work, loaded, step.teacher)
    teacher = loaded.model.requires_grad_(False).eval()
    masks = zeros_in(work.model)
    if step.start is Start.RANDOM:
        start_anew(work.model, work.texts.seed, masks)
    hidden = None if step.loss is Imitation.LOGITS else _Hidden(work.model, teacher, work.texts.seed)

    def loss(student: Any, batch: Batch) -> torch.Tensor:
        return _loss(student, teacher, batch, step, hidden)

    also = None if hidden is None else hidden.projections
    fine_tune(work, steps=step.steps, rate=step.rate, batch=step.batch, masks=masks, loss=loss, also=also)


def _loss(student: Any, teacher: Any, batch: Batch, step: Distill, hidden: _Hidden | None) -> torch.Tensor:
    """Of a batch: the texts' own tokens by the weight ``hard``, the teacher by the rest."""
    following = batch.following
    if hidden is None:
        with torch.no_grad():
            wanted = teacher(input_ids=batch.ids, use_cache=False).logits[batch.learned].float()
        found = student(input_ids=batch.ids, use_cache=False).logits[batch.learned].float()
        states = None
    else:
        with hidden.noted():
            with torch.no_grad():
                wanted = teacher(input_ids=batch.ids, use_cache=False).logits[batch.learned].float()
            found = student(input_ids=batch.ids, use_cache=False).logits[batch.learned].float()
        states = hidden.distance(batch)
    hard = F.cross_entropy(found, following)
    soft = torch.zeros((), device=found.device)
    if step.loss is not Imitation.HIDDEN:
        soft = _divergence(found, wanted, step.temperature)
    if states is not None:
        soft = soft + states
    return step.hard * hard + (1 - step.hard) * soft


def _divergence(found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) at a temperature, times its square, so that gradients keep their size (Hinton et al. 2015,
    arXiv 1503.02531, section 2)."""
    p, q = (logits / temperature for logits in (wanted, found))
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean") * temperature**2


class _Hidden:
    """Hidden states of matched layers: the student's layer ``i`` of ``n`` and the teacher's at the same depth.

    Where the widths differ, a matrix of the student's states is learned along, and thrown away (Jiao et al. 2020,
    TinyBERT, arXiv 1909.10351, equation 8).
    """

    def __init__(self, student: Any, teacher: Any, seed: int) -> None:
        own, theirs = layers_of(student), layers_of(teacher)
        self._pairs = [
            (layer, theirs[max(1, round((i + 1) * len(theirs) / len(own))) - 1]) for i, layer in enumerate(own)
        ]
        widths = [m.config.get_text_config().hidden_size for m in (student, teacher)]
        device = next(student.parameters()).device
        self.projections = nn.ModuleList()
        if widths[0] != widths[1]:
            generator = torch.Generator().manual_seed(seed)
            for _ in own:
                made = nn.Linear(*widths, bias=False)
                made.weight.data.copy_(torch.randn(made.weight.shape, generator=generator) * widths[0] ** -0.5)
                self.projections.append(made.to(device))
        self._held: dict[nn.Module, torch.Tensor] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep what the layers give in the passes of this block."""
        self._held.clear()

        def note(module: nn.Module, _: Any, out: Any) -> None:
            self._held[module] = state_of(out)

        handles = [layer.register_forward_hook(note) for layer in {m for pair in self._pairs for m in pair}]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def distance(self, batch: Batch) -> torch.Tensor:
        """Mean squared difference over the teacher's mean square, over all pairs."""
        parts = []
        for index, (own, theirs) in enumerate(self._pairs):
            found, wanted = self._held[own][batch.there], self._held[theirs][batch.there].float()
            if self.projections:
                found = self.projections[index](found)
            parts.append((found.float() - wanted).square().mean() / wanted.square().mean().clamp(min=1e-8))
        return torch.stack(parts).mean()


def _check_words(work: Work, teacher: Any, name: str) -> None:
    own, theirs = (m.config.get_text_config().vocab_size for m in (work.model, teacher.model))
    if own != theirs or work.tokenizer.encode(PROBE) != teacher.tokenizer.encode(PROBE):
        raise SpecError(
            f"{name} has another vocabulary ({theirs:,} tokens) than the model that is to learn from it ({own:,}): "
            "choose a teacher of the same family.",
            field="compression.distill.teacher",
        )
