"""Answers come back as they went in, once each, whatever is in them."""

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spec.choices import Fate
from spec.errors import InputError, SpecError, StoreError
from spec.results import Answer, Candidate, Node, Origin
from store import LeaseLost, NotFound
from store.answers import Only
from tests.fake_store import a_progress, a_result, a_spec, an_answer, new_store


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path) as store:
        yield store


@pytest.fixture
def lease(store):
    store.jobs.enqueue(a_spec())
    return store.jobs.claim("w")


words = st.text(st.characters(codec="utf-8"), max_size=40)
numbers = st.floats(0, 1e6, allow_nan=False)
candidates = st.builds(
    Candidate,
    text=words,
    answer=st.none() | words,
    correct=st.none() | st.booleans(),
    tokens=st.integers(0, 10**6),
    finish=st.sampled_from(["stop", "length"]),
    score=st.none() | numbers,
    step_scores=st.lists(numbers, max_size=4).map(tuple),
    model=st.none() | words,
    node=st.none() | st.integers(0, 9),
)
nodes = st.builds(
    Node,
    parent=st.none() | st.integers(0, 9),
    depth=st.integers(1, 40),
    text=words,
    tokens=st.integers(0, 10**6),
    seconds=numbers,
    score=st.none() | numbers,
    fate=st.sampled_from(Fate).map(str),
    note=words,
)
answers = st.builds(
    Answer,
    problem_id=words,
    repeat=st.integers(0, 3),
    question=words,
    reference=st.none() | words,
    level=st.none() | st.integers(1, 8),
    answer=st.none() | words,
    correct=st.none() | st.booleans(),
    chosen=st.none() | st.integers(0, 3),
    candidates=st.lists(candidates, max_size=4).map(tuple),
    tokens_prompt=st.integers(0, 2**40),
    tokens_generated=st.integers(0, 2**40),
    tokens_verifier=st.integers(0, 2**40),
    latency_s=st.none() | numbers,
    ttft_s=st.none() | numbers,
    error=st.none() | words,
    tokens_cached=st.integers(0, 2**40),
    tokens_drafted=st.integers(0, 2**40),
    tokens_accepted=st.integers(0, 2**40),
    target_passes=st.integers(0, 2**40),
    flops_generated=st.none() | st.floats(0, 1e30),
    flops_total=st.none() | st.floats(0, 1e30),
    flops_no_reuse=st.none() | st.floats(0, 1e30),
    exits=st.lists(st.tuples(st.integers(1, 80), st.integers(0, 2**40)), max_size=3).map(tuple),
    tree=st.lists(nodes, max_size=4).map(tuple),
)
unique_answers = st.lists(answers, max_size=8, unique_by=lambda a: (a.repeat, a.problem_id))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with new_store(tmp_path_factory.mktemp("answers")) as store:
        yield store


@settings(max_examples=60, deadline=None)
@given(batch=unique_answers, again=st.integers(0, 8))
def test_answers_return_as_they_went_in_and_only_once(shared, batch, again):
    run_id = shared.runs.create(a_spec())
    assert shared.answers.add(run_id, batch[:again]) == len(batch[:again])
    assert shared.answers.add(run_id, batch) == len(batch[again:])
    assert shared.answers.add(run_id, batch) == 0
    assert shared.answers.of_run(run_id) == batch
    pages = [shared.answers.page(run_id, offset, 3) for offset in range(0, 9, 3)]
    assert [a for page in pages for a in page] == batch
    assert shared.answers.page(run_id, trees=False) == [dataclasses.replace(a, tree=()) for a in batch]
    assert [shared.answers.one(run_id, a.problem_id, a.repeat) for a in batch] == batch
    titles = [(a.repeat, a.problem_id, a.question, bool(a.tree)) for a in batch]
    found = shared.answers.titles(run_id)
    assert [(t["repeat"], t["problem_id"], t["question"], t["has_tree"]) for t in found] == titles
    assert shared.answers.count(run_id) == len(batch)


def test_the_first_of_two_answers_to_a_problem_stands(store, lease):
    assert store.answers.add(lease, [an_answer(answer="13"), an_answer(answer="14")]) == 1
    assert [a.answer for a in store.answers.of_run(lease.run_id)] == ["13"]


def test_repeats_and_runs_are_kept_apart(store):
    runs = [store.runs.create(a_spec()) for _ in range(2)]
    for run_id in runs:
        assert store.answers.add(run_id, [an_answer(repeat=r) for r in range(3)]) == 3
    assert store.connection.value("SELECT count(*) FROM questions") == 1


def test_a_question_may_come_with_another_reference(store, lease):
    pair = [an_answer("a", question="Same?", reference="1"), an_answer("b", question="Same?", reference=None)]
    store.answers.add(lease, pair)
    assert store.answers.of_run(lease.run_id) == pair


def test_many_answers_are_written_fifty_at_a_time(store, lease, monkeypatch):
    sizes = []
    insert = store.answers._insert
    monkeypatch.setattr(store.answers, "_insert", lambda run, batch: sizes.append(len(batch)) or insert(run, batch))
    assert store.answers.add(lease, [an_answer(f"p{i}") for i in range(120)]) == 120
    assert sizes == [50, 50, 20]


