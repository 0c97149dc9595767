"""`lab-prm`: a step reward model over `lab-m`, fitted to the family's own solutions and where they turn wrong.

    python -m lab.train --model lab-prm       # sample, read, fit; goes on where it was interrupted

The folder holds `lab-m` as it is and `head.safetensors`, the head of `engine/hazard.py`. The trunk is not trained: what
it expects at every token is the best evidence there is, and training it on right and wrong spoilt that (lab/README.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from engine.folders import HEAD_FILE
from engine.hazard import TENSORS, HazardHead, readings
from lab.evaluate import Sampler
from lab.family import CURVES, MODELS, RUNS, weights_key
from lab.tokenizer import load_tokenizer
from tasks import lab_words
from tasks.problem import Problem

NAME = "lab-prm"
TRUNK = "lab-m"
SAMPLED = ("lab-xs", "lab-s", "lab-m")
PROBLEMS = 2400
SAMPLES = 3
TEMPERATURE = 0.9
# Training problems far beyond those that the models were trained on.
FIRST_INDEX = 1_000_000
SEED = 40
UNITS = 256
EPOCHS = 8
BATCH = 4096
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
_READ_AT_ONCE = 64
_CURVE_EVERY = 100


def problems() -> list[Problem]:
    """The problems whose sampled solutions train the reward model, balanced over the levels."""
    levels = lab_words.LEVELS
    return [
        lab_words.generate(FIRST_INDEX + i // len(levels), levels[i % len(levels)], "train") for i in range(PROBLEMS)
    ]


def sample(model: str, device: str) -> Path:
    """Write one model's solutions as JSON lines, unless they are there already."""
    path = RUNS / NAME / f"{model}-{weights_key(model)}-v{lab_words.VERSION}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = [p for p in problems() for _ in range(SAMPLES)]
        sampler = Sampler(MODELS / model, device)
        texts = sampler.complete([lab_words.prompt(p) for p in chosen], TEMPERATURE, SEED, batch=256)
        rows = [{"id": p.id, "text": t} for p, t in zip(chosen, texts, strict=True)]
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new.replace(path)
    return path


@dataclass(frozen=True)
class Evidence:
    """Tokens of solutions up to the one at which they turn wrong.

    `read`: what the head reads of each, `[tokens, 2 hidden + 3]` in fp16; `wrong`: whether it is that one.
    """

    read: np.ndarray
    wrong: np.ndarray

    def __len__(self) -> int:
        return len(self.wrong)


def turning(text: str, problem: Problem, offsets: list[tuple[int, int]]) -> int | None:
    """Which of a solution's tokens (by their offsets in its text) is the first wrong one; None if none is."""
    wrong = lab_words.turns_wrong(problem, text)
    return None if wrong is None else next(k for k, (_, end) in enumerate(offsets) if end > wrong)


@torch.inference_mode()
def read(chosen: list[Problem], texts: list[str], device: str) -> Evidence:
    """The trunk reads solutions, each with a newline at its end."""
    tokenizer = load_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(MODELS / TRUNK, dtype=torch.float32).to(device).eval()
    prompts = [lab_words.prompt(p) for p in chosen]
    texts = [text.removesuffix("\n") + "\n" for text in texts]
    starts = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    whole = tokenizer([p + t for p, t in zip(prompts, texts, strict=True)], return_offsets_mapping=True)
    found_read, found_wrong = [], []
    order = sorted(range(len(texts)), key=lambda i: len(whole["input_ids"][i]))
    for at in tqdm(range(0, len(order), _READ_AT_ONCE), "reading", leave=False):
        rows = order[at : at + _READ_AT_ONCE]
        width = max(len(whole["input_ids"][i]) for i in rows)
        padded = [whole["input_ids"][i] + [0] * (width - len(whole["input_ids"][i])) for i in rows]
        ids = torch.tensor(padded, device=device)
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        for k, i in enumerate(rows):
            start, before = starts[i], len(prompts[i])
            offsets = [(a - before, b - before) for a, b in whole["offset_mapping"][i][start:]]
            turn = turning(texts[i], chosen[i], offsets)
            end = start + (len(offsets) if turn is None else turn + 1)
            part = readings(states[k, start - 1 : end - 1], states[k, start:end], ids[k, start:end], model.lm_head)
            found_read.append(part.half().cpu().numpy())
            found_wrong.append(np.arange(end - start) == turn)
    return Evidence(np.concatenate(found_read), np.concatenate(found_wrong))


