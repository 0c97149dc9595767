"""Continuous batches: whatever is asked for, in whatever batches, each row gets what it would get alone."""

import functools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding.requests import Draft, Exit
from engine.runtime.blocks import BLOCK, NoRoom
from engine.runtime.drafting import LookupDrafter
from kernels.native import build
from spec.errors import Cancelled
from tests.batches import batcher, causal, drain, greedy, ids, known, plain, quiet, row, run, text

MODEL = known("llama")
BEFORE = (text(1), text(16), text(20), text(20) + text(9, 1), text(20) + text(16, 2), text(48))
LONGEST = 24


@functools.cache
def alone(context):
    """transformers' greedy text behind a context, and the plain scores of both."""
    found = greedy(MODEL, context, LONGEST)
    return found, plain(MODEL, context + found)


KINDS = ("grow", "grow", "grow", "logprobs", "draft", "exit", "peek", "replay", "again")


@st.composite
def asked(draw):
    context, kind = draw(st.sampled_from(BEFORE)), draw(st.sampled_from(KINDS))
    limit, order = draw(st.integers(1, LONGEST)), (draw(st.integers(0, 3)),)
    text_ = alone(context)[0]
    limit = min(limit, len(text_))
    match kind:
        case "peek":
            return row(context, 1, order, peek=3)
        case "replay":
            return row(context + text_[: limit - 1], 0, order, replay=limit)
        case "again":  # goes on where another one stopped
            return row(context + text_[: limit - 1], 1, order, start=limit - 1)
        case "draft":
            return row(context, limit, order, draft=Draft(None, draw(st.integers(1, 5)), 2))
        case "exit":
            return row(context, limit, order, exit=Exit(1.5)) if build.reason() is None else row(context, limit, order)
        case _:
            return row(context, limit, order, logprobs=kind == "logprobs")


def check(asked_for, grown):
    before = next(c for c in sorted(BEFORE, key=len, reverse=True) if asked_for.context[: len(c)] == c)
    found, scores = alone(before)
    at, n = len(before), len(asked_for.context) - len(before)
    if asked_for.peek:
        expected = scores[at - 1].log_softmax(-1).topk(3)
        assert [t for t, _ in grown.choices] == expected.indices.tolist()
        assert [v for _, v in grown.choices] == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert grown.extension.ids == ()
    elif asked_for.replay:
        assert grown.replayed == found[: asked_for.replay]
    else:
        assert grown.extension.ids == found[n : n + asked_for.limit]
        ended = grown.extension.ids[-1] == 2
        assert grown.extension.finish == ("stop" if ended else "length")
        if asked_for.logprobs:
            rows = scores[at + n - 1 : at + n - 1 + len(grown.extension.ids)].log_softmax(-1)
            wanted = [float(rows[i, t]) for i, t in enumerate(grown.extension.ids)]
            assert grown.extension.logprobs == pytest.approx(wanted, abs=1e-4)
        if asked_for.exit:
            assert set(grown.extension.exits) == {2}
            assert len(grown.extension.exits) == len(grown.extension.ids)
    fed = sum(end - first for first, end in grown.spans)
    assert fed >= len(asked_for.context) + max(0, len(grown.extension.ids) - 1) - grown.cached
    assert grown.started_s <= min(grown.token_s, default=grown.started_s)
    assert list(grown.token_s) == sorted(grown.token_s)


@settings(max_examples=50)
@given(
    st.lists(asked(), min_size=1, max_size=9),
    st.lists(asked(), max_size=4),
    st.integers(1, 5),
    st.integers(0, 40),
    st.sampled_from([6, 7, 9, 60]),
    st.sampled_from(["prefix", "sequence", "off", "static"]),
)
def test_every_row_gets_what_it_would_get_alone(rows, later, batch_size, more, blocks, way):
    made = batcher(
        MODEL, batch_size=batch_size, budget=batch_size + more, blocks=blocks, drafter=LookupDrafter(),
        share=way in ("prefix", "static"), static=way == "static", kv_cache=way != "off",
    )  # fmt: skip
    told = []
    try:
        found = drain(made, rows, told.append, later)
    finally:
        made.close()
    for asked_for, grown in zip((*rows, *later), found, strict=True):
        check(asked_for, grown)
    assert sum(told) == sum(len(g.token_s) for g in found)
    guessed = max((r.draft.tokens for r in (*rows, *later) if r.draft), default=0)
    for batch in made.seen:
        assert len(set(batch.slots.tolist())) <= batch_size
        assert batch.m <= batch_size + more + guessed
    assert made.pool.peak <= blocks


def test_rows_start_in_their_order_whenever_they_came():
    made = batcher(MODEL, batch_size=1)
    rows = [row(text(9, i), 4, (order,)) for i, order in enumerate((5, 3, 3, 9))]
    later = [row(text(9, 7), 4, (1,))]
    found = drain(made, rows, later=later, after=1)
    started = sorted(range(5), key=lambda i: found[i].started_s)
    assert started == [1, 4, 2, 0, 3]


