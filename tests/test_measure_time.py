"""Time: series of one sequence, the steady window, thinning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measure.time import SequenceTiming, percentiles, steady_window, thin


def sequence(start, *tokens, admitted=0.0):
    return SequenceTiming("p", 0, admitted, start, tokens)


def static_batches(batches, batch_size, tokens=4, step_s=1.0):
    """``batches`` full batches one after the other, each sequence with ``tokens`` tokens a second apart."""
    timings = []
    for b in range(batches):
        start = b * tokens * step_s
        times = [start + (i + 1) * step_s for i in range(tokens)]
        timings += [sequence(start, *times) for _ in range(batch_size)]
    return timings


def test_one_sequence():
    s = sequence(2.0, 3.0, 3.5, 4.5, admitted=1.0)
    assert s.ttft_s == 2.0
    assert s.queue_s == 1.0
    assert s.itl_s == [0.5, 1.0]
    assert s.tpot_s == 0.75


def test_undefined_is_none():
    assert sequence(0.0, 1.0).tpot_s is None
    assert sequence(0.0, 1.0).itl_s == []
    assert sequence(0.0).ttft_s is None


def test_steady_window_of_static_batches_ends_with_the_last_start():
    window = steady_window(static_batches(3, batch_size=2), 2)
    assert (window.opened_s, window.closed_s) == (0.0, 8.0)
    assert window.tokens == 2 * 2 * 4
    assert window.throughput_tok_s == 2.0


def test_one_batch_has_no_steady_state():
    assert steady_window(static_batches(1, batch_size=2), 2) is None


def test_too_few_sequences_never_fill_the_batch():
    assert steady_window(static_batches(3, batch_size=2), 5) is None
    assert steady_window([], 1) is None
    assert steady_window([sequence(0.0)], 1) is None


def test_window_opens_when_the_batch_is_full_not_when_the_run_starts():
    timings = [sequence(0.0, 1.0, 2.0, 9.0), sequence(1.5, 2.5, 3.0), sequence(5.0, 6.0, 7.0)]
    window = steady_window(timings, 2)
    assert (window.opened_s, window.closed_s) == (1.5, 5.0)
    assert window.tokens == 3


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 6))
def test_equal_batches_give_the_same_rate_however_many(batches, batch_size, tokens):
    window = steady_window(static_batches(batches, batch_size, tokens), batch_size)
    assert window.throughput_tok_s == pytest.approx(batch_size)


def test_percentiles():
    found = percentiles(float(i) for i in range(101))
    assert (found.count, found.mean, found.p50, found.p90, found.p99) == (101, 50.0, 50.0, 90.0, 99.0)
    assert percentiles([]) is None


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 20))
def test_thinning_keeps_ends_order_and_limit(values, limit):
    kept = thin(values, limit)
    assert len(kept) == min(len(values), limit)
    if len(values) > limit > 1:
        assert (kept[0], kept[-1]) == (values[0], values[-1])
    it = iter(values)
    assert all(any(v == w for w in it) for v in kept)
