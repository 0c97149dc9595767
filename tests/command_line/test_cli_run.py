"""`run`, `submit`, `worker` and `tour` with a stand-in engine: what they print, what they store, how they end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commands.run import Display
from jobs.pool import EnginePool
from spec.choices import JobState
from spec.measures import MEASURES
from spec.results import Phase
from spec.run_spec import RunSpec, TaskSpec
from store import open_store
from tests.fake_engine import FAKE
from tests.patience import slack, until

ROOT = Path(__file__).resolve().parents[2]


def test_run_json_is_one_object_with_every_measure_by_name(isoquant):
    code, out, err = isoquant("run", "--model", "ok", "--limit", 12, "--seed", 3, "--json")
    assert code == 0
    data = json.loads(out)
    assert set(MEASURES) < set(data)
    assert {"run_id", "spec", "reasons", "energy_method", "energy_valid", "by_level"} < set(data)
    assert data["accuracy"] == pytest.approx(8 / 12)
    assert data["energy_j"] is None
    assert data["reasons"]["energy_j"]
    assert RunSpec.from_dict(data["spec"]) == RunSpec("ok", task=TaskSpec(limit=12), seed=3)
    with open_store() as store:
        assert store.runs.get(data["run_id"]).state is JobState.SUCCEEDED
        assert store.answers.count(data["run_id"]) == 12
    assert "Traceback" not in err


def test_run_prints_a_table_by_groups_with_intervals_and_reasons(isoquant):
    code, out, _ = isoquant("run", "--model", "ok", "--limit", 12)
    assert code == 0
    for words in ("quality", "time", "energy", "compute", "memory", "66.7 % (0.0-100.0), n = 12", "10.0 ms", "n/a"):
        assert words in out
    assert "The stand-in engine does not measure this." in out
    assert "level" in out


def test_run_without_saving_keeps_nothing(isoquant, home):
    code, out, _ = isoquant("run", "--model", "ok", "--no-save", "--json")
    assert code == 0
    assert json.loads(out)["run_id"] is None
    assert not home.exists()


@pytest.mark.parametrize(
    ("model", "code", "kind", "words"),
    [
        ("does-not-fit", 1, "DoesNotFitError", "3 GB"),
        ("no-model", 2, "ModelError", "no model"),
        ("bad-spec", 2, "SpecError", "no such layer"),
        ("segfault", 1, "RunFailed", "SIGSEGV"),
        ("fault", 1, "RunFailed", "illegal memory access"),
    ],
)
def test_a_run_that_fails_says_why_in_one_line(isoquant, model, code, kind, words):
    got, out, err = isoquant("run", "--model", model)
    assert got == code
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "\\n" not in err
    assert (model == "fault") == ("last words of the library" in err.splitlines())
    assert out == ""
    got, out, _ = isoquant("run", "--model", model, "--json")
    assert got == code
    error = json.loads(out)["error"]
    assert (error["type"], set(error)) == (kind, {"type", "message", "field"})
    with open_store() as store:
        assert {row["state"] for row in store.runs.table()} == {JobState.FAILED}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_and_keeps_what_is_there(isoquant, number):
    begin = []

    def interrupt():
        with open_store() as store:
            until(lambda: any(row["done"] > 2 for row in store.runs.table()))
        begin.append(time.monotonic())
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    code, out, err = isoquant("run", "--model", "slow", "--limit", 1000)
    assert code == 130
    assert time.monotonic() - begin[0] < 4 * slack()
    assert "error: Cancelled" in err
    assert out == ""
    with open_store() as store:
        (row,) = store.runs.table()
        assert row["state"] == JobState.CANCELLED
        assert row["run_id"] in err
        assert store.answers.count(row["run_id"]) > 2


def test_partial_accuracy_is_shown_while_it_runs(isoquant, monkeypatch):
    monkeypatch.setattr("commands.run.LINE_EVERY_S", 0.0)
    _, _, err = isoquant("run", "--model", "slow", "--limit", 4)
    assert "4 of 4  accuracy 50 % (15–85)  300 tokens/s" in err


def test_how_far_the_preparation_is_is_said_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("commands.output.time.monotonic", lambda: now[0])
    with Display() as display:
        for i in range(128):
            now[0] += 0.02
            display.show(Phase("compress", f"Reading sample text {i} of 128"))
        display.show(Phase("compress", "Rounding matrix 1 of 9"))
        display.show(Phase("measure", ""))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Reading sample text 0 of 128"
    assert said[-2:] == ["Rounding matrix 1 of 9", "Measuring"]
    assert len(said) in (7, 8)


def test_a_run_for_which_no_process_can_be_started_has_failed(isoquant, monkeypatch):
    def refused():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("commands.run.EnginePool", lambda: EnginePool(refused))
    code, _, err = isoquant("run", "--model", "ok")
    assert (code, err.strip()) == (1, "error: No engine process can be started (Cannot allocate memory).")
    with open_store() as store:
        assert {row["state"] for row in store.runs.table()} == {JobState.FAILED}


def test_submit_queues_and_says_how_to_follow(isoquant):
    code, out, err = isoquant("submit", "--model", "ok", "--limit", 3)
    assert code == 0
    with open_store() as store:
        (job,) = store.jobs.list()
    assert job.run_id in out
    assert f"http://127.0.0.1:8501/r/{job.run_id}" in out
    assert "no worker is running" in err
    code, out, _ = isoquant("submit", "--model", "ok", "--json")
    assert set(json.loads(out)) == {"run_id", "state", "message", "url", "spec"}
    assert json.loads(out)["state"] == "queued"


@pytest.fixture
def fake_worker(monkeypatch):
    from jobs import worker

    plain = worker.Worker

    def with_fake_engine(path, **options):
        return plain(path, command=FAKE, **options)

    monkeypatch.setattr(worker, "Worker", with_fake_engine)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("fake_worker")
def test_worker_measures_what_is_queued(isoquant):
    isoquant("submit", "--model", "ok", "--limit", 3)
    code, out, err = isoquant("worker", "--until-idle")
    assert code == 0
    assert "succeeded" in err
    assert out == ""
    isoquant("submit", "--model", "no-model")
    code, out, err = isoquant("worker", "--until-idle", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert any("There is no model here" in line["message"] and line["level"] == "error" for line in lines)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_worker")
@pytest.mark.parametrize(("model", "expected"), [("ok", 0), ("no-model", 1)])
def test_submit_and_wait_ends_as_the_run_does(isoquant, model, expected):
    code = (
        "import sys; from jobs.worker import Worker; from tests.fake_engine import FAKE\n"
        "w = Worker(command=FAKE); w.install_signals(); w.work()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        got, out, err = isoquant("submit", "--model", model, "--wait", "--json")
    finally:
        process.terminate()
        process.wait()
    assert got == expected
    assert json.loads(out)["state"] == ("succeeded" if expected == 0 else "failed")
    assert "running" in err


def test_a_second_worker_is_told_who_is_first(isoquant, fake_worker):
    from jobs.lock import SlotLock

    with open_store() as store:
        lock = SlotLock(Path(f"{store.path}.worker-cpu.lock"))
    lock.acquire()
    code, out, err = isoquant("worker", "--device", "cpu")
    lock.release()
    assert code == 1
    assert f"error: Another worker (process {os.getpid()})" in err
    assert out == ""


def test_tour_queues_three_models_twice(isoquant):
    code, out, _ = isoquant("tour", "--json")
    assert code == 0
    specs = [RunSpec.from_dict(r["spec"]) for r in json.loads(out)["runs"]]
    assert [(s.model, s.strategy.name) for s in specs] == [
        (m, s) for m in ("lab-xs", "lab-s", "lab-m") for s in ("greedy", "majority")
    ]
    with open_store() as store:
        assert len(store.jobs.list()) == 6
        assert {job.source for job in store.jobs.list()} == {"tour"}
