"""Training tokens, made once and kept in one file; batches are a function of the step number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lab import drills
from lab.family import RUNS
from lab.tokenizer import load_tokenizer
from tasks import lab_words

_CHUNK = 1000
# Problems sorted by length together: enough for under 1 % padding, few enough that a pool mixes well.
_POOL = 4096
IGNORE = -100


def _encode(chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of `_CHUNK` training problems: flat ids, their lengths, and the lengths of their prompts."""
    tokenizer = load_tokenizer()
    levels = lab_words.LEVELS
    numbers = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
    examples = [lab_words.generate(i // len(levels), levels[i % len(levels)], "train") for i in numbers]
    prompts = [lab_words.prompt(p) for p in examples]
    heads = tokenizer(prompts)["input_ids"]
    wholes = tokenizer([head + p.solution for head, p in zip(prompts, examples, strict=True)])["input_ids"]
    rows = [[*ids, tokenizer.eos_token_id] for ids in wholes]
    flat = np.fromiter((t for row in rows for t in row), np.uint16)
    return flat, np.array([len(r) for r in rows], np.int64), np.array([len(h) for h in heads], np.int64)


def _encode_drills(chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drills from `_CHUNK` training problems; prompts of length 0 mark sums."""
    tokenizer, rng = load_tokenizer(), random.Random(chunk)
    examples = drills.problems(chunk, _CHUNK)
    texts = drills.sums(examples, rng)
    stories = drills.reaching(_CHUNK // 3, rng)
    rows = tokenizer(texts)["input_ids"]
    heads = [0] * len(texts) + [len(ids) for ids in tokenizer([head for head, _ in stories])["input_ids"]]
    rows += [[*ids, tokenizer.eos_token_id] for ids in tokenizer([head + tail for head, tail in stories])["input_ids"]]
    flat = np.fromiter((t for row in rows for t in row), np.uint16)
    return flat, np.array([len(r) for r in rows], np.int64), np.array(heads, np.int64)


def prepare(problems: int, drilled: int = 0, workers: int | None = None) -> Path:
    """Write the token file of the first `problems` training problems, if it is not there yet.

    `drilled`: drills from that many further problems are mixed in; `workers`: processes, default one per core.
    """
    path = RUNS / f"train-v{lab_words.VERSION}-{problems}-{drilled}.npz"
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        with Pool(workers) as pool:
            chunks = list(tqdm(pool.imap(_encode, range(problems // _CHUNK)), "problems", problems // _CHUNK))
            chunks += tqdm(pool.imap(_encode_drills, range(drilled // _CHUNK)), "drills", drilled // _CHUNK)
        flat, lengths, prompts = (np.concatenate(column) for column in zip(*chunks, strict=True))
        np.savez(path, tokens=flat, lengths=lengths, prompts=prompts)
    return path


@dataclass
class Examples:
    """Token arrays of many examples: `tokens` is flat, example i is `tokens[starts[i]:starts[i] + lengths[i]]`."""

    tokens: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray

    def __post_init__(self) -> None:
        self.newline, self.equals, *self.digits = load_tokenizer().convert_tokens_to_ids(["Ċ", "=", *"0123456789"])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    @classmethod
    def load(cls, path: Path) -> Examples:
        """Read the file that `prepare` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["tokens"], arrays["lengths"], arrays["prompts"])

    def targets(self, row: int) -> np.ndarray:
        """What to predict at each token of a row: the next token at the prompt's end and in the solution.

        In a drill (prompt length 0): the numbers after each `=` only, since nothing tells which sum is next.
        """
        start, length, prompt = self.starts[row], self.lengths[row], self.prompts[row]
        targets = np.full(length, IGNORE, np.int64)
        if prompt == 0:
            tokens = self.tokens[start : start + length].astype(np.int64)
            at = np.arange(length)
            last_equals, last_newline = (
                np.maximum.accumulate(np.where(tokens == mark, at, -1)) for mark in (self.equals, self.newline)
            )
            wanted = np.isin(tokens[1:], [*self.digits, self.newline])
            targets[:-1] = np.where((last_equals > last_newline)[:-1] & wanted, tokens[1:], IGNORE)
            return targets
        targets[prompt - 1 : length - 1] = self.tokens[start + prompt : start + length]
        return targets

    def batch(self, rows: np.ndarray, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and targets `[rows, longest]`, padded at the right.

        Right padding needs no attention mask: attention is causal, so no real token sees padding, and rows never
        see one another.
        """
        width = int(self.lengths[rows].max())
        ids = np.full((len(rows), width), pad, np.int64)
        targets = np.full((len(rows), width), IGNORE, np.int64)
        for k, row in enumerate(rows):
            length, start = self.lengths[row], self.starts[row]
            ids[k, :length] = self.tokens[start : start + length]
            targets[k, :length] = self.targets(row)
        return torch.from_numpy(ids), torch.from_numpy(targets)

    def schedule(self, micro_batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless micro-batches (row numbers), each of similar lengths; the same for the same arguments."""
        epoch = 0
        while True:
            order = np.random.default_rng([seed, epoch]).permutation(len(self.lengths))
            for at in range(0, len(order), _POOL):
                yield from self._pool(order[at : at + _POOL], micro_batch_tokens, [seed, epoch, at])
            epoch += 1

    def _pool(self, rows: np.ndarray, micro_batch_tokens: int, seed: list[int]) -> list[np.ndarray]:
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        batches, start = [], 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or (end + 1 - start) * self.lengths[rows[end]] > micro_batch_tokens:
                batches.append(rows[start:end])
                start = end
        np.random.default_rng(seed).shuffle(batches)
        return batches
