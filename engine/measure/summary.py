"""From what was recorded to the summary row: every measure of ``spec.measures.MEASURES``, or why it is missing.

A resumed run is summarised over all its answers where a figure belongs to the answers (accuracy, tokens, compute,
latency). Rates and ratios of the clock and the energy (throughput, joules per token) come from the last attempt alone,
numerator and denominator. What only all attempts together could tell (run time, energy, peaks of memory) is missing:
beside the accuracy of a thousand answers, the seconds of the last ten would make the run look a hundred times cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.measure.energy import EnergyReading
from engine.measure.flops import ModelShape
from engine.measure.memory import NO_ALLOCATOR, MemoryReading
from engine.measure.sheet import NO_ANSWERS, SCORES_TEXT, Sheet
from engine.measure.time import MAX_STORED_SAMPLES, SequenceTiming, percentiles, steady_window, thin
from engine.measure.work import compute, drafts, exits
from spec.measures import MEASURES, Group
from spec.results import Answer, RunResult
from spec.statistics import pass_at_k, repeats, wilson

ASKS_QUESTIONS = "the task asks questions and scores no text"
NO_TOKENS = "no token was generated"
NO_REFERENCE = "the problems have no reference answers"
NOT_TOLD = "the back end cannot tell"
RESUMED_SUM = "the run was resumed, and only the last of its attempts was timed and metered"
RESUMED_PEAK = "the run was resumed, and the peak of its earlier attempts is not known"
NO_STEADY = (
    "there was no steady state: the queue was empty before a full batch was in flight; ask more problems, "
    "or see throughput_run_tok_s"
)
# What the stored series are called in a note.
_SERIES = {
    "latency_s": "latencies",
    "ttft_s": "times to the first token",
    "queue_s": "waits in the queue",
    "itl_s": "times between tokens",
    "tpot_s": "times per token",
}


@dataclass(frozen=True, slots=True)
class TextScore:
    """Result of scoring a text.

    Attributes:
        nll_nats: summed negative log-likelihood of the scored tokens; ``bytes_scored``: their length as UTF-8.
        windows: tokens of each forward pass, context that was scored before included.
    """

    nll_nats: float
    tokens_scored: int
    bytes_scored: int
    windows: Sequence[int]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything the engine recorded of one run.

    Attributes:
        answers: all answers, those of earlier attempts first.
        earlier: how many of them an earlier attempt measured.
        timings: one per generated sequence of this attempt.
        wall_s: measured part of this attempt, load and warm-up excluded.
        verifier: shape of the reward model, where there was one.
        text: for a perplexity task, its score; ``answers`` is then empty.
        no_accuracy: why correctness has no meaning here (random weights); None where it has.
        no_speed: why times and energy have no meaning here (simulated arithmetic); None where they have.
        compressed: figures of a compressed model against the one it was made of; None where it is whole.
        missing: reason for a measure the back end could not take, e.g. {"kv_bytes_peak": "..."}.
    """

    answers: Sequence[Answer]
    timings: Sequence[SequenceTiming]
    batch_size: int
    wall_s: float
    load_s: float | None
    warmup_s: float | None
    energy: EnergyReading
    memory: MemoryReading
    model: ModelShape
    verifier: ModelShape | None = None
    earlier: int = 0
    text: TextScore | None = None
    no_accuracy: str | None = None
    no_speed: str | None = None
    compressed: Mapping[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def summarise(record: RunRecord, environment: dict[str, Any] | None = None) -> RunResult:
    """The result of a run. Every measure is a finite number, or None with a reason."""
    sheet = Sheet()
    notes: list[str] = []
    answered = [a for a in record.answers if a.error is None]
    _quality(sheet, record, answered, notes)
    samples = _time(sheet, record, answered, notes)
    _energy(sheet, record, notes)
    windows = None if record.text is None else record.text.windows
    compute(sheet, record.answers, record.model, record.verifier, windows)
    for name in ("tokens_prompt", "tokens_cached"):
        if name in record.missing:
            sheet.put(name, None, record.missing[name])
    drafts(sheet, record.answers)
    samples |= exits(sheet, record.answers)
    _memory(sheet, record)
    _compression(sheet, record)
    if record.no_speed is not None:
        samples = {name: values for name, values in samples.items() if name not in _SERIES}
        for measure in MEASURES.values():
            if measure.group in (Group.TIME, Group.ENERGY) and measure.name != "load_s":
                sheet.put(measure.name, None, record.no_speed)
    if record.earlier:
        notes.append(
            f"The run was resumed: {record.earlier} answers come from an earlier attempt; throughput and energy per "
            "token and per problem are those of the last attempt, and run time, energy and peaks of memory, which "
            "would have to hold all attempts, are not available."
        )
    failed = len(record.answers) - len(answered)
    if failed:
        what = "1 problem" if failed == 1 else f"{failed} problems"
        notes.append(f"{what} ended in an error: part of no average, while what was spent on it is part of the sums.")
    return RunResult(
        measures=sheet.measures,
        reasons=sheet.reasons,
        by_level=by_level(answered) if record.no_accuracy is None else {},
        energy_method=record.energy.method.value,
        energy_valid=None if record.energy.energy_j is None else record.energy.valid,
        energy_reason=None if record.energy.reason is None else record.energy.reason.value,
        environment=dict(environment or {}),
        samples=samples,
        notes=notes,
    )


def by_level(answers: Iterable[Answer]) -> dict[int, dict[str, int]]:
    """level -> {"n": answers, "correct": correct ones}, for the answers that have a level and were checked."""
    levels: dict[int, dict[str, int]] = {}
    for answer in answers:
        if answer.level is not None and answer.correct is not None:
            row = levels.setdefault(answer.level, {"n": 0, "correct": 0})
            row["n"] += 1
            row["correct"] += answer.correct
    return dict(sorted(levels.items()))


def _quality(sheet: Sheet, record: RunRecord, answered: list[Answer], notes: list[str]) -> None:
    text = record.text
    checked = [a for a in answered if a.correct is not None]
    if text is not None:
        reason = SCORES_TEXT
    elif not answered:
        reason = NO_ANSWERS
    else:
        reason = record.no_accuracy or NO_REFERENCE
    if record.no_accuracy is not None or text is not None:
        checked = []
    problems = len({a.problem_id for a in answered})
    sheet.put("n_problems", None if text else problems, SCORES_TEXT)
    sheet.put("n_failed", None if text else len(record.answers) - len(answered), SCORES_TEXT)
    correct = sum(bool(a.correct) for a in checked)
    sheet.put("n_correct", correct if checked else None, reason)
    sheet.ratio("accuracy", correct, len(checked), reason)
    # Repeats ask the same problems again and are not independent: the interval counts each problem once.
    distinct = len({a.problem_id for a in checked})
    if spread := _spread(checked):
        notes.append(spread)
    low, high = wilson(correct / len(checked) * distinct, distinct) if checked else (None, None)
    sheet.put("accuracy_low", low, reason)
    sheet.put("accuracy_high", high, reason)
    shares = [_pass_at_n(a) for a in checked]
    sheet.put("pass_at_n", sum(shares) / len(shares) if shares else None, reason)
    for name, units in (("token", text and text.tokens_scored), ("byte", text and text.bytes_scored)):
        if text is None or record.no_accuracy is not None or not units:
            sheet.put(f"perplexity_{name}", None, _no_perplexity(record))
        else:
            sheet.put(f"perplexity_{name}", _exp(text.nll_nats / units), "")


def _spread(checked: list[Answer]) -> str | None:
    """A sentence on how the accuracy varied from repeat to repeat; None for a run without repeats."""
    shares: dict[int, list[bool]] = {}
    for answer in checked:
        shares.setdefault(answer.repeat, []).append(bool(answer.correct))
    if len(shares) < 2:
        return None
    found = repeats([sum(marks) / len(marks) for marks in shares.values()])
    if found.interval is None or found.cv is None:
        return None
    low, high = (f"{100 * bound:.1f}" for bound in found.interval)
    return (
        f"Accuracy over {found.n} repeats: mean {100 * found.mean:.1f} %, 95 % t-interval {low} to {high} %, "
        f"coefficient of variation {100 * found.cv:.1f} % ({found.stability})."
    )


def _no_perplexity(record: RunRecord) -> str:
    return ASKS_QUESTIONS if record.text is None else record.no_accuracy or "no token was scored"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _pass_at_n(answer: Answer) -> float:
    n = len(answer.candidates)
    return pass_at_k(n, sum(bool(c.correct) for c in answer.candidates), n) if n else float(bool(answer.correct))


def _of_this_attempt(record: RunRecord) -> tuple[int, list[Answer]]:
    """Tokens generated in this attempt, those of failed problems included, and the answers it gave."""
    fresh = record.answers[record.earlier :]
    return sum(a.tokens_generated for a in fresh), [a for a in fresh if a.error is None]


def _time(sheet: Sheet, record: RunRecord, answered: list[Answer], notes: list[str]) -> dict[str, list[float]]:
    timings = record.timings
    series: dict[str, list[float]] = {
        "latency_s": [a.latency_s for a in answered if a.latency_s is not None],
        "ttft_s": [t.ttft_s for t in timings if t.ttft_s is not None],
        "queue_s": [t.queue_s for t in timings],
        "itl_s": [gap for t in timings for gap in t.itl_s],
        "tpot_s": [t.tpot_s for t in timings if t.tpot_s is not None],
    }
    empty = SCORES_TEXT if record.text else NO_ANSWERS if not answered else None
    gaps = "no sequence had two tokens or more"
    why = {"latency_s": NO_ANSWERS, "ttft_s": NO_TOKENS, "queue_s": NO_TOKENS, "itl_s": gaps, "tpot_s": gaps}
    for name, values in series.items():
        found = percentiles(values)
        for statistic in ("p50", "p90", "p95", "p99", "mean"):
            measure = f"{name.removesuffix('_s')}_{statistic}_s"
            if measure in MEASURES:
                sheet.put(measure, None if found is None else getattr(found, statistic), empty or why[name])
    tokens, fresh = _of_this_attempt(record)
    window = steady_window(timings, record.batch_size)
    steady = None if window is None else window.throughput_tok_s
    sheet.put("throughput_tok_s", steady, empty or (NO_STEADY if tokens else NO_TOKENS))
    which = " in the last attempt" if record.earlier else ""
    sheet.ratio("throughput_run_tok_s", tokens if tokens else None, record.wall_s, empty or NO_TOKENS + which)
    sheet.ratio("problems_per_s", len(fresh) if fresh else None, record.wall_s, empty or NO_ANSWERS + which)
    sheet.put("wall_s", None if record.earlier else record.wall_s, RESUMED_SUM)
    sheet.put("load_s", record.load_s, record.missing.get("load_s", "the model was already loaded"))
    sheet.put("warmup_s", record.warmup_s, record.missing.get("warmup_s", "no warm-up was needed"))
    long = sorted(name for name, values in series.items() if len(values) > MAX_STORED_SAMPLES)
    if long:
        notes.append(
            f"Of {', '.join(_SERIES[name] for name in long)} an even {MAX_STORED_SAMPLES:,} values are stored; the "
            "percentiles are of all."
        )
    return {name: thin(values) for name, values in series.items() if values}


def _energy(sheet: Sheet, record: RunRecord, notes: list[str]) -> None:
    energy = record.energy
    reason = energy.reason.sentence if energy.reason else "energy was not measured"
    if energy.valid is False and energy.energy_j is not None:
        notes.append(f"The energy figure cannot be trusted: {reason}.")
    if energy.detail:
        notes.append(f"Energy sensor: {energy.detail}.")
    joules = energy.energy_j
    sheet.put("energy_j", None if record.earlier else joules, reason if joules is None else RESUMED_SUM)
    sheet.put("idle_w", energy.idle_w, reason if joules is None else "idle power was not measured")
    tokens, fresh = _of_this_attempt(record)
    correct = 0 if record.no_accuracy else sum(bool(a.correct) for a in fresh)
    which = " in the last attempt" if record.earlier else ""
    for name, count, none in (
        ("j_per_token", tokens, NO_TOKENS + which),
        ("j_per_problem", len(fresh), NO_ANSWERS + which),
        ("j_per_correct", correct, record.no_accuracy or f"no answer was correct{which}"),
    ):
        sheet.ratio(name, joules, count, reason if joules is None else SCORES_TEXT if record.text else none)


def _compression(sheet: Sheet, record: RunRecord) -> None:
    found = record.compressed or {}
    otherwise = "the model is not compressed" if record.compressed is None else NOT_TOLD
    for name in ("logit_kl", "top1_agreement"):
        sheet.put(name, found.get(name), record.no_accuracy or record.missing.get(name, otherwise))


def _memory(sheet: Sheet, record: RunRecord) -> None:
    memory, missing = record.memory, record.missing
    sheet.put("weights_bytes", memory.weights_bytes, missing.get("weights_bytes", NOT_TOLD))
    for name, otherwise in (
        ("peak_memory_bytes", NO_ALLOCATOR),
        ("kv_bytes_peak", NOT_TOLD),
        ("process_rss_bytes", NOT_TOLD),
    ):
        peak = getattr(memory, name)
        reason = missing.get(name, otherwise) if peak is None else RESUMED_PEAK
        sheet.put(name, None if record.earlier else peak, reason)
