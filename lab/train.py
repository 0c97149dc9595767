"""Trains the lab models and writes their folders; goes on after an interruption.

python -m lab.train --model lab-s
python -m lab.train --model lab-l --device cuda
python -m lab.train --all                          # lab-xs, lab-s, lab-m and the reward model
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, LlamaForCausalLM

from lab import prm
from lab.data import Examples, prepare
from lab.evaluate import greedy_accuracy
from lab.family import CURVES, MODELS, RUNS, SIZES, Size, configuration
from lab.grow import grow
from lab.loop import Loss, Trainer, join_group
from lab.tokenizer import load_tokenizer
from tasks import lab_words

SEED = 20


def new_model(name: str, size: Size, start: Path | None = None) -> LlamaForCausalLM:
    """A fresh model, started from `start` or from the smaller model that the recipe names, if any."""
    tokenizer = load_tokenizer()
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(configuration(name, len(tokenizer), *special))
    start = start or (MODELS / size.grow_from if size.grow_from else None)
    if start:
        grow(LlamaForCausalLM.from_pretrained(start, dtype=torch.float32), model)
    return model


def solution_loss(model: LlamaForCausalLM) -> Loss:
    """Summed cross-entropy of the solutions' tokens; no logits are made for prompts."""

    def loss(ids: torch.Tensor, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1])[at]
        return F.cross_entropy((chosen @ model.lm_head.weight.T).float(), targets, reduction="sum")

    return loss


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the model folder: weights in bf16, configuration, generation defaults, tokenizer."""
    tokenizer = load_tokenizer()
    model = model.to("cpu", torch.bfloat16)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fit(rank: int, workers: int, name: str, size: Size, device: str, tag: str, start: Path | None) -> None:
    """Train one model; the first process writes its folder and its curve with validation accuracy by level."""
    run, out = RUNS / (name + tag), RUNS / "trial" / (name + tag) if tag else MODELS / name
    if workers > 1:
        join_group(rank, workers, run)
    model = new_model(name, size, start).to(device)
    seed = SEED + list(SIZES).index(name)
    examples = Examples.load(prepare(size.problems, size.drills))
    trainer = Trainer(name, size, model, solution_loss(model), examples, run, seed, model.config.pad_token_id)
    trainer.run()
    if rank:
        return
    export(model, out)
    accuracy = greedy_accuracy(out, lab_words.problems("validation", 400), device)
    summary = {"model": name, "tokens": trainer.tokens, "seconds": round(trainer.seconds, 1), "device": device,
               "workers": workers, "validation_greedy": accuracy}  # fmt: skip
    curves = RUNS if tag else CURVES
    curves.mkdir(exist_ok=True)
    (curves / f"{name}{tag}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*trainer.curve, summary]))
    print(json.dumps(summary))


def train(name: str, size: Size, device: str, workers: int, tag: str = "", start: Path | None = None) -> None:
    """Train one model with one process per worker. With a `tag` it is a trial: all goes to `lab/runs/`."""
    prepare(size.problems, size.drills)
    if workers == 1:
        fit(0, 1, name, size, device, tag, start)
    else:
        torch.multiprocessing.spawn(fit, (workers, name, size, device, tag, start), nprocs=workers)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=[*SIZES, prm.NAME])
    what.add_argument("--all", action="store_true", help="lab-xs, lab-s, lab-m and the reward model, in turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="CPU processes, one thread each")
    parser.add_argument("--tokens", type=int, help="another length of the schedule")
    parser.add_argument("--lr", type=float, help="another peak learning rate")
    parser.add_argument("--start", type=Path, help="a model folder to start from, of the same or a smaller size")
    parser.add_argument("--tag", default="", help="a trial: write to lab/runs/ under this name (--tag=-a)")
    args = parser.parse_args()
    workers = 1 if args.device == "cuda" else args.workers
    for name in ["lab-xs", "lab-s", "lab-m", prm.NAME] if args.all else [args.model]:
        if name == prm.NAME:
            prm.make(args.device, workers)
            continue
        size = SIZES[name]
        size = replace(size, tokens=args.tokens or size.tokens, learning_rate=args.lr or size.learning_rate)
        train(name, size, args.device, workers, args.tag, args.start)


if __name__ == "__main__":
    main()
