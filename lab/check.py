"""A quick check of the trained family: greedy, votes over samples, and how well the reward model tells steps apart.

    python -m lab.check --models lab-xs lab-s lab-m --problems 320

The published figures come from the engine (lab/table.py); these only tell whether a training went well.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from engine.catalog import resolve_reward
from engine.folders import HEAD_FILE
from engine.rewards import load_reward
from lab import prm
from lab.evaluate import Sampler, by_level, greedy_accuracy, majority
from lab.family import MODELS, RUNS, weights_key
from spec.choices import Dtype
from tasks import lab_words
from tasks.problem import Problem

SEED = 77


def samples(model: str, problems: list[Problem], count: int, temperature: float) -> list[list[str]]:
    """`count` solutions of every problem; kept in `lab/runs/check/` and read from there the next time."""
    path = RUNS / "check" / f"{model}-{weights_key(model)}-{len(problems)}x{count}-t{temperature}.json"
    if not path.exists():
        prompts = [lab_words.prompt(p) for p in problems for _ in range(count)]
        texts = Sampler(MODELS / model).complete(prompts, temperature, SEED)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([texts[i : i + count] for i in range(0, len(texts), count)]))
    return json.loads(path.read_text())


def votes(problems: list[Problem], groups: list[list[str]], weights: list[list[float]] | None) -> dict[str, dict]:
    """Accuracy by level of one sample, majority, pass rate and, with weights, the weighted vote."""
    answers = [[lab_words.extract_answer(text) for text in group] for group in groups]
    pairs = list(zip(problems, answers, strict=True))
    figures = {
        "sample": by_level(problems, [sum(x == p.answer for x in a) / len(a) for p, a in pairs]),
        "majority": by_level(problems, [float(majority(a) == p.answer) for p, a in pairs]),
        "pass": by_level(problems, [float(p.answer in a) for p, a in pairs]),
    }
    if weights:
        weighted = [majority(a, w) for a, w in zip(answers, weights, strict=True)]
        figures["weighted"] = by_level(
            problems, [float(w == p.answer) for w, p in zip(weighted, problems, strict=True)]
        )
    return figures


def scores(problems: list[Problem], groups: list[list[str]]) -> tuple[list[list[float]], float]:
    """The last step's score of every solution, and the AUC over all steps against the exact labels."""
    flat = [(p, text) for p, group in zip(problems, groups, strict=True) for text in group]
    labels = [lab_words.step_labels(p, text) for p, text in flat]
    reward = load_reward(resolve_reward(str(MODELS / prm.NAME)), torch.device("cpu"), Dtype.FP32)
    steps = [s.steps for s in reward.score([(lab_words.prompt(p), text) for p, text in flat], batch_size=64)]
    last = iter([s[-1] for s in steps])
    return [[next(last) for _ in group] for group in groups], prm.auc(np.concatenate(steps), np.concatenate(labels))


def main() -> None:
    """Print one JSON line per model and figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(prm.SAMPLED))
    parser.add_argument("--problems", type=int, default=320)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problems = lab_words.problems("test", args.problems)
    scorer = (MODELS / prm.NAME / HEAD_FILE).exists()
    for model in args.models:
        print(json.dumps({"model": model, "greedy": greedy_accuracy(MODELS / model, problems)}), flush=True)
        groups = samples(model, problems, args.samples, args.temperature)
        weights, area = scores(problems, groups) if scorer else (None, None)
        for name, figures in votes(problems, groups, weights).items():
            print(json.dumps({"model": model, name: figures}), flush=True)
        if area is not None:
            print(json.dumps({"model": model, "step_auc": round(area, 4)}), flush=True)


if __name__ == "__main__":
    main()