def test_progress_is_written_with_the_answers(store, lease):
    store.answers.add(lease, [an_answer()], a_progress(done=7))
    polled = store.runs.poll(lease.run_id)
    assert (polled["done"], polled["total"], polled["correct"], polled["tok_s"]) == (7, 100, 6, 66.0)
    assert store.runs.get(lease.run_id).progress == a_progress(done=7)


def test_a_bad_batch_is_not_saved_in_part(store, lease):
    bad = [an_answer("good"), an_answer("bad", latency_s=float("nan"))]
    with pytest.raises(StoreError, match="latency_s of problem 'bad' is nan"):
        store.answers.add(lease, bad, a_progress())
    assert store.answers.count(lease.run_id) == 0
    assert store.runs.poll(lease.run_id)["done"] == 0
    assert store.connection.value("SELECT count(*) FROM questions") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_s", float("inf")),
        ("ttft_s", float("-inf")),
        ("ttft_s", "0.5"),
        ("tokens_generated", 2**63),
        ("tokens_generated", 1.5),
        ("tokens_prompt", True),
        ("level", float("nan")),
        ("correct", 1),
        ("correct", "yes"),
        ("tokens_cached", -0.5),
        ("tokens_drafted", float("nan")),
        ("tokens_accepted", "3"),
        ("target_passes", 0.5),
        ("flops_total", float("inf")),
        ("flops_no_reuse", True),
        ("exits", ((1, 2.5),)),
        ("exits", ((float("nan"), 2),)),
        ("tree", (Node(None, 1, "", 1, float("nan")),)),
        ("tree", (Node(None, 1, "", 1, 0.0, score=1 + 2j),)),
    ],
)
def test_what_is_no_measurement_is_refused_by_name(store, lease, field, value):
    with pytest.raises(StoreError, match=f"^{field} of problem 'p1'"):
        store.answers.add(lease, [an_answer(**{field: value})])


def test_a_score_that_is_no_number_is_refused(store, lease):
    bad = dataclasses.replace(an_answer().candidates[0], score=float("nan"))
    with pytest.raises(StoreError, match="candidate of problem 'p1'"):
        store.answers.add(lease, [an_answer(candidates=(bad,))])


def test_foreign_numbers_become_plain_ones(store, lease):
    candidate = Candidate("t", "1", np.bool_(True), np.int64(3), "stop", np.float32(0.5), (np.float64(0.25),))
    store.answers.add(
        lease,
        [
            an_answer(
                correct=np.bool_(False),
                level=np.int32(2),
                tokens_generated=np.uint16(7),
                latency_s=np.float32(0.5),
                candidates=(candidate,),
                flops_total=np.float32(2.5e9),
                target_passes=np.int8(3),
                exits=((np.int64(4), np.uint8(9)),),
                tree=(Node(None, np.int64(1), "s", np.int32(5), np.float32(0.25), np.float64(0.5)),),
            )
        ],
    )
    (back,) = store.answers.of_run(lease.run_id)
    assert (back.correct, back.level, back.tokens_generated, back.latency_s) == (False, 2, 7, 0.5)
    assert back.candidates == (Candidate("t", "1", True, 3, "stop", 0.5, (0.25,)),)
    assert (back.flops_total, back.target_passes, back.exits) == (2.5e9, 3, ((4, 9),))
    assert back.tree == (Node(None, 1, "s", 5, 0.25, 0.5),)


def test_half_a_surrogate_pair_is_stored_readable(store, lease):
    odd = an_answer(problem_id="\ud800", question="a\udfffb", answer="\ud83d")
    assert store.answers.add(lease, [odd]) == 1
    assert store.answers.add(lease, [odd]) == 0
    (back,) = store.answers.of_run(lease.run_id)
    assert (back.problem_id, back.question, back.answer) == ("\\ud800", "a\\udfffb", "\\ud83d")


HOSTILE = ["'; DROP TABLE answers; --", "<script>alert(1)</script>", "../../etc/passwd", "%_\\", "\0nul", "é" * 5000]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_only_text(store, lease, text):
    answer = an_answer(problem_id=text, question=text, reference=text, answer=text, error=text)
    store.answers.add(lease, [answer])
    assert store.answers.of_run(lease.run_id) == [answer]


def test_a_page_shows_only_what_is_asked_for(store, lease):
    kinds = {
        Only.CORRECT: an_answer("c", correct=True),
        Only.WRONG: an_answer("w", correct=False),
        Only.FAILED: an_answer("f", correct=None, error="out of memory"),
    }
    store.answers.add(lease, list(kinds.values()))
    for only, answer in kinds.items():
        assert store.answers.page(lease.run_id, only=only) == [answer]
        assert store.answers.count(lease.run_id, only=str(only)) == 1
    with pytest.raises(SpecError, match="did you mean 'wrong'"):
        store.answers.page(lease.run_id, only="wrng")