def evidence(model: str, device: str) -> Path:
    """Write what the trunk reads in one model's solutions, unless it is there already."""
    path = RUNS / NAME / f"read-{weights_key(TRUNK)}-{model}-{weights_key(model)}-v{lab_words.VERSION}.npz"
    if not path.exists():
        by_id = {p.id: p for p in problems()}
        rows = [json.loads(line) for line in sample(model, device).read_text().splitlines()]
        found = read([by_id[r["id"]] for r in rows], [r["text"] for r in rows], device)
        new = path.with_stem(f"{path.stem}-new")  # numpy would put its own ending behind any other
        np.savez(new, read=found.read, wrong=found.wrong)
        new.replace(path)
    return path


def load(paths: list[Path]) -> Evidence:
    """The evidence of several files as one."""
    parts = [np.load(path) for path in paths]
    return Evidence(*(np.concatenate([part[name] for part in parts]) for name in ("read", "wrong")))


def fit(found: Evidence, device: str, epochs: int = EPOCHS, units: int = UNITS) -> tuple[dict, list[dict]]:
    """Train a head on whether each token is the one that turns its solution wrong: its tensors, and its curve.

    The inputs are brought to mean 0 and variance 1 first; what that takes ends up in the first layer's weights.
    """
    torch.manual_seed(SEED)
    inputs = torch.from_numpy(found.read)
    some = inputs[:: max(1, len(inputs) // 100_000)].float()
    mean, scale = some.mean(0), 1 / some.std(0).clamp(min=1e-4)
    network = nn.Sequential(nn.Linear(inputs.shape[1], units), nn.SiLU(), nn.Linear(units, 1)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * max(1, len(found) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    wrong = torch.from_numpy(found.wrong).float()
    curve, loss_sum = [], 0.0
    for step, rows in enumerate(tqdm(_batches(len(found), epochs), NAME, steps), 1):
        x = ((inputs[rows].float() - mean) * scale).to(device)
        loss = nn.functional.binary_cross_entropy_with_logits(network(x)[:, 0], wrong[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += float(loss.detach())
        if step % _CURVE_EVERY == 0:
            curve.append({"step": step, "loss": round(loss_sum / _CURVE_EVERY, 5)})
            loss_sum = 0.0
    first, last = network[0].cpu(), network[2].cpu()
    weight = first.weight.detach() * scale
    bias = first.bias.detach() - weight @ mean
    return dict(zip(TENSORS, (weight, bias, last.weight.detach(), last.bias.detach()), strict=True)), curve


def _batches(count: int, epochs: int) -> Iterator[torch.Tensor]:
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(count))
        yield from [part for part in order.split(BATCH) if len(part) == min(BATCH, count)]


def export(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write trunk, head and tokenizer; the trunk in bf16 like the rest of the family."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / TRUNK, dtype=torch.bfloat16)
    HazardHead.of(tensors, model.config.hidden_size, torch.device("cpu"))
    model.config.isoquant_reward = {"kind": "hazard", "read_at": "\n", "append": "\n", "head": HEAD_FILE}
    model.save_pretrained(folder)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / HEAD_FILE)
    load_tokenizer().save_pretrained(folder)


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a right step scores above a wrong one, ties count half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    right = int(labels.sum())
    wrong = len(labels) - right
    return float((middle[ranks][labels].sum() - right * (right + 1) / 2) / (right * wrong))


def _one_thread() -> None:
    torch.set_num_threads(1)


def make(device: str, workers: int) -> None:
    """Sample and read what is missing, one process per model where several may run; then fit and write the head."""
    begin = time.monotonic()
    asked = [(model, device) for model in SAMPLED]
    if workers == 1:
        paths = [evidence(*one) for one in asked]
    else:
        # The largest model first: it takes longest.
        with get_context("spawn").Pool(min(workers, len(asked)), _one_thread) as pool:
            paths = pool.starmap(evidence, asked[::-1], chunksize=1)[::-1]
    found = load(paths)
    tensors, curve = fit(found, device)
    export(tensors, MODELS / NAME)
    summary = {"model": NAME, "tokens": len(found), "seconds": round(time.monotonic() - begin, 1), "device": device,
               "workers": workers, "solutions": len(SAMPLED) * PROBLEMS * SAMPLES,
               "wrong_solutions": int(found.wrong.sum())}  # fmt: skip
    CURVES.mkdir(exist_ok=True)
    (CURVES / f"{NAME}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*curve, summary]))
    print(json.dumps(summary))
