"""A small batched sampler, for checks during training and for the reward model's data; the engine measures results.

python -m lab.evaluate lab/models/lab-s --problems 400 --samples 16
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tasks import lab_words
from tasks.problem import Problem

MAX_NEW_TOKENS = 320


class Sampler:
    """A model that completes prompts in large batches; rows that finish leave the batch."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def complete(self, prompts: list[str], temperature: float, seed: int, batch: int = 128) -> list[str]:
        """One completion per prompt, without the end token; temperature 0 is greedy."""
        generator = torch.Generator(self.device).manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out = [""] * len(prompts)
        for at in tqdm(range(0, len(order), batch), "sampling", leave=False):
            rows = order[at : at + batch]
            made = self._generate([prompts[i] for i in rows], temperature, generator)
            for i, text in zip(rows, self.tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                out[i] = text
        return out

    def _generate(self, prompts: list[str], temperature: float, generator: torch.Generator) -> list[list[int]]:
        """Token ids per prompt; finished rows leave the batch and its cache: a long answer holds up no others."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        ids, mask, cache = inputs["input_ids"], inputs["attention_mask"], DynamicCache()
        alive = torch.arange(len(prompts), device=self.device)
        made: list[list[int]] = [[] for _ in prompts]
        for _ in range(MAX_NEW_TOKENS):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            ).logits[:, -1]
            if temperature:
                chosen = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                chosen = logits.argmax(-1)
            for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
                made[row].append(token)
            going = chosen != self.tokenizer.eos_token_id
            if not going.all():
                keep = going.nonzero()[:, 0]
                if not len(keep):
                    break
                cache.batch_select_indices(keep)
                alive, mask, chosen = alive[keep], mask[keep], chosen[keep]
            ids = chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        return made


def right(problem: Problem, text: str) -> bool:
    """Whether a completion answers its problem."""
    return lab_words.is_correct(lab_words.extract_answer(text), problem.answer or "")


def by_level(problems: list[Problem], hits: list[float]) -> dict[str, float]:
    """Mean of `hits` in all and for each level."""
    groups: dict[str, list[float]] = defaultdict(list)
    for problem, hit in zip(problems, hits, strict=True):
        groups[str(problem.level)].append(hit)
    return {"all": sum(hits) / len(hits)} | {k: round(sum(v) / len(v), 4) for k, v in sorted(groups.items())}


def greedy_accuracy(folder: Path, problems: list[Problem], device: str = "cpu") -> dict[str, float]:
    """Share of problems answered right by greedy decoding, in all and by level."""
    texts = Sampler(folder, device).complete([lab_words.prompt(p) for p in problems], 0.0, 0)
    return by_level(problems, [float(right(p, t)) for p, t in zip(problems, texts, strict=True)])


def majority(answers: list[str | None], weights: list[float] | None = None) -> str | None:
    """The answer with the greatest (weighted) count, first come first on a tie; no answer has no vote."""
    votes: Counter[str] = Counter()
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is not None:
            votes[answer] += weight
    return votes.most_common(1)[0][0] if votes else None