def test_a_free_place_is_filled_at_once_but_in_a_static_batch_when_all_are_free():
    rows = [row(text(5 + i), 4 * i, (i,)) for i in range(1, 6)]
    for static in (False, True):
        found = run(MODEL, rows, batch_size=2, static=static)
        second, third = found[1].token_s, found[2]
        assert (third.started_s > second[-1]) == static
        assert third.started_s > found[0].token_s[-1]


def test_wanting_is_having_more_places_than_rows():
    made = batcher(MODEL, batch_size=3, budget=16)
    assert made.wanting
    made.submit([row(text(40), 5) for _ in range(2)])
    assert made.wanting
    made.submit([row(text(40, 1), 5)])
    assert not made.wanting
    made.step(quiet)  # one computes the context, two places are kept: its twin's and the third row's
    assert not made.wanting
    for _ in range(30):
        made.step(quiet)
    assert made.wanting
    assert not made.busy


def test_a_group_larger_than_the_batch_reads_its_context_once():
    made = batcher(MODEL, batch_size=3, budget=16)
    found = drain(made, [row(text(40), 6) for _ in range(10)])
    assert ids(found) == [alone_of(text(40), 6)] * 10
    assert sum(b.m for b in made.seen) == 40 + 10 * 5
    assert [g.cached for g in found] == [0] + [40] * 9
    assert [list(g.spans) for g in found] == [[(0, 45)]] + [[(40, 45)]] * 9


def alone_of(context, limit):
    return greedy(MODEL, context, limit)


def test_the_best_of_64_hold_the_prompt_once():
    model = causal("llama", max_position_embeddings=1100)
    made = batcher(model, batch_size=64, budget=512, blocks=700)
    prompt, suffix = text(1000), 40
    found = drain(made, [row(prompt, suffix, (i,)) for i in range(64)])
    assert len(set(ids(found))) == 1
    own = -(-(1000 % BLOCK + suffix) // BLOCK)
    assert made.pool.peak <= 1.2 * (-(-1000 // BLOCK) + 64 * own)
    assert sum(b.m for b in made.seen) == 1000 + 64 * (suffix - 1)


def test_a_sequence_that_alone_is_too_long_is_refused():
    made = batcher(MODEL, blocks=3)
    with pytest.raises(NoRoom):
        drain(made, [row(text(40), 20)])
    made = batcher(MODEL, blocks=3)
    with pytest.raises(NoRoom):
        drain(made, [row(text(60), 1)])


@pytest.mark.parametrize("after", [1, 2, 20])
def test_contexts_that_waiting_rows_share_give_way_to_a_row_that_needs_the_room(after):
    made = batcher(MODEL, batch_size=2, blocks=8)
    group, long = [row(text(60, 1), 20, (1,)) for _ in range(4)], row(text(110, 2), 8, (0,))
    found = drain(made, group, later=[long], after=after)
    assert ids(found) == [alone_of(text(60, 1), 20)] * 4 + [alone_of(text(110, 2), 8)]


def test_a_replay_that_was_put_back_tells_each_choice_once():
    prompt = text(20)
    written = alone_of(prompt, 30)
    made = batcher(MODEL, budget=4, blocks=6)
    first, replayed = drain(made, [row(text(20, 1), 40, (0,)), row(prompt + written[:-1], 0, (1,), replay=30)])
    assert len(replayed.spans) > 1
    assert replayed.replayed == written
    assert len(first.extension.ids) == 40


def test_what_on_step_raises_ends_the_step():
    def stop(tokens):
        raise Cancelled("stop")

    made = batcher(MODEL)
    made.submit([row(text(40), 5)])
    with pytest.raises(Cancelled):
        made.step(stop)


def test_equal_contexts_that_do_not_stand_together_find_each_others_blocks():
    made = batcher(MODEL, batch_size=1)
    found = drain(made, [row(text(40), 6, (0,)), row(text(3), 2, (1,)), row(text(40), 6, (2,))])
    assert [g.cached for g in found] == [0, 0, 39]
    assert found[0].extension.ids == found[2].extension.ids
    assert Counter(len(g.spans) for g in found) == {1: 3}


def test_a_static_batch_that_runs_wants_nothing():
    made = batcher(MODEL, batch_size=2, static=True)
    made.submit([row(text(5), 2), row(text(6), 20)])
    steps = (made.step(quiet) for _ in range(20))
    assert any(len(ended) == 1 for ended in steps)
    assert made.open == 1
    assert not made.wanting
    while made.busy:
        made.step(quiet)
    assert made.wanting


def test_more_choices_than_there_are_words_are_all_words():
    (found,) = run(MODEL, [row(text(5), 0, peek=5000)])
    vocabulary = MODEL.config.vocab_size
    assert sorted(token for token, _ in found.choices) == list(range(vocabulary))
