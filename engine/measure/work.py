"""What a run's answers took: tokens, operations, drafts, early exits. Each answer carries its own exact account."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from engine.measure.flops import ModelShape, forward_flops
from engine.measure.sheet import NO_ANSWERS, SCORES_TEXT, Sheet
from engine.measure.time import MAX_STORED_SAMPLES
from spec.results import Answer

NO_PARAMETERS = "active parameters are not known"
NO_ACCOUNT = "not every answer carries its account of compute, for an older version gave some of them"
NO_DRAFT = "the strategy drafts no tokens"
NO_EXIT = "the strategy has no early exits"
FLOPS = ("flops_generated", "flops_total", "flops_no_reuse")


def compute(
    sheet: Sheet,
    answers: Sequence[Answer],
    model: ModelShape,
    verifier: ModelShape | None = None,
    windows: Sequence[int] | None = None,
) -> None:
    """Tokens and operations, summed over all answers and averaged over those without an error.

    ``windows``: of a task that scores a text, the tokens of each forward pass; there are no answers then.
    """
    answered = [a for a in answers if a.error is None]
    sheet.put("tokens_prompt", sum(a.tokens_prompt for a in answers) + sum(windows or ()))
    for name in ("tokens_cached", "tokens_generated", "tokens_verifier"):
        sheet.put(name, sum(getattr(a, name) for a in answers))
    shapes = [shape for shape in (model, verifier) if shape is not None]
    is_known = all(shape.active_parameters is not None for shape in shapes)
    unknown = next((s.reason for s in shapes if s.reason), NO_ACCOUNT if is_known else NO_PARAMETERS)
    for name in FLOPS:
        sheet.put(name, _flops(answers, name) if windows is None else _read(model, windows, name), unknown)
    per = NO_ANSWERS if windows is None else SCORES_TEXT
    total = _flops(answered, "flops_total")
    sheet.ratio("flops_per_problem", total, len(answered), unknown if total is None else per)
    sheet.ratio("tokens_per_problem", sum(a.tokens_generated for a in answered), len(answered), per)


def _flops(answers: Sequence[Answer], name: str) -> float | None:
    """The sum of one accounting over answers; None where one of them does not have it."""
    found = [getattr(a, name) for a in answers]
    return None if None in found else math.fsum(found)


def _read(model: ModelShape, windows: Sequence[int], name: str) -> float | None:
    """What reading the windows of a text takes, by one accounting; nothing of it is generated."""
    passes = [forward_flops(model, tokens) or 0.0 for tokens in windows]
    if model.active_parameters is None:
        return None
    return 0.0 if name == "flops_generated" else math.fsum(passes)


def drafts(sheet: Sheet, answers: Sequence[Answer]) -> None:
    """How far drafts were right, over the answers for which a model verified one."""
    some = [a for a in answers if a.target_passes or a.tokens_drafted]
    drafted, accepted = (sum(getattr(a, name) for a in some) for name in ("tokens_drafted", "tokens_accepted"))
    sheet.put("tokens_drafted", drafted if some else None, NO_DRAFT)
    sheet.put("tokens_accepted", accepted if some else None, NO_DRAFT)
    sheet.ratio("acceptance_rate", accepted, drafted, "no token was drafted" if some else NO_DRAFT)
    written, passes = sum(a.tokens_generated for a in some), sum(a.target_passes for a in some)
    sheet.ratio("tokens_per_pass", written, passes, "no draft was verified" if some else NO_DRAFT)


def exits(sheet: Sheet, answers: Sequence[Answer]) -> dict[str, list[float]]:
    """How many layers the tokens took, where they could leave early: the mean, and the spread as a stored series."""
    histogram = Counter[int]()
    for answer in answers:
        histogram.update(dict(answer.exits))
    tokens = histogram.total()
    sheet.ratio("mean_exit_layers", sum(k * v for k, v in histogram.items()), tokens, NO_EXIT)
    return {"exit_layers": _spread_out(histogram, min(tokens, MAX_STORED_SAMPLES))} if tokens else {}


def _spread_out(histogram: Mapping[int, int], count: int) -> list[float]:
    """``count`` values, ascending, that lie as those of a histogram do; all of them where it has no more.

    >>> _spread_out({3: 2, 8: 2}, 4), _spread_out({3: 20, 8: 20}, 2)
    ([3.0, 3.0, 8.0, 8.0], [3.0, 8.0])
    """
    values = sorted(histogram)
    ends = list(accumulate(histogram[v] for v in values))
    return [float(values[bisect_right(ends, (2 * i + 1) * ends[-1] // (2 * count))]) for i in range(count)]
