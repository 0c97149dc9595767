"""Measures a task that scores a text: perplexity."""

from __future__ import annotations

from engine.measure.memory import RssMeter
from engine.measure.sensors import energy_meter
from engine.measure.summary import RunRecord
from engine.measure.time import now, synchronise
from engine.perplexity import TextScorer
from engine.progress import Reporter
from engine.setup import Setup
from spec.results import Phase

NO_CACHE = "scoring a text keeps no KV cache"
ONE_REPEAT = "A text's score has no randomness, so it was computed once whatever the number of repeats."


def measure_text(setup: Setup) -> tuple[RunRecord, str | None]:
    """The record of the run. Raises InputError (text too short), DoesNotFitError, Cancelled."""
    scorer = TextScorer(setup.loaded, setup.task.text(), setup.spec.runtime.batch_size)
    setup.on_event(Phase("warmup", "The text's beginning, not measured"))
    started = now()
    scorer.warm_up()
    synchronise(setup.device)
    warmup_s = now() - started
    reporter = Reporter(len(scorer.passes), [], setup.on_event, setup.cancelled)
    setup.on_event(Phase("measure", f"{len(scorer.passes)} windows of text"))
    with energy_meter(setup.device) as energy, RssMeter() as rss:
        reporter.start()
        started = now()
        score = scorer.score(reporter.scored)
        synchronise(setup.device)
        wall_s = now() - started
    reporter.finish()
    if setup.spec.repeats > 1:
        setup.note(ONE_REPEAT)
    record = setup.record(
        *(wall_s, warmup_s, energy.reading, rss.peak, None),
        answers=(),
        timings=(),
        text=score,
        missing={"kv_bytes_peak": NO_CACHE},
    )
    return record, None
