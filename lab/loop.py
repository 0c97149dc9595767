"""The training loop that all lab models share: resumable, because batches depend on the step number only."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from lab.data import IGNORE, Examples
from lab.family import Size
from lab.muon import Muon

_CHECKPOINT_EVERY_S = 120.0
_CURVE_EVERY = 25
_GLOO_TIMEOUT = timedelta(minutes=20)
# Takes ids [rows, width], flat positions and what to predict there; returns the summed loss.
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for embedding and norms; one schedule scales both."""

    def __init__(self, model: nn.Module, size: Size) -> None:
        hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        ids = {id(p) for p in hidden}
        rest = [p for p in model.parameters() if id(p) not in ids]
        self.parts = [
            Muon(hidden, lr=size.learning_rate),
            torch.optim.AdamW(rest, lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]  # fmt: skip
        self.peak = size.learning_rate

    def step(self, share: float) -> None:
        """One update at `share` of the peak learning rate; clears the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        """Both states, for a checkpoint."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Continue from a checkpoint."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def learning_rate_share(done: float, warmup: float) -> float:
    """Share of the peak at `done` (0..1) of the tokens: linear warm-up, then a cosine down to 2 %."""
    if done < warmup:
        return max(done, 1e-4) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def select(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions that have a target, and those targets."""
    flat = targets.reshape(-1)
    at = (flat != IGNORE).nonzero()[:, 0]
    return at, flat[at]


class Trainer:
    """One model's training: `run` goes on from the last checkpoint, if there is one, to the last token."""

    def __init__(
        self, name: str, size: Size, model: nn.Module, loss: Loss, examples: Examples, run: Path, seed: int, pad: int
    ) -> None:
        self.name, self.size, self.model, self.examples = name, size, model, examples
        self.folder, self.seed, self.pad = run, seed, pad
        self.device = next(model.parameters()).device.type
        self.optimizers = Optimizers(model, size)
        # On a GPU fusing pays; on the CPU it saved under 10 % and cost a minute of C++ compilation.
        self.loss = torch.compile(loss, dynamic=True) if self.device == "cuda" else loss
        self.first = not dist.is_initialized() or dist.get_rank() == 0
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []

    def micro_batches(self) -> Iterator[list[np.ndarray]]:
        """The micro-batches of each step, from the current step on."""
        per_step = max(1, self.size.batch_tokens // self.size.micro_batch_tokens)
        plan = self.examples.schedule(self.size.micro_batch_tokens, self.seed)
        plan = islice(plan, self.step * per_step, None)
        while True:
            yield list(islice(plan, per_step))

    def share(self, micros: list[np.ndarray]) -> list[np.ndarray]:
        """The micro-batches of a step that this process computes; all processes together compute every one."""
        return micros[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else micros

    def reduce(self, total: torch.Tensor) -> float:
        """Mean gradients over all targets of all processes; `total` is (summed loss, targets), returns the mean."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if dist.is_initialized():
            flat = torch.cat([total, *(g.flatten() for g in grads)])
            dist.all_reduce(flat)
            total = flat[:2]
            for g, new in zip(grads, flat[2:].split([g.numel() for g in grads]), strict=True):
                g.copy_(new.view_as(g))
        for g in grads:
            g.div_(total[1])
        return float(total[0] / total[1])

    def update(self, micros: list[np.ndarray]) -> float:
        """One optimiser step; returns the mean loss per target."""
        summed, count = 0.0, 0
        for rows in self.share(micros):
            ids, targets = self.examples.batch(rows, self.pad)
            at, wanted = select(targets)
            with autocast(self.device):
                loss = self.loss(ids.to(self.device), at.to(self.device), wanted.to(self.device))
            loss.backward()
            summed, count = summed + float(loss.detach()), count + len(at)
        mean = self.reduce(torch.tensor([summed, count], device=self.device))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        warmup = self.size.warmup_steps * self.size.batch_tokens / self.size.tokens
        self.optimizers.step(learning_rate_share(self.tokens / self.size.tokens, warmup))
        self.step += 1
        self.tokens += int(sum(self.examples.lengths[rows].sum() for rows in micros))
        return mean

    def run(self) -> None:
        """Train to the end of the schedule, with checkpoints and a curve."""
        self.resume()
        bar = tqdm(total=self.size.tokens, initial=self.tokens, unit="tok", unit_scale=True, desc=self.name,
                   disable=not self.first)  # fmt: skip
        begin, saved, mean = time.monotonic() - self.seconds, time.monotonic(), 0.0
        for micros in self.micro_batches():
            if self.tokens >= self.size.tokens:
                break
            if orphaned():
                self.save_checkpoint()
                raise SystemExit("The training was ended; its last checkpoint is kept.")
            before = self.tokens
            loss = self.update(micros)
            mean = loss if not mean else 0.95 * mean + 0.05 * loss
            self.seconds = time.monotonic() - begin
            bar.update(self.tokens - before)
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if self.step % _CURVE_EVERY == 0:
                self.curve.append({"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1),
                                   "loss": round(mean, 5)})  # fmt: skip
            if time.monotonic() - saved > _CHECKPOINT_EVERY_S:
                self.save_checkpoint()
                saved = time.monotonic()
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Model, optimisers and counters, written beside the last checkpoint and then moved over it."""
        if not self.first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizers": self.optimizers.state_dict(), "step": self.step,
                 "tokens": self.tokens, "seconds": self.seconds, "curve": self.curve}  # fmt: skip
        torch.save(state, self.folder / "checkpoint.new")
        (self.folder / "checkpoint.new").replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
            self.curve = state["curve"]


def orphaned() -> bool:
    """Whether this is a worker whose parent was killed: it would train on, and one day overwrite a newer model."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def autocast(device: str) -> contextlib.AbstractContextManager:
    """bf16 on a GPU; fp32 on the CPU, where bf16 was 3.5 times slower (no bf16 units)."""
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()


def join_group(rank: int, workers: int, folder: Path) -> None:
    """Make this process one of `workers` that compute each step together, one thread each.

    On a machine that does other work too, two processes that meet once a step were far faster than two OpenMP
    threads, which meet thousands of times a step and spin while they wait.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    store = f"file://{folder.resolve()}/group-{os.getppid()}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers, timeout=_GLOO_TIMEOUT)
