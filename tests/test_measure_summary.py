"""The summary row: every measure a finite number or a reason, and the right number."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measure.energy import EnergyReading, EnergyReason
from engine.measure.flops import ModelShape
from engine.measure.memory import MemoryReading
from engine.measure.summary import RunRecord, TextScore, summarise
from engine.measure.time import MAX_STORED_SAMPLES, SequenceTiming
from spec.choices import EnergyMethod
from spec.measures import MEASURES
from spec.results import Answer, Candidate, RunResult

SHAPE = ModelShape(1500, 1000, heads=2, head_dim=8, windows=(None, None))
NO_ENERGY = EnergyReading(EnergyMethod.NONE, None, None, EnergyReason.NO_SENSOR)
MEMORY = MemoryReading(None, 5_000, 3_000, 100)


def answer(name, correct, *, level=None, repeat=0, candidates=2, latency_s=1.0, error=None, **more):
    marks = [bool(correct) and i == 0 for i in range(candidates)]
    made = tuple(Candidate("t", "1", None if correct is None else m, 5, "stop") for m in marks)
    account = {"flops_generated": 7e3, "flops_total": 9e4, "flops_no_reuse": 2e5}
    values = {"tokens_cached": 4} | account | more
    return Answer(
        name, repeat, "q", "1", level, "1", correct, 0, made, 20, 5 * candidates, 0, latency_s, 0.1, error, **values
    )


def timing(name, start, *tokens):
    return SequenceTiming(name, 0, 0.0, start, tokens)


def record(answers, **changes):
    timings = [timing(a.problem_id, i, i + 0.5, i + 1.0) for i, a in enumerate(answers)]
    base = RunRecord(
        answers=answers,
        timings=timings,
        batch_size=1,
        wall_s=10.0,
        load_s=2.0,
        warmup_s=0.5,
        energy=NO_ENERGY,
        memory=MEMORY,
        model=SHAPE,
    )
    return replace(base, **changes)


def assert_whole(result):
    """Every measure is there, finite, or has a reason; nothing has both; and it survives the pipe."""
    assert set(result.measures) == set(MEASURES)
    for name, value in result.measures.items():
        assert (value is None) == (name in result.reasons), name
        assert value is None or math.isfinite(value), name
        assert result.reasons.get(name) != "", name
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_accuracy_interval_levels_and_pass_at_n():
    answers = [answer("a", True, level=1), answer("b", False, level=1), answer("c", True, level=2)]
    result = summarise(record(answers))
    assert_whole(result)
    m = result.measures
    assert (m["accuracy"], m["n_problems"], m["n_correct"], m["n_failed"]) == (pytest.approx(2 / 3), 3, 2, 0)
    assert m["accuracy_low"] < 2 / 3 < m["accuracy_high"]
    assert m["pass_at_n"] == pytest.approx(2 / 3)
    assert result.by_level == {1: {"n": 2, "correct": 1}, 2: {"n": 1, "correct": 1}}


def test_repeats_count_a_problem_once_and_do_not_narrow_the_interval():
    one = [answer(n, n == "a") for n in "abcd"]
    three = [answer(n, n == "a", repeat=r) for r in range(3) for n in "abcd"]
    once, thrice = summarise(record(one)).measures, summarise(record(three)).measures
    assert thrice["n_problems"] == 4
    assert thrice["n_correct"] == 3
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        assert thrice[name] == pytest.approx(once[name])


def test_repeats_say_how_much_the_accuracy_varies():
    twice = [
        answer(name, correct, repeat=r) for r, name, correct in ((0, "a", 1), (0, "b", 1), (1, "a", 1), (1, "b", 0))
    ]
    (note,) = (n for n in summarise(record(twice)).notes if "repeats" in n)
    assert "over 2 repeats: mean 75.0 %" in note
    assert "variation 47.1 % (unstable)" in note
    assert not any("repeats" in n for n in summarise(record(twice[:2])).notes)


def test_failed_problems_are_counted_and_kept_out_of_averages():
    result = summarise(record([answer("a", True), answer("b", None, error="out of memory", latency_s=None)]))
    assert_whole(result)
    assert (result.measures["accuracy"], result.measures["n_failed"], result.measures["n_problems"]) == (1.0, 1, 1)
    assert any("1 problem" in note for note in result.notes)


def test_what_was_spent_on_failed_problems_is_in_the_sums_but_in_no_average():
    energy = EnergyReading(EnergyMethod.NVML_COUNTER, 60.0, True)
    answers = [answer("a", True), answer("b", None, error="out of memory", latency_s=None)]
    whole = summarise(record(answers, energy=energy)).measures
    alone = summarise(record(answers[:1], energy=energy)).measures
    for name in ("tokens_generated", "tokens_prompt", "flops_total", "flops_generated", "throughput_run_tok_s"):
        assert whole[name] == 2 * alone[name]
    for name in ("tokens_per_problem", "flops_per_problem", "j_per_problem"):
        assert whole[name] == alone[name]
    assert whole["j_per_token"] == alone["j_per_token"] / 2


def test_an_absent_figure_is_not_called_doubtful():
    lost = EnergyReading(EnergyMethod.NVML_COUNTER, None, False, EnergyReason.COUNTER_RESET)
    result = summarise(record([answer("a", True)], energy=lost))
    assert not any("trusted" in note for note in result.notes)
    assert (result.energy_valid, result.energy_reason) == (None, "counter_reset")


def test_time_energy_and_ratios():
    energy = EnergyReading(EnergyMethod.NVML_COUNTER, 60.0, True, idle_w=70.0)
    answers = [answer("a", True, latency_s=1.0), answer("b", False, latency_s=3.0)]
    m = summarise(record(answers, energy=energy)).measures
    assert (m["latency_p50_s"], m["latency_mean_s"], m["wall_s"], m["load_s"]) == (2.0, 2.0, 10.0, 2.0)
    assert (m["ttft_p50_s"], m["itl_p50_s"], m["tpot_p50_s"], m["queue_p50_s"]) == (1.0, 0.5, 0.5, 0.5)
    assert (m["throughput_run_tok_s"], m["problems_per_s"], m["throughput_tok_s"]) == (2.0, 0.2, 2.0)
    assert (m["j_per_token"], m["j_per_problem"], m["j_per_correct"], m["idle_w"]) == (3.0, 30.0, 60.0, 70.0)
    assert (m["tokens_generated"], m["tokens_per_problem"], m["tokens_prompt"]) == (20, 10, 40)


def test_no_correct_answer_has_no_energy_per_correct():
    energy = EnergyReading(EnergyMethod.NVML_COUNTER, 60.0, True)
    result = summarise(record([answer("a", False)], energy=energy))
    assert_whole(result)
    assert result.measures["j_per_correct"] is None
    assert "no answer was correct" in result.reasons["j_per_correct"]
    assert result.measures["accuracy"] == 0.0


def test_doubtful_energy_is_kept_and_marked():
    energy = EnergyReading(EnergyMethod.NVML_COUNTER, 60.0, False, EnergyReason.OTHER_PROCESS)
    result = summarise(record([answer("a", True)], energy=energy))
    assert (result.energy_valid, result.energy_reason) == (False, "other_process")
    assert result.measures["energy_j"] == 60.0
    assert any("another process" in note for note in result.notes)


def test_random_weights_have_no_accuracy_but_all_the_rest():
    result = summarise(record([answer("a", False, level=1)], no_accuracy="the weights are random"))
    assert_whole(result)
    for name in ("accuracy", "accuracy_low", "accuracy_high", "n_correct", "pass_at_n", "j_per_correct"):
        assert result.measures[name] is None
    assert result.reasons["accuracy"] == "the weights are random"
    assert result.measures["latency_p50_s"] == 1.0
    assert result.by_level == {}


def test_a_resumed_run_takes_clock_figures_from_its_last_attempt():
    answers = [answer("a", True, latency_s=1.0), answer("b", False, latency_s=3.0)]
    energy = EnergyReading(EnergyMethod.RAPL, 60.0, True)
    result = summarise(record(answers, earlier=1, timings=[timing("b", 0, 0.5, 1.0)], energy=energy))
    m = result.measures
    assert (m["accuracy"], m["n_problems"], m["latency_mean_s"], m["tokens_generated"]) == (0.5, 2, 2.0, 20)
    assert (m["throughput_run_tok_s"], m["j_per_problem"], m["j_per_correct"]) == (1.0, 60.0, None)
    assert any("resumed" in note for note in result.notes)


def test_a_resumed_run_has_no_figure_that_would_have_to_hold_all_its_attempts():
    energy = EnergyReading(EnergyMethod.RAPL, 60.0, True, idle_w=5.0)
    memory = MemoryReading(9_000, 5_000, 3_000, 100)
    answers = [answer(str(i), True) for i in range(10)]
    whole = summarise(record(answers, energy=energy, memory=memory))
    resumed = summarise(record(answers, earlier=9, energy=energy, memory=memory))
    assert_whole(resumed)
    sums = {"wall_s", "energy_j", "peak_memory_bytes", "kv_bytes_peak", "process_rss_bytes"}
    for name in sums:
        assert whole.measures[name] is not None
        assert resumed.measures[name] is None
        assert "resumed" in resumed.reasons[name]
    assert {n for n, v in resumed.measures.items() if v is None} - {
        n for n, v in whole.measures.items() if v is None
    } == sums
    assert resumed.measures["weights_bytes"] == 3_000
    assert (resumed.measures["j_per_token"], resumed.measures["j_per_correct"]) == (6.0, 60.0)
    assert (resumed.energy_valid, resumed.measures["idle_w"]) == (True, 5.0)


def test_what_the_last_attempt_lacks_is_said_of_it_alone():
    energy = EnergyReading(EnergyMethod.RAPL, 60.0, True)
    result = summarise(record([answer("a", True), answer("b", False)], earlier=1, energy=energy))
    assert result.reasons["j_per_correct"] == "no answer was correct in the last attempt"


def test_one_batch_has_no_steady_throughput_and_says_why():
    result = summarise(record([answer("a", True)], batch_size=8))
    assert result.measures["throughput_tok_s"] is None
    assert "steady" in result.reasons["throughput_tok_s"]
    assert result.measures["throughput_run_tok_s"] == 1.0


def test_a_scored_text_has_perplexity_and_nothing_to_answer():
    text = TextScore(nll_nats=100 * math.log(8), tokens_scored=100, bytes_scored=300, windows=(64, 64))
    result = summarise(record([], text=text))
    assert_whole(result)
    m = result.measures
    assert (m["perplexity_token"], m["perplexity_byte"]) == (pytest.approx(8.0), pytest.approx(2.0))
    assert (m["tokens_prompt"], m["tokens_generated"]) == (128, 0)
    assert m["accuracy"] is None
    assert m["flops_total"] == m["flops_no_reuse"] == 2 * 1000 * 128 + 2 * 2 * (4 * 2 * 8) * (64 * 65 // 2)
    assert m["flops_generated"] == 0
    unknown = replace(SHAPE, active_parameters=None, reason="the experts are not counted")
    found = summarise(record([], text=text, model=unknown))
    assert found.reasons["flops_total"] == found.reasons["flops_generated"] == "the experts are not counted"


@pytest.mark.parametrize("nll", [math.nan, math.inf, 1e9])
def test_perplexity_that_is_no_number_is_none(nll):
    text = TextScore(nll_nats=nll, tokens_scored=10, bytes_scored=0, windows=(10,))
    result = summarise(record([], text=text))
    assert_whole(result)
    assert result.measures["perplexity_token"] is None


def test_random_weights_have_no_perplexity():
    text = TextScore(10.0, 10, 30, (10,))
    assert summarise(record([], text=text, no_accuracy="random")).reasons["perplexity_byte"] == "random"


def test_nothing_answered():
    result = summarise(record([], timings=[]))
    assert_whole(result)
    assert result.measures["n_problems"] == 0
    assert result.measures["accuracy"] is None


def test_long_series_are_thinned_and_say_so():
    answers = [answer(str(i), True, latency_s=float(i)) for i in range(MAX_STORED_SAMPLES + 5)]
    result = summarise(record(answers, timings=[]))
    assert len(result.samples["latency_s"]) == MAX_STORED_SAMPLES
    assert "Of latencies an even 10,000 values are stored; the percentiles are of all." in result.notes


def test_compute_is_the_sum_of_what_the_answers_say():
    m = summarise(record([answer("a", True), answer("b", None, error="x", flops_total=1e4)])).measures
    assert (m["flops_generated"], m["flops_total"], m["flops_no_reuse"]) == (14e3, 1e5, 4e5)
    assert (m["flops_per_problem"], m["tokens_cached"]) == (9e4, 8)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": replace(SHAPE, active_parameters=None, reason="no idea")}, "no idea"),
        ({"verifier": replace(SHAPE, active_parameters=None)}, "active parameters are not known"),
        ({}, "not every answer carries its account of compute, for an older version gave some of them"),
    ],
)
def test_compute_that_one_answer_cannot_tell_is_none_with_a_reason(changes, reason):
    result = summarise(record([answer("a", True), answer("b", True, flops_total=None)], **changes))
    assert_whole(result)
    assert result.measures["flops_generated"] == 14e3
    for name in ("flops_total", "flops_per_problem"):
        assert result.measures[name] is None
        assert result.reasons[name] == reason


def test_drafts_are_judged_over_the_problems_that_had_them():
    answers = [
        answer("a", True, candidates=1, tokens_drafted=8, tokens_accepted=3, target_passes=2),
        answer("b", True, candidates=1, tokens_drafted=2, tokens_accepted=1, target_passes=2),
        answer("c", True, candidates=9),
    ]
    m = summarise(record(answers)).measures
    assert (m["tokens_drafted"], m["tokens_accepted"], m["acceptance_rate"], m["tokens_per_pass"]) == (10, 4, 0.4, 2.5)


@pytest.mark.parametrize(("passes", "drafted"), [(0, None), (5, 0)])
def test_no_draft_is_not_a_bad_draft(passes, drafted):
    result = summarise(record([answer("a", True, target_passes=passes)]))
    assert_whole(result)
    assert result.measures["tokens_drafted"] == result.measures["tokens_accepted"] == drafted
    assert result.measures["acceptance_rate"] is None
    assert result.reasons["acceptance_rate"] == ("no token was drafted" if passes else "the strategy drafts no tokens")
    assert result.measures["tokens_per_pass"] == (2.0 if passes else None)


def test_early_exits_have_a_mean_and_a_series():
    result = summarise(record([answer("a", True, exits=((3, 2), (8, 1))), answer("b", True, exits=((8, 1),))]))
    assert_whole(result)
    assert result.measures["mean_exit_layers"] == 5.5
    assert result.samples["exit_layers"] == [3, 3, 8, 8]
    plain = summarise(record([answer("a", True)]))
    assert plain.reasons["mean_exit_layers"] == "the strategy has no early exits"
    assert "exit_layers" not in plain.samples


def test_many_exits_are_thinned_to_a_series_of_the_same_shape():
    many = summarise(record([answer("a", True, exits=((2, 3 * 10**9), (7, 10**9)))]))
    series = many.samples["exit_layers"]
    assert len(series) == MAX_STORED_SAMPLES
    assert series.count(2) == 0.75 * MAX_STORED_SAMPLES
    assert many.measures["mean_exit_layers"] == 3.25
    rare = summarise(record([answer("a", True, exits=((3, 1), (8, 29_998)))]))
    assert set(rare.samples["exit_layers"]) == {8}, "each stands for those around it, not for the smallest"


MAYBE = st.sampled_from([True, False, None])
ANSWERS = st.lists(
    st.builds(
        lambda name, correct, level, candidates, failed, flops, work: answer(
            name,
            correct,
            level=level,
            candidates=candidates,
            error="x" if failed else None,
            flops_total=flops,
            tokens_drafted=work,
            target_passes=work // 2,
            exits=((3, work),) * (work > 1),
        ),
        st.sampled_from("abcdef"),
        MAYBE,
        st.sampled_from([None, 1, 2]),
        st.integers(0, 3),
        st.booleans(),
        st.none() | st.floats(0, 1e18),
        st.integers(0, 3),
    ),
    max_size=8,
)


@given(ANSWERS, st.integers(0, 8), st.integers(1, 4), st.sampled_from([None, 0.0, 5.0]))
def test_every_measure_is_a_number_or_has_a_reason(answers, earlier, batch_size, joules):
    energy = EnergyReading(EnergyMethod.RAPL, joules, True) if joules is not None else NO_ENERGY
    assert_whole(summarise(record(answers, earlier=min(earlier, len(answers)), batch_size=batch_size, energy=energy)))
