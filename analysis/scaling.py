"""Accuracy against what it costs, from stored runs: one run of a vote at n tells the curve for all smaller n.

A part of the samples of a run is itself a run with fewer samples, so the accuracy at k < n is the mean over random
parts of k of the same n candidates (``docs/metrics.md``): exact for one sample, for best-of-n and for pass@k, over
``SUBSETS`` random parts for the other votes. At k = n it is what the run itself gave. Other strategies look at their
earlier work while they go on, so a part of their candidates is no smaller run: each run is one point.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec.choices import Vote
from spec.results import Answer, Candidate
from spec.statistics import wilson

SUBSETS = 64
RESAMPLES = 500
VOTES = {"majority": Vote.MAJORITY, "weighted": Vote.WEIGHTED, "best-of-n": Vote.BEST}
SHARED = ("tokens", "flops_generated", "flops_total", "flops_no_reuse")  # costs that a part of a run has a share of
_RIGHT, _SILENT = 0, -1  # classes of answers; wrong ones are counted from 1
_CHUNK = 2_000_000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sketch:
    """One checked answer without its texts: what a curve needs to know.

    Attributes:
        kinds: for each candidate 0 where it is right, -1 where it gave no answer, else a number for its wrong answer.
        scores: for each candidate, NaN where it has none.
        costs: of ``SHARED``, those that are known.
        prompt, once: prompt tokens read for all candidates, and for a single one.
    """

    problem_id: str
    correct: bool
    kinds: Sequence[int]
    scores: Sequence[float]
    costs: Mapping[str, float]
    prompt: float
    once: float


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy at a cost per problem, with the ends of its interval.

    ``n``: samples; None for a strategy that has no such number. ``problems``: how many it is an average of.
    ``is_part``: reckoned from parts of a larger run.
    """

    n: int | None
    x: float
    accuracy: float
    low: float
    high: float
    problems: int
    run_id: str
    is_part: bool = False


def sketch(answer: Answer) -> Sketch | None:
    """An answer without its texts; None where it failed, was not checked or has no candidates.

    Answers count as the same where their texts are equal or both are right. The engine compares wrong answers by the
    task's rule too, so of two ways to write one wrong number this makes two: the accuracy of a majority can come out
    a little too high, which its last point, the run itself, does not.
    """
    if answer.error is not None or answer.correct is None or not answer.candidates:
        return None
    n, names = len(answer.candidates), dict[str, int]()
    kinds = array("i", (_kind(c, names) for c in answer.candidates))
    known = {name: getattr(answer, name) for name in SHARED[1:]} | {"tokens": float(answer.tokens_generated)}
    return Sketch(
        answer.problem_id,
        bool(answer.correct),
        kinds,
        array("d", (math.nan if c.score is None else c.score for c in answer.candidates)),
        {name: float(value) for name, value in known.items() if value is not None},
        float(answer.tokens_prompt),
        (answer.tokens_prompt + answer.tokens_cached) / n,
    )


def _kind(candidate: Candidate, names: dict[str, int]) -> int:
    if candidate.answer is None:
        return _SILENT
    return _RIGHT if candidate.correct else names.setdefault(candidate.answer, len(names) + 1)


def share_of_cost(found: Sketch, cost: str, k: int) -> float | None:
    """What ``k`` of the candidates cost on average; None where the cost is not known.

    Written tokens, and all that follows from them, are shared out evenly. A prompt that was read once for all is
    charged once: 2 N operations (``flops_generated`` per token) for each prompt token that k samples make the model
    read; attention to the prompt, and what a reward model reads, go with the samples. Without sharing every sample
    pays for its own prompt, so ``flops_no_reuse`` is shared out evenly as a whole.
    """
    n, whole = len(found.kinds), found.costs.get(cost)
    if whole is None or k >= n:
        return whole
    if cost != "flops_total":
        return whole * k / n
    tokens, written = found.costs["tokens"], found.costs.get("flops_generated")
    per_token = written / tokens if written and tokens else 0.0
    once = min(found.once, found.prompt)  # less than a prompt, where another problem had its beginning computed
    read = once + (found.prompt - once) * (k - 1) / (n - 1)
    return per_token * read + (whole - per_token * found.prompt) * k / n


@dataclass(frozen=True, slots=True)
class Growth:
    """The accuracy of a vote of ``n`` samples with its interval, whatever it costs."""

    n: int
    accuracy: float
    low: float
    high: float
    problems: int


def growth(sketches: Sequence[Sketch], vote: Vote | None, seed: int = 0) -> list[Growth]:
    """The accuracy of a vote of 1, 2, 4 ... n samples; ``vote`` None is pass@k, the vote of a perfect judge."""
    found = []
    for k in sizes(max((len(s.kinds) for s in sketches), default=0)):
        shares = _by_problem(sketches, accuracies(sketches, vote, k, seed))
        found.append(Growth(k, float(shares.mean()), *interval(shares, seed), len(shares)))
    return found


def curve(sketches: Sequence[Sketch], grown: Sequence[Growth], cost: str, run_id: str) -> list[Point]:
    """``growth`` against one cost; empty where an answer does not tell it."""
    points = []
    for g in grown:
        known = [c for s in sketches if (c := share_of_cost(s, cost, g.n)) is not None]
        if len(known) == len(sketches):
            x, is_part = math.fsum(known) / len(known), g is not grown[-1]
            points.append(Point(g.n, x, g.accuracy, g.low, g.high, g.problems, run_id, is_part))
    return points