def test_what_only_searches_have_takes_no_room_in_a_plain_answer(store, lease):
    store.answers.add(lease, [an_answer("plain"), an_answer("tree", tree=(Node(None, 1, "s", 2, 0.1),))])
    rows = store.connection.rows("SELECT exits, tree, candidates FROM answers")
    assert [(r["exits"], r["tree"] is None) for r in rows] == [(None, True), (None, False)]
    assert all(b"node" not in zlib.decompress(r["candidates"]) for r in rows)


def test_a_list_does_not_unpack_the_trees(store, lease):
    store.answers.add(lease, [an_answer(tree=(Node(None, 1, "s", 2, 0.1),))])
    store.connection.execute("UPDATE answers SET tree = x'00'")
    (listed,) = store.answers.page(lease.run_id, trees=False)
    assert listed == an_answer()
    assert store.answers.titles(lease.run_id)[0]["has_tree"] == 1
    with pytest.raises(zlib.error):
        store.answers.one(lease.run_id, "p1")


def test_an_answer_that_is_not_there_is_named(store, lease):
    store.answers.add(lease, [an_answer()])
    for wrong in (("ffffffffffff", "p1", 0), (lease.run_id, "p2", 0), (lease.run_id, "p1", 1)):
        with pytest.raises(NotFound, match="has no answer to a problem"):
            store.answers.one(*wrong)


def test_other_runs_that_were_asked_the_same_are_found_newest_first(store):
    ours, twice, other, gone, last = (store.runs.create(a_spec(n=n)) for n in (1, 2, 3, 4, 5))
    store.answers.add(ours, [an_answer("a", question="Q?"), an_answer("b", question="R?")])
    store.answers.add(twice, [an_answer("a", r, question="Q?", correct=r == 1) for r in range(3)])
    store.answers.add(other, [an_answer("a", question="Q?", reference="14")])
    store.answers.add(gone, [an_answer("a", question="Q?")])
    store.answers.add(last, [an_answer("another name", question="Q?")])
    store.connection.execute("UPDATE runs SET deleted_at = 1 WHERE run_id = ?", (gone,))
    found = store.answers.same_question(ours, "a", 0)
    assert [(f["run_id"], f["problem_id"], f["repeat"]) for f in found] == [(last, "another name", 0), (twice, "a", 0)]
    assert found[1]["strategy_text"] == "majority:n=2,temperature=0.8"
    again = store.answers.same_question(twice, "a", 1)
    assert [(f["run_id"], f["repeat"]) for f in again] == [(last, 0), (ours, 0)]
    (mine,) = (f for f in store.answers.same_question(last, "another name") if f["run_id"] == twice)
    assert (mine["repeat"], mine["correct"]) == (0, 0)
    assert store.answers.same_question(ours, "nobody's") == []


def test_answers_of_a_lost_lease_are_refused(store, lease):
    store.jobs.release(lease)
    with pytest.raises(LeaseLost):
        store.answers.add(lease, [an_answer()])
    with pytest.raises(LeaseLost):
        store.answers.add(lease, [])
    assert store.answers.count(lease.run_id) == 0


def test_answers_need_a_run(store):
    with pytest.raises(NotFound, match="no run '000000000000'"):
        store.answers.add("000000000000", [an_answer()])


ORIGIN = Origin("a" * 16, "b" * 64, "c" * 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_fingerprint": "d" * 16}, "The model has changed"),
        ({"reward_fingerprint": "d" * 16}, "The reward model has changed"),
        ({"task_hash": "d" * 64}, "The questions of the task have changed"),
    ],
)
def test_answers_of_two_origins_are_not_mixed(store, lease, change, words):
    store.answers.begin(lease, dataclasses.replace(ORIGIN, **change))
    store.answers.begin(lease, ORIGIN)  # nothing is kept yet, so nothing is mixed
    store.answers.add(lease, [an_answer()])
    store.answers.begin(lease, ORIGIN)
    with pytest.raises(InputError, match=words):
        store.answers.begin(lease, dataclasses.replace(ORIGIN, **change))
    (row,) = store.runs.table(columns=("model_fingerprint", "reward_fingerprint", "task_hash"))
    assert row == dataclasses.asdict(ORIGIN)


def test_an_origin_that_nobody_wrote_down_is_not_held_against_a_run(store, lease):
    store.answers.add(lease, [an_answer()])
    store.answers.begin(lease, ORIGIN)


def test_the_size_of_a_model_is_learned_later_than_its_name(store, lease):
    found = a_result()
    store.answers.begin(lease, dataclasses.replace(ORIGIN, model_fingerprint=found.environment["model_fingerprint"]))
    store.jobs.finish(lease, found)
    assert store.connection.value("SELECT parameters FROM models") == found.environment["model_parameters"]


def test_only_the_holder_says_where_answers_come_from(store, lease):
    store.jobs.fail(lease, "x", retry=False)
    with pytest.raises(LeaseLost):
        store.answers.begin(lease, ORIGIN)
