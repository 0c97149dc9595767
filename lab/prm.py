"""`lab-prm`: a process reward model trained on the family's own solutions with exact step labels.

    python -m lab.train --model lab-prm       # sample, then train; both go on where they were interrupted

The folder holds a Llama trunk (`AutoModel`) and `head.safetensors` (`weight` [1, hidden], `bias` [1]). The score of
step k is sigmoid(head(hidden state at the k-th newline token after the prompt)), where the input is the tokenizer's
ids of prompt + solution + newline.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from transformers import AutoModel

from lab.data import IGNORE, Examples
from lab.evaluate import Sampler
from lab.family import CURVES, MODELS, RUNS, SIZES, weights_key
from lab.loop import Loss, Trainer, join_group
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
RECIPE = replace(SIZES[TRUNK], tokens=3_000_000, learning_rate=1.5e-3)
SEED = 40


class StepScorer(nn.Module):
    """A Llama trunk with one number per position."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Logits at the flat positions `at` of right-padded ids `[rows, width]`."""
        hidden = self.trunk(input_ids=ids, use_cache=False).last_hidden_state
        return self.head(hidden.reshape(-1, hidden.shape[-1])[at])[:, 0]


def problems() -> list[Problem]:
    """The problems whose sampled solutions train the reward model, balanced over the levels."""
    levels = lab_words.LEVELS
    return [
        lab_words.generate(FIRST_INDEX + i // len(levels), levels[i % len(levels)], "train") for i in range(PROBLEMS)
    ]


def sample(model: str, device: str) -> Path:
    """Write one model's labelled solutions as JSON lines, unless they are there already."""
    path = RUNS / NAME / f"{model}-{weights_key(model)}-v{lab_words.VERSION}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = [p for p in problems() for _ in range(SAMPLES)]
        sampler = Sampler(MODELS / model, device)
        texts = sampler.complete([lab_words.prompt(p) for p in chosen], TEMPERATURE, SEED, batch=256)
        rows = [
            {"id": p.id, "text": t, "labels": lab_words.step_labels(p, t)} for p, t in zip(chosen, texts, strict=True)
        ]
        path.with_suffix(".new").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path.with_suffix(".new").replace(path)
    return path


class StepExamples(Examples):
    """Solutions with a 0/1 target at every newline that ends a step; `marks` is flat like `tokens`."""

    marks: np.ndarray

    def targets(self, row: int) -> np.ndarray:
        """The label at each newline of the solution."""
        start, length = self.starts[row], self.lengths[row]
        return self.marks[start : start + length].astype(np.int64)

    @classmethod
    def of(cls, prompts: list[str], texts: list[str], labels: list[list[bool]]) -> StepExamples:
        """Tokenise solutions and place their labels."""
        tokenizer = load_tokenizer()
        newline = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("\n")[0])
        heads = tokenizer(prompts)["input_ids"]
        whole = [p + t.removesuffix("\n") + "\n" for p, t in zip(prompts, texts, strict=True)]
        tokens, marks = [], []
        for ids, head, row in zip(tokenizer(whole)["input_ids"], heads, labels, strict=True):
            ids = np.array(ids)
            mark = np.full(len(ids), IGNORE)
            ends = np.flatnonzero((ids == newline) & (np.arange(len(ids)) >= len(head)))
            mark[ends] = row
            tokens.append(ids)
            marks.append(mark)
        flat = np.concatenate(tokens).astype(np.uint16)
        made = cls(flat, np.array([len(t) for t in tokens]), np.array([len(h) for h in heads]))
        made.marks = np.concatenate(marks)
        return made


def step_loss(model: StepScorer) -> Loss:
    """Summed binary cross-entropy over steps."""

    def loss(ids: torch.Tensor, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(model(ids, at).float(), targets.float(), reduction="sum")

    return loss


def training_examples(device: str) -> StepExamples:
    """The labelled solutions of all models in `SAMPLED`."""
    by_id = {p.id: lab_words.prompt(p) for p in problems()}
    rows = [json.loads(line) for model in SAMPLED for line in sample(model, device).read_text().splitlines()]
    return StepExamples.of([by_id[r["id"]] for r in rows], [r["text"] for r in rows], [r["labels"] for r in rows])


def export(model: StepScorer, folder: Path) -> None:
    """Write trunk, head and tokenizer; bf16 like the rest of the family."""
    model = model.to("cpu", torch.bfloat16)
    model.trunk.config.isoquant_reward = {
        "kind": "step_head", "read_at": "\n", "append": "\n", "head": "head.safetensors", "activation": "sigmoid",
    }  # fmt: skip
    model.trunk.save_pretrained(folder)
    save_file({"weight": model.head.weight.data, "bias": model.head.bias.data}, folder / "head.safetensors")
    load_tokenizer().save_pretrained(folder)


def load(folder: Path = MODELS / NAME, device: str = "cpu") -> StepScorer:
    """The trained scorer, in fp32."""
    model = StepScorer(AutoModel.from_pretrained(folder, dtype=torch.float32))
    model.head.load_state_dict({k: v.float() for k, v in load_file(folder / "head.safetensors").items()})
    return model.to(device).eval()


@torch.inference_mode()
def score(model: StepScorer, prompts: list[str], texts: list[str], labels: list[list[bool]]) -> list[np.ndarray]:
    """Scores in 0..1 of every step of every solution."""
    examples = StepExamples.of(prompts, texts, labels)
    out: list[np.ndarray] = [np.empty(0)] * len(texts)
    order = np.argsort(examples.lengths, kind="stable")
    for at in tqdm(range(0, len(order), 64), "scoring", leave=False):
        rows = order[at : at + 64]
        ids, targets = examples.batch(rows, 0)
        flat = (targets.reshape(-1) != IGNORE).nonzero()[:, 0]
        scores = torch.sigmoid(model(ids, flat)).numpy()
        counts = (targets != IGNORE).sum(1).tolist()
        for row, part in zip(rows, np.split(scores, np.cumsum(counts)[:-1]), strict=True):
            out[row] = part
    return out


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a right step scores above a wrong one, ties count half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    right = int(labels.sum())
    wrong = len(labels) - right
    return float((middle[ranks][labels].sum() - right * (right + 1) / 2) / (right * wrong))


def fit(rank: int, workers: int, device: str) -> None:
    """Train the scorer; the first process writes its folder and its curve."""
    run = RUNS / NAME
    if workers > 1:
        join_group(rank, workers, run)
    examples = training_examples(device)
    torch.manual_seed(SEED)
    model = StepScorer(AutoModel.from_pretrained(MODELS / TRUNK, dtype=torch.float32)).to(device)
    trainer = Trainer(NAME, RECIPE, model, step_loss(model), examples, run, SEED, model.trunk.config.pad_token_id)
    trainer.run()
    if rank:
        return
    export(model, MODELS / NAME)
    right = examples.marks[examples.marks != IGNORE].mean()
    summary = {"model": NAME, "tokens": trainer.tokens, "seconds": round(trainer.seconds, 1), "device": device,
               "workers": workers, "solutions": len(examples.lengths),
               "right_steps": round(float(right), 4)}  # fmt: skip
    CURVES.mkdir(exist_ok=True)
    (CURVES / f"{NAME}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*trainer.curve, summary]))
    print(json.dumps(summary))


def make(device: str, workers: int) -> None:
    """Sample what is missing, then train and write the reward model."""
    for model in SAMPLED:
        sample(model, device)
    if workers == 1:
        fit(0, 1, device)
    else:
        torch.multiprocessing.spawn(fit, (workers, device), nprocs=workers)
