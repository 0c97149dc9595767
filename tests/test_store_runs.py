"""Runs: what goes in comes out, filters mean what they say, deleting can be undone."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spec.choices import JobState
from spec.errors import SpecError, StoreError
from spec.measures import MEASURES
from spec.results import RunResult
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import BestOfN, Greedy, Majority, Sample
from store import Between, NotFound, open_store
from store.run_queries import MAX_WORDS, PAGE, POINT_COLUMNS
from tests.fake_store import FakeClock, a_finished_run, a_result, a_spec, an_answer, new_store


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path, FakeClock()) as store:
        yield store


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with new_store(tmp_path_factory.mktemp("runs")) as store:
        yield store


tasks = st.builds(
    TaskSpec, name=st.sampled_from(["lab-words", "jsonl:/a/b.jsonl"]), limit=st.none() | st.integers(1, 9)
)
specs = st.builds(
    RunSpec,
    model=st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip),
    precision=st.builds(Precision, weights=st.sampled_from(["auto", "bf16"])),
    runtime=st.builds(Runtime, batch_size=st.integers(1, 65536), device=st.sampled_from(["auto", "cpu", "cuda:3"])),
    strategy=st.one_of(
        st.just(Greedy()),
        st.builds(Sample, temperature=st.floats(0.01, 5)),
        st.builds(Majority, n=st.integers(1, 4096)),
        st.builds(BestOfN, n=st.integers(1, 64)),
    ),
    task=st.builds(
        TaskSpec, name=st.sampled_from(["lab-words", "jsonl:/a/b.jsonl"]), limit=st.none() | st.integers(1, 9)
    ),
    seed=st.integers(0, 2**53 - 1),
    repeats=st.integers(1, 100),
)


@settings(max_examples=60, deadline=None)
@given(spec=specs, source=st.sampled_from(["web", "cli"]))
def test_any_specification_comes_back(shared, spec, source):
    run = shared.runs.get(shared.runs.create(spec, source=source))
    assert (run.spec, run.spec_key, run.source, run.result, run.progress) == (spec, spec.key(), source, None, None)


measures = st.fixed_dictionaries(
    {
        m.name: st.none() | (st.integers(0, 2**62) if m.integer else st.floats(allow_nan=False, allow_infinity=False))
        for m in MEASURES.values()
    }
)
series = st.dictionaries(st.sampled_from(["latency_s", "itl_s"]), st.lists(st.floats(0, 1e9), max_size=30))


@settings(max_examples=60, deadline=None)
@given(
    measures=measures,
    samples=series,
    by_level=st.dictionaries(st.integers(1, 8), st.fixed_dictionaries({"n": st.integers(1, 9), "correct": st.just(1)})),
    method=st.sampled_from(["nvml_counter", "none"]),
    valid=st.none() | st.booleans(),
    words=st.lists(st.text(max_size=20), max_size=3),
)
def test_any_result_comes_back(shared, measures, samples, by_level, method, valid, words):
    result = RunResult(
        measures=measures,
        reasons={name: "reason" for name, value in measures.items() if value is None},
        by_level=by_level,
        energy_method=method,
        energy_valid=valid,
        energy_reason=words[0] if words else None,
        environment={"hardware_id": "h", "hardware_name": "machine", "nested": {"words": words}},
        samples=samples,
        notes=words,
    )
    clean = words[0].encode("utf-8", "backslashreplace").decode() if words else None
    run = shared.runs.get(shared.runs.save(a_spec(), result))
    assert (run.state, run.result.energy_reason) == (JobState.SUCCEEDED, clean)
    assert RunResult(**{**vars_of(run.result), "energy_reason": result.energy_reason}) == result


def vars_of(result):
    return {name: getattr(result, name) for name in RunResult.__dataclass_fields__}


def test_missing_measures_are_none_and_zero_is_zero(store):
    run = store.runs.get(store.runs.save(a_spec(), RunResult({"accuracy": 0.0, "n_correct": 0})))
    assert set(run.result.measures) == set(MEASURES)
    assert (run.result.measures["accuracy"], run.result.measures["n_correct"]) == (0.0, 0)
    assert run.result.measures["energy_j"] is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("accuracy", float("nan"), "accuracy is nan"),
        ("latency_p50_s", float("inf"), "latency_p50_s is inf"),
        ("latency_p50_s", np.float32("nan"), "latency_p50_s is nan"),
        ("n_problems", 2**63, "n_problems must be a whole number below"),
        ("n_problems", 1.5, "n_problems must be a whole number"),
        ("energy_j", "12 J", "energy_j must be a number"),
        ("wall_s", True, "wall_s must be a number"),
        ("acuracy", 0.5, "'acuracy' is not a known measure"),
    ],
)
def test_a_measure_that_is_none_is_refused_by_name(store, name, value, says):
    with pytest.raises(StoreError, match=says):
        store.runs.save(a_spec(), RunResult({name: value}))
    assert store.runs.count() == 0
    assert store.connection.value("SELECT count(*) FROM specs") == 0


@pytest.mark.parametrize("part", ["samples", "environment"])
def test_a_series_or_environment_with_nan_is_refused(store, part):
    bad = {"itl_s": [0.1, float("nan")]} if part == "samples" else {"temperature_c": float("nan")}
    with pytest.raises(StoreError, match=r"itl_s is nan|environment cannot be saved"):
        store.runs.save(a_spec(), RunResult({}, **{part: bad}))


def test_numpy_numbers_are_stored_as_what_they_stand_for(store):
    numbers = {"accuracy": np.float32(0.5), "n_problems": np.int64(7), "wall_s": np.float64(2), "n_correct": 7.0}
    run_id = store.runs.save(a_spec(), RunResult(numbers, samples={"itl_s": np.array([0.5, 1], dtype=np.float32)}))
    result = store.runs.get(run_id).result
    assert {k: result.measures[k] for k in numbers} == {"accuracy": 0.5, "n_problems": 7, "wall_s": 2.0, "n_correct": 7}
    assert result.samples == {"itl_s": [0.5, 1.0]}


def test_a_run_has_its_own_date_and_not_that_of_its_configuration(tmp_path):
    clock = FakeClock()
    with new_store(tmp_path, clock) as store:
        first = store.runs.get(store.runs.create(a_spec()))
        clock.time += 100
        second = store.runs.get(store.runs.create(a_spec()))
    assert second.created == first.created + 100


def test_a_model_is_kept_with_its_number_of_parameters(store):
    a_finished_run(store)
    assert store.connection.value("SELECT parameters FROM models") == 1_000_000


def test_the_columns_for_filters_say_what_was_asked_and_what_ran(store):
    spec = RunSpec("lab-s", strategy=Majority(n=4, temperature=0.5), runtime=Runtime(batch_size=16))
    store.runs.save(spec, a_result(), source="cli")
    (row,) = store.runs.table()
    expected = {
        "model": "lab-s",
        "weights": "auto",
        "strategy": "majority",
        "strategy_text": "majority:n=4,temperature=0.5",
        "n": 4,
        "temperature": 0.5,
        "task": "lab-words",
        "batch_size": 16,
        "backend": "isoquant",
        "batching": "auto",
        "caching": "auto",
        "device": "auto",
        "ran_device": "cpu",
        "ran_dtype": "bf16",
        "attention": "auto",
        "ran_attention": "sdpa",
        "seed": 0,
        "spec_text": str(spec),
        "spec_key": spec.key(),
        "commit_id": "fe7c86fabcde",
        "hardware_id": "0123456789ab",
        "energy_method": "none",
        "state": "succeeded",
        "source": "cli",
    }
    assert {name: row[name] for name in expected} == expected
    assert store.runs.hardware() == {"0123456789ab": "A processor, 2 cores"}
    assert store.connection.execute("SELECT name, parameters FROM models") == [("lab-s", 1_000_000)]


def test_a_table_is_filtered_ordered_and_cut(store):
    for seed, (model, n, accuracy) in enumerate(
        [("lab-xs", 1, 0.3), ("lab-xs", 8, 0.5), ("lab-s", 1, None), ("lab-s", 8, 0.7), ("lab-s", 16, 0.6)]
    ):
        a_finished_run(store, seed, a_spec(model, n), accuracy=accuracy)

    def accuracies(*args, **more):
        return [row["accuracy"] for row in store.runs.table(*args, **more)]

    assert accuracies(order=["-accuracy"]) == [0.7, 0.6, 0.5, 0.3, None]
    assert accuracies(order=["accuracy"], limit=2, offset=1) == [0.5, 0.6]
    assert accuracies({"model": "lab-s"}, order=["n"]) == [None, 0.7, 0.6]
    assert accuracies({"n": [8, 16]}, order=["-accuracy"]) == [0.7, 0.6, 0.5]
    assert accuracies({"accuracy": Between(0.5, 0.6)}, order=["accuracy"]) == [0.5, 0.6]
    assert accuracies({"accuracy": Between(low=0.6)}, order=["accuracy"]) == [0.6, 0.7]
    assert accuracies({"accuracy": Between()}, order=["accuracy"]) == [0.3, 0.5, 0.6, 0.7]
    assert accuracies({"accuracy": None}) == [None]
    assert accuracies({"n": []}) == []
    assert accuracies({"state": JobState.SUCCEEDED, "n": np.int64(16)}) == [0.6]
    assert store.runs.table({"n": 16}, columns=["model", "n"]) == [{"model": "lab-s", "n": 16}]
    assert store.runs.count({"model": "lab-s", "n": [8, 16]}) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda runs: runs.table({"modle": "x"}),
        lambda runs: runs.table(order=["-modle"]),
        lambda runs: runs.table(columns=["modle"]),
        lambda runs: runs.frontier_rows("modle", "accuracy"),
        lambda runs: runs.facets(["modle"]),
        lambda runs: list(runs.export_rows(columns=["modle"])),
    ],
)
def test_an_unknown_column_names_the_nearest(store, call):
    with pytest.raises(SpecError, match="did you mean 'model'"):
        call(store.runs)


@pytest.mark.parametrize("name", ["accuracy; DROP TABLE runs", "1", "*", "id", "accuracy--", '"accuracy"', ""])
def test_a_column_is_never_sql(store, name):
    with pytest.raises(SpecError):
        store.runs.table({name: 1})
    with pytest.raises(SpecError):
        store.runs.table(order=[name])


def test_search_finds_all_the_words_as_they_are(store):
    names = ["lab-s", "100%_sure", "<script>alert(1)</script>", "C:\\models", "Ünïcode"]
    ids = {name: a_finished_run(store, spec=a_spec(name)) for name in names}
    a_finished_run(store, spec=a_spec("lab-s", n=8))
    for name in names[1:]:
        assert [row["run_id"] for row in store.runs.search(name)] == [ids[name]]
    assert len(store.runs.search("LAB-S")) == 2
    assert len(store.runs.search("majority lab-s")) == 1
    assert len(store.runs.search("  ")) == 6
    assert store.runs.search("%") == store.runs.search("100%")
    assert store.runs.search("' OR 1=1 --") == []
    assert store.runs.search("\ud800") == []
    assert [row["run_id"] for row in store.runs.search(ids["lab-s"])] == [ids["lab-s"]]


def test_frontier_rows_are_the_points_that_can_be_drawn(store):
    a = a_finished_run(store, 1, a_spec("lab-s", 4), accuracy=0.5, latency_p50_s=2.0)
    a_finished_run(store, 2, accuracy=None)
    a_finished_run(store, 3, latency_p50_s=None)
    store.runs.delete(a_finished_run(store, 4))
    store.jobs.enqueue(a_spec())
    b = a_finished_run(store, 5, a_spec("lab-xs"), accuracy=0.0, latency_p50_s=0.0)
    rows = store.runs.frontier_rows("latency_p50_s", "accuracy")
    assert list(rows) == ["x", "y", *POINT_COLUMNS]
    assert (rows["x"], rows["y"], rows["run_id"]) == ([2.0, 0.0], [0.5, 0.0], [a, b])
    assert (rows["model"], rows["n"]) == (["lab-s", "lab-xs"], [4, 1])
    only = store.runs.frontier_rows("latency_p50_s", "accuracy", {"model": "lab-xs"}, columns=["accuracy", "state"])
    assert only == {"x": [0.0], "y": [0.0], "accuracy": [0.0], "state": ["succeeded"]}
    none = store.runs.frontier_rows("latency_p50_s", "accuracy", {"model": "none"})
    assert none == {name: [] for name in rows}


def test_facets_count_what_filters_can_offer(store):
    for seed, n in enumerate([1, 8, 8]):
        a_finished_run(store, seed, a_spec(n=n))
    store.jobs.enqueue(a_spec(n=16))
    assert store.runs.facets(["n", "model"]) == {"n": [(8, 2), (1, 1)], "model": [("lab-s", 3)]}
    assert store.runs.facets(["n"], {"n": 1}) == {"n": [(1, 1)]}


def test_deleting_can_be_undone_until_it_is_purged(store):
    keep, gone = a_finished_run(store, 1), a_finished_run(store, 2)
    store.answers.add(gone, [an_answer("only here")])
    store.answers.add(keep, [an_answer("here")])
    store.runs.delete(gone)
    assert [row["run_id"] for row in store.runs.table()] == [keep]
    assert [row["run_id"] for row in store.runs.table(deleted=True)] == [gone]
    assert (store.runs.count(), len(store.runs.search("lab"))) == (1, 1)
    assert store.runs.get(gone).deleted_at is not None
    store.runs.delete(gone)
    store.runs.restore(gone)
    store.runs.restore(gone)
    assert store.runs.get(gone).deleted_at is None
    assert store.answers.count(gone) == 1
    assert store.runs.purge() == 0
    store.runs.delete(gone)
    assert store.runs.purge(older_than_s=60) == 0
    assert store.runs.purge() == 1
    with pytest.raises(NotFound):
        store.runs.get(gone)
    assert store.connection.execute("SELECT question FROM questions") == [("How many apples in here?",)]
    for table in ("answers", "run_details", "samples"):
        assert {row[0] for row in store.connection.execute(f"SELECT run_id FROM {table}")} == {keep}
    assert store.integrity() == []


def test_a_live_run_is_not_deleted(store):
    job = store.jobs.enqueue(a_spec())
    for _ in range(2):
        with pytest.raises(StoreError, match="cancel it before"):
            store.runs.delete(job.run_id)
        store.jobs.claim("w")
    store.jobs.request_cancel(job.job_id)


def test_a_run_that_is_not_there_is_said_so(store):
    for call in (store.runs.get, store.runs.poll, store.runs.delete, store.runs.restore):
        with pytest.raises(NotFound, match=r"no run '\.\./\.\./etc'"):
            call("../../etc")


def test_the_same_configuration_is_found_again(store):
    a, b = a_finished_run(store, 1, a_spec()), a_finished_run(store, 2, a_spec())
    a_finished_run(store, 3, a_spec(n=8))
    store.runs.delete(a_finished_run(store, 4, a_spec()))
    assert {row["run_id"] for row in store.runs.find_same(a_spec().key())} == {a, b}
    assert len(store.runs.find_same(a_spec().key(), "0123456789ab")) == 2
    assert store.runs.find_same(a_spec().key(), "other machine") == []


def test_the_data_version_changes_with_the_results_and_only_then(store):
    def changes(call):
        before = store.data_version()
        call()
        return store.data_version() != before

    job = store.jobs.enqueue(a_spec())
    assert not changes(lambda: store.jobs.enqueue(a_spec(seed=9)))
    lease = store.jobs.claim("w")
    assert not changes(lambda: store.jobs.heartbeat(lease))
    assert not changes(lambda: store.answers.add(lease, [an_answer()]))
    assert changes(lambda: store.jobs.finish(lease, a_result()))
    assert changes(lambda: store.runs.delete(job.run_id))
    assert not changes(lambda: store.runs.delete(job.run_id))
    assert changes(lambda: store.runs.restore(job.run_id))
    assert not changes(lambda: store.runs.restore(job.run_id))
    assert changes(lambda: a_finished_run(store))
    store.runs.delete(job.run_id)
    assert changes(store.runs.purge)
    assert not changes(store.runs.purge)


def test_two_new_databases_do_not_share_a_data_version(tmp_path):
    with open_store(tmp_path / "a.db") as a, open_store(tmp_path / "b.db") as b:
        assert a.data_version() != b.data_version()


def test_export_gives_every_row_once_as_plain_values(store, monkeypatch):
    monkeypatch.setattr("store.run_queries.PAGE", 4)
    ids = [a_finished_run(store, seed, a_spec(seed=seed, n=1 + seed % 2)) for seed in range(10)]
    store.runs.delete(ids[3])
    rows = list(store.runs.export_rows())
    assert [row["run_id"] for row in rows] == ids[:3] + ids[4:]
    assert all(isinstance(v, (int, float, str, type(None))) for row in rows for v in row.values())
    assert RunSpec.from_dict(json.loads(rows[1]["spec"])) == a_spec(seed=1, n=2)
    out = csv.DictWriter(io.StringIO(), fieldnames=list(rows[0]))
    out.writerows(rows)
    assert [r["n"] for r in store.runs.export_rows({"n": 2}, ["n"])] == [2] * 4
    assert PAGE == 1000


def test_an_export_does_not_stand_in_the_way_of_a_writer(store):
    """No cursor stays open between two rows, so the write-ahead log can be reset meanwhile."""
    for seed in range(3):
        a_finished_run(store, seed)
    rows = store.runs.export_rows()
    next(rows)
    with open_store(store.path) as other:
        a_finished_run(other, 4)
        busy, _, _ = other.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0]
    assert busy == 0


def test_several_calls_can_be_one_transaction(store):
    def two_runs():
        with store.write():
            a_finished_run(store)
            a_finished_run(store, accuracy=float("nan"))

    with pytest.raises(StoreError, match="accuracy is nan"):
        two_runs()
    assert store.runs.count() == 0
    with store.write():
        kept = a_finished_run(store)
        with pytest.raises(StoreError):
            a_finished_run(store, accuracy=float("nan"))
    assert [row["run_id"] for row in store.runs.table()] == [kept]


def test_a_search_takes_many_words_and_refuses_more_in_one_sentence(store):
    run_id = store.runs.create(a_spec())
    assert [r["run_id"] for r in store.runs.table(search="lab " * 5000)] == [run_id]
    assert store.runs.table(search=" ".join(map(str, range(MAX_WORDS)))) == []
    with pytest.raises(SpecError, match="at most 200 different words, not 1,200"):
        store.runs.table(search=" ".join(map(str, range(1200))))


def test_of_each_kind_the_largest_run_stands_for_all_then_the_newest(store):
    kinds = [a_finished_run(store, spec=a_spec("lab-s"), n_problems=n) for n in (5, 9, 9, 7)]
    other = a_finished_run(store, spec=a_spec("lab-m"), n_problems=None)
    store.runs.delete(a_finished_run(store, spec=a_spec("lab-s"), n_problems=99))
    store.runs.create(a_spec("lab-s"))
    found = store.runs.of_each(["model"], "n_problems", ["run_id", "model", "n_problems"])
    assert sorted(zip(*found.values(), strict=True)) == sorted([(kinds[2], "lab-s", 9, 4), (other, "lab-m", None, 1)])
    assert store.runs.of_each(["model"], "n_problems", ["run_id"], {"model": "none"}) == {"run_id": [], "count": []}
    with pytest.raises(SpecError, match="did you mean"):
        store.runs.of_each(["modle"], "n_problems", ["run_id"])
