"""Fine-tuning of a model on texts: the loop that recovery, distillation and quantization-aware training share.

AdamW, a learning rate that rises and falls as a cosine, gradients clipped; what is learned at step ``i`` depends on
``i`` and the seed alone, so that a training that was stopped goes on as if it had not been. For the same reason, and
because a compressed model has no capacity to spare, dropout stays off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional as F

from engine.compress.anatomy import layers_of, linears_of
from engine.compress.texts import Batch, batch_of
from engine.compress.work import Work
from engine.devices import check_fits
from spec.compression.choices import Start
from spec.compression.train import Recover
from spec.errors import Cancelled, SpecError

WARMUP = 0.05  # of the steps
FLOOR = 0.02  # of the highest rate, at the end
KEEP_EVERY_S = 60.0
TOLD_EVERY_S = 0.5
MICRO_TOKENS = 4096  # read at once; a step of more is computed in parts
NO_MASKS: dict[str, torch.Tensor] = {}
Loss = Callable[[Any, Batch], torch.Tensor]


def recover(work: Work, step: Recover) -> None:
    """Fine-tune on the texts, from the weights there are or from new ones; zeros of pruning stay."""
    masks = zeros_in(work.model)
    if step.start is Start.RANDOM:
        start_anew(work.model, work.texts.seed, masks)
    fine_tune(work, steps=step.steps, rate=step.rate, batch=step.batch, masks=masks)


def fine_tune(
    work: Work, *, steps: int, rate: float, batch: int, tag: str = "train", masks: dict[str, torch.Tensor] = NO_MASKS,
    loss: Loss | None = None, also: nn.Module | None = None,
) -> None:  # fmt: skip
    """Train ``work.model`` for some steps.

    Args:
        rate: highest learning rate; ``batch``: texts in a step.
        tag: names the checkpoint; ``masks``: parameter -> where it may be other than zero.
        loss: of a batch, a mean; by default that of the next token. ``also``: further weights that learn along.

    Raises SpecError where the loss is no number any more, DoesNotFitError, ModelError (disk), and Cancelled, after
    which another call goes on.
    """
    model = work.model.eval()
    check_room(work)
    accelerator = _accelerator(work.device)
    trained = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    trained |= {f"also.{n}": p for n, p in (also.named_parameters() if also else ())}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    state = _State(work, tag, trained, optimizer)
    first = state.restore()
    curve = work.facts.setdefault("loss", {}).setdefault(tag, [])
    curve[:] = state.curve
    optimizer = accelerator.prepare_optimizer(optimizer)
    mean, told, kept = state.mean, 0.0, time.monotonic()
    done = first
    try:
        for at in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * share(at, steps)
            one = _step(work, accelerator, loss or next_token_loss, at * batch, batch)
            if not math.isfinite(one):
                raise SpecError(
                    f"The loss is not a number any more at training step {at + 1}; choose a lower rate than {rate:g}.",
                    field="compression",
                )
            accelerator.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, mask in masks.items():
                    trained[name].mul_(mask)
            mean = one if not mean else 0.9 * mean + 0.1 * one
            if at % max(1, steps // 100) == 0 or at + 1 == steps:
                curve.append([at + 1, round(mean, 5)])
            done = at + 1
            if time.monotonic() - kept > KEEP_EVERY_S:
                kept = time.monotonic()
                state.keep(done, mean, curve)
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                work.at(f"Loss {mean:.3f}, training step", done, steps)
    except Cancelled:
        if done > first:
            state.keep(done, mean, curve)
        raise
    finally:
        optimizer.zero_grad(set_to_none=True)
        for parameter in trained.values():
            parameter.requires_grad_(False)
    if done > first:  # should what follows fail, none of this is lost
        state.keep(done, mean, curve)


def check_room(work: Work) -> None:
    """Raise DoesNotFitError where gradients and the optimizer's means have no room beside the model."""
    held = sum(p.numel() * p.element_size() for p in work.model.parameters())
    check_fits("Gradients and the optimizer's state", 3 * held, work.device, "choose a smaller model.")


def _accelerator(device: torch.device) -> Accelerator:
    """One for the device, whatever device this process has trained on before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if device.type == "cuda" else "no")


def next_token_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the tokens that a model is to write, in nats."""
    logits = model(input_ids=batch.ids, use_cache=False).logits
    return F.cross_entropy(logits[batch.learned].float(), batch.following)


def share(at: int, steps: int) -> float:
    """Share of the highest learning rate at step ``at`` of ``steps``."""
    warm = max(1, round(WARMUP * steps))
    if at < warm:
        return (at + 1) / warm
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, steps - warm)))


def zeros_in(model: Any) -> dict[str, torch.Tensor]:
    """Parameter -> where it is not zero, for the matrices of the layers with zeros in them, as pruning leaves them."""
    matrices = {id(m.weight) for _, m in linears_of(layers_of(model))}
    return {name: p != 0 for name, p in model.named_parameters() if id(p) in matrices and not bool((p != 0).all())}


def start_anew(model: Any, seed: int, masks: dict[str, torch.Tensor] = NO_MASKS) -> None:
    """New random weights: matrices from N(0, the config's range), norm scales 1, biases 0; zero outside of masks."""
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config.get_text_config(), "initializer_range", None) or 0.02)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            if name in masks:
                parameter.mul_(masks[name])


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """The model's parameters by name, tied ones once."""
    return dict(model.named_parameters())


def load_weights(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what ``weights_of`` gave."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _step(work: Work, accelerator: Accelerator, loss: Loss, start: int, count: int) -> float:
    """Gradients of one step, in parts that fit; returns the mean loss."""
    texts = work.texts.training(start, count)
    longest = max(len(t.ids) for t in texts)
    rows = max(1, MICRO_TOKENS // longest)
    total = 0.0
    for at in range(0, count, rows):
        work.ask()
        part = texts[at : at + rows]
        batch = batch_of(part, work.tokenizer.pad_id).to(work.device)
        with accelerator.autocast():
            one = loss(work.model, batch) * (len(part) / count)
        accelerator.backward(one)
        total += float(one.detach())
    return total


class _State:
    """What a training needs to go on: the weights, the optimizer's means, the step."""

    def __init__(
        self, work: Work, tag: str, trained: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        self._checkpoint, self._tag, self._trained, self._optimizer = work.checkpoint, tag, trained, optimizer
        self.curve: list[list[float]] = []
        self.mean = 0.0

    def keep(self, step: int, mean: float, curve: list[list[float]]) -> None:
        """Write it down; the step is the next one."""
        tensors = {f"weight {name}": p for name, p in self._trained.items()}
        for name, parameter in self._trained.items():
            held = self._optimizer.state.get(parameter, {})
            tensors |= {f"{key} {name}": held[key] for key in ("exp_avg", "exp_avg_sq") if key in held}
        self._checkpoint.put(self._tag, tensors, {"step": step, "mean": mean, "curve": curve})

    def restore(self) -> int:
        """Put it back; returns the next step, 0 where there is nothing to go on from."""
        found = self._checkpoint.get(self._tag)
        if found is None:
            return 0
        tensors, facts = found
        step = int(facts["step"])
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[f"weight {name}"])
                self._optimizer.state[parameter] = {"step": torch.tensor(float(step))} | {
                    key: tensors[f"{key} {name}"].to(parameter.device, parameter.dtype)
                    for key in ("exp_avg", "exp_avg_sq")
                    if f"{key} {name}" in tensors
                }
        self.mean = float(facts["mean"])
        self.curve = [list(point) for point in facts["curve"]]
        return step