def sizes(n: int) -> list[int]:
    """The powers of two below ``n``, and ``n``.

    >>> sizes(12), sizes(1), sizes(0)
    ([1, 2, 4, 8, 12], [1], [])
    """
    return [2**i for i in range(max(0, n - 1).bit_length())] + [n] if n else []


def accuracies(sketches: Sequence[Sketch], vote: Vote | None, k: int, seed: int = 0) -> Floats:
    """For each answer the chance that ``k`` of its candidates, chosen at random, vote for the right answer."""
    if vote is None:
        return np.array([_any(s, k) for s in sketches])
    parts = [i for i, s in enumerate(sketches) if k < len(s.kinds)]
    found = np.array([float(s.correct) for s in sketches])
    if vote is Vote.BEST:
        found[parts] = [_best(sketches[i], k) for i in parts]
    elif k == 1:
        found[parts] = [_one(sketches[i], vote) for i in parts]
    else:
        lengths = {len(sketches[i].kinds) for i in parts}
        for n in sorted(lengths):
            some = [i for i in parts if len(sketches[i].kinds) == n]
            found[some] = _voted([sketches[i] for i in some], vote, n, k, seed)
    return found


def _any(s: Sketch, k: int) -> float:
    n, right = len(s.kinds), s.kinds.count(_RIGHT)
    return 1.0 - math.comb(n - right, min(k, n)) / math.comb(n, min(k, n))


def _one(s: Sketch, vote: Vote) -> float:
    votes = [kind == _RIGHT and _may_vote(s, i, vote) for i, kind in enumerate(s.kinds)]
    return sum(votes) / len(votes)


def _may_vote(s: Sketch, i: int, vote: Vote) -> bool:
    return s.kinds[i] != _SILENT and (vote is Vote.MAJORITY or not math.isnan(s.scores[i]))


def _best(s: Sketch, k: int) -> float:
    """Exact: the r-th best of n is the best of k with the chance C(n - r, k - 1) / C(n, k)."""
    n = len(s.kinds)
    ranked = sorted((i for i in range(n) if _may_vote(s, i, Vote.BEST)), key=lambda i: (-s.scores[i], i))
    ways = sum(math.comb(n - r, k - 1) for r, i in enumerate(ranked, 1) if s.kinds[i] == _RIGHT)
    return ways / math.comb(n, k)


def _voted(sketches: Sequence[Sketch], vote: Vote, n: int, k: int, seed: int) -> Floats:
    """Share of ``SUBSETS`` random parts in which the right answer wins; ties go to the class that was full first."""
    rng = np.random.default_rng([seed, n, k])
    chosen = np.argsort(rng.random((SUBSETS, n)), axis=1)[:, :k]
    kinds = np.array([s.kinds for s in sketches])
    weights = np.ones(kinds.shape)
    if vote is Vote.WEIGHTED:
        weights = np.array([s.scores for s in sketches])
        kinds = np.where(np.isnan(weights), _SILENT, kinds)
        weights = np.nan_to_num(weights)
    step = max(1, _CHUNK // (SUBSETS * max(k, int(kinds.max(initial=0)) + 1)))
    found = [_winners(kinds[i : i + step], weights[i : i + step], chosen) for i in range(0, len(kinds), step)]
    return np.concatenate(found)


def _winners(kinds: NDArray[np.int64], weights: Floats, chosen: NDArray[np.int64]) -> Floats:
    rows, classes = len(kinds) * len(chosen), int(kinds.max(initial=0)) + 1
    kind = kinds[:, chosen].reshape(rows, -1)
    weight = weights[:, chosen].reshape(rows, -1)
    row, place = np.nonzero(kind != _SILENT)
    at = row * classes + kind[row, place]
    sums = np.bincount(at, weight[row, place], minlength=rows * classes)
    last = np.full(rows * classes, -1)
    last[at] = place  # of a class's places the last one stays
    weighed = np.where(last < 0, -np.inf, sums).reshape(rows, classes)
    top = weighed.max(axis=1, keepdims=True)
    haste = np.where(weighed == top, last.reshape(rows, classes), np.iinfo(np.int64).max)
    won = (haste.argmin(axis=1) == _RIGHT) & np.isfinite(top[:, 0])
    shares: Floats = won.reshape(len(kinds), len(chosen)).mean(axis=1)
    return shares


def _by_problem(sketches: Sequence[Sketch], values: Floats) -> Floats:
    """Means over the repeats of each problem: asking again is no new problem."""
    sums: dict[str, list[float]] = {}
    for s, value in zip(sketches, values.tolist(), strict=True):
        sums.setdefault(s.problem_id, []).append(value)
    return np.array([math.fsum(v) / len(v) for v in sums.values()])


def interval(shares: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over problems, by bootstrap over the problems (percentiles of ``RESAMPLES`` means).

    Where all problems came out alike, resampling them shows no spread: then it is Wilson's interval.
    """
    n = len(shares)
    if not n:
        raise ValueError("an interval needs at least one problem")
    if shares.min() == shares.max():
        return wilson(float(shares[0]) * n, n)
    rng = np.random.default_rng([seed, n, zlib.crc32(shares.tobytes())])
    means = [float(shares[rng.integers(0, n, n)].mean()) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
