"""Drawing tokens so that a seed means the same random numbers at any batch size, in any order, after any interruption.

A stateful generator hands out its numbers in the order of execution, so a sample would depend on its neighbours in
the batch. Here each number is a pure function of (seed, repeat, problem, sample, position): SplitMix64 (Steele, Lea
and Flood 2014, "Fast splittable pseudorandom number generators") of a key and a counter. The token is the inverse of
the cumulative distribution at that number, after transformers' own filters in transformers' own order.

The distribution itself comes from the model, whose arithmetic depends in the last digits on the shape of the batch.
In fp32 that practically never moves a token; in bf16 and fp16 now and then it does, and the sample goes on differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spec.strategy import Sample

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BITS = 48  # of the uniform number: u * total < total holds in float64 for every u < 1 - 2**-48


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and a penalty of 1 filter nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, strategy: Sample) -> Sampling:
        """The sampling parameters of a strategy."""
        return cls(
            strategy.temperature,
            strategy.top_k,
            strategy.top_p,
            strategy.min_p,
            strategy.repetition_penalty,
        )

    @property
    def reads_context(self) -> bool:
        """Whether the filters need to know what came before."""
        return self.repetition_penalty != 1.0

    def filters(self) -> LogitsProcessorList:
        """Repetition penalty, temperature, top-k, top-p, min-p: transformers' own, in the order of its ``generate``."""
        chosen: list[LogitsProcessor] = []
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature != 1.0:
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k > 0:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chosen.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0.0:
            chosen.append(MinPLogitsWarper(self.min_p))
        return LogitsProcessorList(chosen)


def stream_key(seed: int, repeat: int, problem_id: str, sample: int) -> int:
    """The 64-bit key of one sample's stream of random numbers."""
    text = f"{seed}\0{repeat}\0{sample}\0{problem_id}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def uniforms(keys: Sequence[int], starts: Sequence[int], steps: int) -> np.ndarray:
    """Numbers in [0, 1) for positions ``starts[i] .. starts[i] + steps - 1`` of each stream; float64 [rows, steps]."""
    positions = np.asarray(starts, dtype=np.uint64)[:, None] + np.arange(1, steps + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        z = np.asarray(keys, dtype=np.uint64)[:, None] + positions * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(64 - _BITS)).astype(np.float64) / float(1 << _BITS)


def draw(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution of ``softmax(scores)`` passes ``uniform``.

    ``scores`` [rows, vocabulary] with -inf for what was filtered out, ``uniform`` float64 [rows]; returns int64 [rows].
    A token of probability zero is never drawn: the first position above ``u * total`` is one where the sum grew.
    """
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


class CounterSampler(LogitsProcessor):
    """Leaves only the drawn token of each row, so that ``generate(do_sample=False)`` picks it."""

    def __init__(self, sampling: Sampling, numbers: np.ndarray, prompt_width: int, device: torch.device) -> None:
        self._filters = sampling.filters()
        self._numbers = torch.from_numpy(numbers).to(device)
        self._prompt_width = prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """``scores`` [rows, vocabulary] of the step that ``input_ids`` [rows, length] has reached."""
        step = input_ids.shape[1] - self._prompt_width
        tokens = draw(self._filters(input_ids, scores), self._numbers[:, step])
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)
