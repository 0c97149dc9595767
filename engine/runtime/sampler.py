"""The next token of each sequence from a step's scores."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from engine.devices import on
from engine.runtime.sequence import Sequence
from engine.sampling import Sampling, draw


@dataclass(frozen=True, slots=True)
class Chosen:
    """``tokens`` of the sequences, and their log-probabilities where some row asked for them."""

    tokens: list[int]
    logprobs: list[float] | None


class NotNumbers(ArithmeticError):
    """A model gave NaN where a token was to be chosen."""


def is_greedy(sequences: Seq[Sequence]) -> bool:
    """Whether each one's next token is just the one with the highest score."""
    return all(s.row.sampling is None and not s.row.logprobs for s in sequences)


def choose(logits: torch.Tensor, sequences: Seq[Sequence], fused: bool = False) -> Chosen:
    """One token for each sequence from ``logits`` [sequences, vocabulary]. ``fused``: by our kernel where it can."""
    if fused and not any(s.row.sampling is not None and s.row.sampling.reads_context for s in sequences):
        return _fused(logits, sequences)
    kinds, logprobs = {s.row.sampling for s in sequences}, None
    if len(kinds) == 1:
        tokens = _of_kind(logits, sequences, next(iter(kinds)))
    else:
        tokens = torch.empty(len(sequences), dtype=torch.long, device=logits.device)
        for kind in kinds:
            places = [i for i, s in enumerate(sequences) if s.row.sampling == kind]
            at = torch.tensor(places, device=logits.device)
            tokens[at] = _of_kind(logits[at], [sequences[i] for i in places], kind)
    if any(s.row.logprobs for s in sequences):
        chosen = logits.gather(1, tokens[:, None])[:, 0].float()
        logprobs = (chosen - logits.float().logsumexp(-1)).tolist()
    return Chosen(tokens.tolist(), logprobs)


def _fused(logits: torch.Tensor, sequences: Seq[Sequence]) -> Chosen:
    """All rows at once, each with its own parameters; greedy ones have the temperature 0."""
    from kernels.sampler.triton import sample

    rows = [_numbers(s) for s in sequences]
    n = len(rows)
    table = torch.zeros(5, n + n % 2, dtype=torch.float64)  # each line aligned, or another kernel would be compiled
    table[:, :n] = torch.tensor(rows, dtype=torch.float64).T
    numbers = table.to(logits.device)[:, :n]
    filters: dict[str, torch.Tensor] = {}
    for i, (name, none) in enumerate((("top_k", 0.0), ("top_p", 1.0), ("min_p", 0.0)), start=2):
        if any(row[i] != none for row in rows):
            filters[name] = numbers[i].int() if name == "top_k" else numbers[i]
    with on(logits.device):
        tokens, logprobs = sample(logits, numbers[0], numbers[1].float(), **filters)
    found = tokens.tolist()
    if min(found) < 0:
        raise NotNumbers("the model's scores are not numbers")
    return Chosen(found, logprobs.tolist() if any(s.row.logprobs for s in sequences) else None)


def _numbers(sequence: Sequence) -> tuple[float, float, float, float, float]:
    """Uniform number, temperature, top-k, top-p and min-p of the next token."""
    sampling = sequence.row.sampling
    if sampling is None:
        return 0.0, 0.0, 0.0, 1.0, 0.0
    number = sequence.number(len(sequence.tokens) - len(sequence.row.context))
    return number, sampling.temperature, float(sampling.top_k), sampling.top_p, sampling.min_p


def distribution(logits: torch.Tensor, sampling: Sampling, contexts: Seq[Seq[int]]) -> torch.Tensor:
    """Scores [rows, vocabulary] after the filters of a way of sampling; -inf for what was filtered out."""
    if not sampling.reads_context:
        return sampling.filters()(None, logits.float())  # type: ignore[arg-type]
    longest = max(len(c) for c in contexts)
    # The penalty asks which tokens occur, not how often or where: filling up with the first one changes nothing.
    filled = [list(c) + [c[0]] * (longest - len(c)) for c in contexts]
    return sampling.filters()(torch.tensor(filled, device=logits.device), logits.float())


def _of_kind(logits: torch.Tensor, sequences: Seq[Sequence], sampling: Sampling | None) -> torch.Tensor:
    if sampling is None:
        return logits.argmax(-1)
    numbers = [s.number(len(s.tokens) - len(s.row.context)) for s in sequences]
    uniform = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
    return draw(distribution(logits, sampling, [s.tokens for s in sequences]), uniform)
