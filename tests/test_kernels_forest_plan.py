"""The planning of shared prefixes: every key of every sequence is read exactly once, in arrays of one size."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.forest.plan import BEGIN, BLOCK, COUNT, FIELDS, FIRST, LAST, SLOT, SPLIT, SPLITS, Size, plan, saved

TILE = 64


def grown(rng, n, width, depth):
    """Tables and lengths of ``n`` sequences, each of which shares a beginning with one before it, ``depth`` times."""
    tables = rng.permutation(n * width + 7)[: n * width].reshape(n, width).astype(np.int32)
    lengths = rng.integers(1, width * BLOCK + 1, n).astype(np.int32)
    for _ in range(depth):
        for i in range(1, n):
            if rng.random() < 0.6:
                other = rng.integers(i)
                shared = rng.integers(min(lengths[i], lengths[other]) // BLOCK + 1)
                tables[i, :shared] = tables[other, :shared]
    return tables, lengths


def ranges(items, made, lengths):
    """What each item reads, as its program finds out: its sequences, keys from .. to, slots of its parts."""
    for item in items[items[:, COUNT] > 0].tolist():
        sequences = made.order[item[BEGIN] : item[BEGIN] + item[COUNT]]
        last = lengths[sequences[0]] if item[LAST] < 0 else item[LAST]
        share = -(-max(last - item[FIRST], 0) // item[SPLITS])
        each = -(-share // TILE) * TILE
        low = item[FIRST] + item[SPLIT] * each
        parts = made.starts[item[BEGIN] : item[BEGIN] + item[COUNT]] + item[SLOT]
        yield sequences, low, min(last, low + each), parts


def check(made, tables, lengths):
    """Each key of each sequence once, from a table that names the sequence's blocks; each part written once."""
    read = np.zeros((len(lengths), int(lengths.max())), dtype=int)
    written = np.zeros(int(made.starts[-1]), dtype=int)
    for items in (made.wide, made.narrow):
        for sequences, low, high, parts in ranges(items, made, lengths):
            written[parts] += 1
            for i in sequences if high > low else ():
                read[i, low:high] += 1
                blocks = slice(low // BLOCK, -(-high // BLOCK))
                assert (tables[i, blocks] == tables[sequences[0], blocks]).all()
    expected = np.arange(read.shape[1])[None, :] < lengths[:, None]
    assert (read == expected).all()
    assert (written == 1).all()
    assert len(written) <= made.size.parts
    assert sorted(made.order) == list(range(len(lengths)))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), width=st.integers(1, 80), depth=st.integers(0, 4),
    group=st.sampled_from([1, 3, 4, 8, 20]), rows=st.sampled_from([32, 64, 128]), programs=st.integers(1, 40),
    least=st.sampled_from([1, 16, 100, 256]), sequences=st.integers(2, 5),
)  # fmt: skip
def test_every_key_of_every_sequence_is_read_once(seed, n, width, depth, group, rows, programs, least, sequences):
    rng = np.random.default_rng(seed)
    tables, lengths = grown(rng, n, width, depth)
    size = Size(n, group, rows, programs)
    made = plan(tables, lengths, size, least_keys=least, least_sequences=sequences)
    assert made.flat.shape == (size.ints,)
    assert made.flat.dtype == np.int32
    check(made, tables, lengths)
    assert made.holds(tables, lengths)
    # Sequences grow, into blocks of their own, and the plan is kept.
    longer = lengths + rng.integers(0, 40, n).astype(np.int32)
    wider = np.concatenate([tables, 10**6 + np.arange(n * 4, dtype=np.int32).reshape(n, 4)], 1)
    for i, length in enumerate(lengths):
        wider[i, -(-length // BLOCK) :] = 10**6 + rng.integers(10**6)
    assert made.holds(wider, longer)
    check(made, wider, longer)


def prefixed(n, shared, own):
    """``n`` sequences with ``shared`` keys in common and ``own`` keys each."""
    width = -(-(shared + own) // BLOCK) + 1
    tables = np.arange(n * width, dtype=np.int32).reshape(n, width)
    tables[:, : shared // BLOCK] = tables[0, : shared // BLOCK]
    return tables, np.full(n, shared + own, dtype=np.int32)


@pytest.mark.parametrize(
    ("n", "shared", "shares"), [(4, 256, True), (3, 256, False), (4, 255, False), (64, 240, False)]
)
def test_few_keys_or_few_sequences_are_not_worth_a_program(n, shared, shares):
    tables, lengths = prefixed(n, shared, 30)
    made = plan(tables, lengths, Size.fitting(n, 8, 2, units=20))
    assert made.shares == shares
    assert saved(made, lengths).together == (shared + 30 * n if shares else (shared + 30) * n)


def test_a_segment_that_is_too_short_is_left_to_those_below_it():
    """128 keys of all and 160 more of each half: two segments of 288 keys; with 256 of all, three segments."""
    for common, segments in ((128, {(0, 288)}), (256, {(0, 256), (256, 512)})):
        tables, lengths = prefixed(8, common, 400)
        more = {128: 10, 256: 16}[common]
        for half in (slice(0, 4), slice(4, 8)):
            tables[half, : common // BLOCK + more] = tables[half.start, : common // BLOCK + more]
        made = plan(tables, lengths, Size(8, 1, 16, 64))
        found = made.wide[made.wide[:, COUNT] > 0]
        assert {(a, b) for a, b in found[:, [FIRST, LAST]].tolist()} == segments
        check(made, tables, lengths)


def test_only_whole_blocks_are_shared():
    """The last block may be written to; and what stands in the tables behind the end says nothing."""
    tables, lengths = prefixed(4, 512, 0)
    lengths -= 1
    made = plan(tables, lengths, Size(4, 1, 16, 4))
    assert made.wide[:, LAST].max() == 496
    same = np.zeros((4, 64), dtype=np.int32)
    lengths = np.array([100, 40, 90, 15], dtype=np.int32)
    made = plan(same, lengths, Size(4, 1, 16, 4), least_keys=1, least_sequences=2)
    assert made.wide[:, LAST].max() == 80
    check(made, same, lengths)
    assert not plan(same, np.full(4, 15, dtype=np.int32), Size(4, 1, 16, 4), least_keys=1).shares


def test_where_there_is_no_room_segments_must_be_longer():
    """A chain of 60 segments of 16 keys, the next one with one sequence less, and room for few of them."""
    n = 62
    tables = np.arange(n * 64, dtype=np.int32).reshape(n, 64)
    for i in range(1, n):
        tables[i, :i] = tables[i - 1, :i]
    lengths = np.full(n, 1000, dtype=np.int32)
    size = Size(n, 4, 64, 4)
    made = plan(tables, lengths, size, least_keys=16, least_sequences=2)
    assert 0 < (made.wide[:, COUNT] > 0).sum() <= size.wide == 4 + n // 4
    check(made, tables, lengths)


def test_long_segments_are_split_and_fill_the_gpu():
    size = Size.fitting(16, 32, 8, units=132)
    tables, lengths = prefixed(16, 16384, 100)
    lengths[3] = 16384 + 4000
    tables = np.pad(tables, ((0, 0), (0, 300)), constant_values=9**6)
    made = plan(tables, lengths, size)
    wide, narrow = made.wide[made.wide[:, COUNT] > 0], made.narrow[made.narrow[:, COUNT] > 0]
    assert size.programs <= len(wide) <= size.wide
    assert wide[:, COUNT].tolist() == [16] * len(wide)
    assert sorted(np.bincount(narrow[:, BEGIN])) == [1] * 15 + [15]  # 256 keys for each of the long one's programs
    check(made, tables, lengths)


def test_the_rows_of_a_segment_are_cut_into_tiles():
    tables, lengths = prefixed(37, 256, 1)
    made = plan(tables, lengths, Size(37, 4, 64, 8))
    assert made.wide[made.wide[:, COUNT] > 0][:, COUNT].tolist() == [16, 16, 5]
    assert saved(made, lengths).together == 3 * 256 + 37


def test_a_plan_does_not_hold_for_tables_that_share_less():
    tables, lengths = prefixed(8, 512, 20)
    made = plan(tables, lengths, Size(8, 4, 64, 8))
    for i in range(8):
        other = tables.copy()
        other[i, 31] = 10**6
        assert not made.holds(other, lengths)
        other = tables.copy()
        other[i, 32:] = 10**6
        assert made.holds(other, lengths)
        shorter = lengths.copy()
        shorter[i] = 511
        assert not made.holds(tables, shorter)
    assert not made.holds(tables[:, :31], lengths)


def test_what_is_saved():
    tables, lengths = prefixed(10, 1024, 26)
    gain = saved(plan(tables, lengths, Size(10, 4, 64, 8)), lengths)
    assert (gain.alone, gain.together) == (10500, 1284)
    assert gain.times == pytest.approx(8.18, abs=0.01)
    assert gain.bytes(4) == 4 * (10500 - 1284)
    assert saved(plan(tables[:1], lengths[:1], Size(1, 4, 64, 8)), lengths[:1]).times == 1


def test_the_arrays_of_a_plan_begin_at_multiples_of_16_bytes():
    for n in (1, 2, 5, 64):
        size = Size(n, 4, 64, 3)
        flat = np.zeros(size.ints, dtype=np.int32)
        views = size.views(flat)
        assert all((v.ctypes.data - flat.ctypes.data) % 16 == 0 for v in views)
        assert [v.shape for v in views] == [(size.wide, FIELDS), (size.narrow, FIELDS), (n,), (n + 1,)]


def test_the_size_follows_the_heads():
    assert Size.fitting(64, 32, 8, units=132, most=128) == Size(64, 4, 128, 33)
    assert Size.fitting(6, 32, 8, units=132, most=128).rows == 32
    assert Size.fitting(64, 71, 1, units=132).rows == 128
    assert Size.fitting(2, 4, 4, units=10).rows == 16
    assert Size(1, 4, 16, 5).wide == 0


def test_a_plan_for_other_tables_is_refused():
    tables, lengths = prefixed(4, 256, 1)
    with pytest.raises(ValueError, match="a plan for 5 sequences"):
        plan(tables, lengths, Size(5, 4, 64, 8))


def test_planning_takes_about_a_millisecond():
    """Where others share the processor it takes longer at times, but not always."""
    tables, lengths = grown(np.random.default_rng(0), 64, 512, 2)
    size, times = Size.fitting(64, 32, 8, units=132), []
    for _ in range(30):
        begin = time.perf_counter()
        plan(tables, lengths, size)
        times.append(time.perf_counter() - begin)
    assert min(times) < 2e-3
