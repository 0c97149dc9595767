"""The worker against an engine that behaves in every way: each run ends in the right state, the worker goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.attempt import Attempt, Orders, Outcome
from jobs.host import EngineProcess
from jobs.lock import SlotTaken
from jobs.pool import EnginePool
from jobs.worker import Worker
from spec.choices import JobState
from spec.errors import SpecError, StoreError
from spec.results import Answered, Phase
from spec.run_spec import RunSpec, Runtime, TaskSpec
from store import open_store
from tests.fake_engine import FAKE, answer, saved, spec
from tests.patience import slack, until

ROOT = Path(__file__).resolve().parents[1]
WORKER = (
    "import sys, logging; from jobs.worker import Worker; from tests.fake_engine import FAKE\n"
    "logging.basicConfig(level=logging.INFO)\n"
    "w = Worker(sys.argv[1], command=FAKE); w.install_signals(); w.work()"
)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "db" / "isoquant.db") as opened:
        yield opened


@pytest.fixture
def work(store):
    """Serve the queue in this process until nothing is left to do at once; crashes wait no time."""

    def serve(**options):
        worker = Worker(store.path, command=FAKE, **options)
        worker.work(until_idle=True)
        return worker

    return serve


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("store.leases.BACKOFF_S", 0.0)


def test_a_run_is_measured_and_saved_whole(store, work):
    job = store.jobs.enqueue(spec(limit=120))
    work()
    run = store.runs.get(job.run_id)
    assert run.state is JobState.SUCCEEDED
    assert store.answers.of_run(job.run_id) == [answer(i) for i in range(120)]
    assert run.result.measures["n_problems"] == 120
    assert run.progress.done == 120
    assert store.workers.list() == []


def test_runs_are_taken_in_order_and_the_engine_stays_warm_for_the_same_model(store, work):
    jobs = [store.jobs.enqueue(s) for s in (spec(), spec(limit=3), spec("slow", 2), spec())]
    work()
    runs = [store.runs.get(j.run_id) for j in jobs]
    assert [r.state for r in runs] == [JobState.SUCCEEDED] * 4
    assert sorted(runs, key=lambda r: r.finished) == runs
    pids = [r.result.environment["pid"] for r in runs]
    assert pids[0] == pids[1] != pids[2] != pids[3]


@pytest.mark.parametrize(
    ("model", "reason", "detail"),
    [
        ("no-model", "There is no model here", "ModelError"),
        ("bad-spec", "no such layer", "SpecError"),
        ("does-not-fit", "needs 3 GB", "DoesNotFitError"),
        ("memory-error", "more memory", "DoesNotFitError"),
        ("nan-latency", "could not be saved", ""),
    ],
)
def test_what_would_fail_again_is_failed_at_once(store, work, model, reason, detail):
    job, next_job = store.jobs.enqueue(spec(model)), store.jobs.enqueue(spec())
    work()
    ended = store.jobs.get(job.job_id)
    assert (ended.state, ended.attempt) == (JobState.FAILED, 1)
    assert reason in ended.reason
    assert detail in (ended.detail or "")
    assert reason in store.runs.get(job.run_id).message
    assert saved(store, job.run_id)[:2] == ["p0", "p1"] if model != "nan-latency" else True
    assert store.jobs.get(next_job.job_id).state is JobState.SUCCEEDED


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("segfault", "SIGSEGV"),
        pytest.param("killed", "run out of memory", marks=pytest.mark.slow),
        pytest.param("exits", "exit code 7", marks=pytest.mark.slow),
        pytest.param("sys-exit", "exit code 3", marks=pytest.mark.slow),
        ("fault", "illegal memory access"),
        ("garbage", "this is no message"),
        pytest.param("broken-event", "progress event that cannot be read", marks=pytest.mark.slow),
        pytest.param("broken-result", "result that cannot be read", marks=pytest.mark.slow),
        pytest.param("own-cancel", "nobody had asked", marks=pytest.mark.slow),
        pytest.param("flood", "exit code 9", marks=pytest.mark.slow),
    ],
)
def test_a_crash_is_tried_three_times_from_where_it_stopped_then_put_aside(store, work, model, reason):
    job, next_job = store.jobs.enqueue(spec(model)), store.jobs.enqueue(spec())
    work()
    ended = store.jobs.get(job.job_id)
    assert (ended.state, ended.attempt, ended.crashes) == (JobState.QUARANTINED, 3, 3)
    assert reason in ended.reason
    assert saved(store, job.run_id) == [f"p{i}" for i in range(6)]
    assert store.jobs.get(next_job.job_id).state is JobState.SUCCEEDED
    if model == "fault":
        assert "last words of the library" in ended.detail
    if model == "flood":
        assert "the end of the flood" in ended.detail


@pytest.mark.usefixtures("no_waiting")
def test_a_run_whose_model_has_changed_since_is_not_gone_on_with(store, work):
    job, next_job = store.jobs.enqueue(spec("retrained")), store.jobs.enqueue(spec())
    work()
    ended = store.jobs.get(job.job_id)
    assert (ended.state, ended.attempt, ended.detail) == (JobState.FAILED, 2, "InputError")
    assert ended.reason == "The model has changed since this run gave its first answers; run it again instead."
    assert saved(store, job.run_id) == ["p0", "p1"]
    assert store.jobs.get(next_job.job_id).state is JobState.SUCCEEDED


@pytest.mark.slow
@pytest.mark.usefixtures("no_waiting")
def test_an_engine_without_a_sign_of_life_is_ended(store, work):
    job = store.jobs.enqueue(spec("hang"))
    work(stall_s=0.7)
    ended = store.jobs.get(job.job_id)
    assert ended.state is JobState.QUARANTINED
    assert "no sign of life" in ended.reason


def conduct(store, model, **options):
    """One attempt at a run of that model; the ending and the queue's word on it."""
    lease = store.jobs.start(spec(model), "me")
    pool = EnginePool(lambda: EngineProcess(FAKE))
    ending = Attempt(store, lease, pool, **options).conduct()
    pool.close()
    return ending, store.runs.get(lease.run_id)


@pytest.mark.slow
def test_an_engine_that_computes_may_be_silent_for_longer(store):
    ending, run = conduct(store, "long-step", stall_s=1.0, busy_stall_s=60.0 * slack())
    assert ending.outcome is Outcome.SUCCEEDED
    assert run.state is JobState.SUCCEEDED


@pytest.mark.slow
def test_an_engine_that_computes_for_ever_is_ended_too(store):
    ending, _ = conduct(store, "spin", stall_s=1.0, busy_stall_s=2.5)
    assert ending.outcome is Outcome.CRASHED
    assert "computed for" in ending.message


@pytest.mark.parametrize("order", ["cancel", "release"])
def test_a_result_that_arrives_while_the_run_is_being_stopped_is_kept(store, order):
    orders = Orders()

    def stop(event):
        if isinstance(event, Answered) and event.answer.problem_id == "p1":
            setattr(orders, order, True)

    ending, run = conduct(store, "deaf", orders=orders, on_event=stop)
    assert ending.outcome is Outcome.SUCCEEDED
    assert run.state is JobState.SUCCEEDED
    assert run.result.measures["n_problems"] == 10


@pytest.mark.slow
def test_loading_may_take_longer_than_any_silence(store, work):
    job = store.jobs.enqueue(spec("slow-load"))
    work(stall_s=1.2)
    ended = store.jobs.get(job.job_id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


def test_an_engine_that_cannot_start_is_a_crash_with_its_words(store, monkeypatch):
    monkeypatch.setattr("store.leases.BACKOFF_S", 0.0)
    job = store.jobs.enqueue(spec())
    Worker(store.path, command=(sys.executable, "-c", "raise SystemExit('no torch here')")).work(until_idle=True)
    ended = store.jobs.get(job.job_id)
    assert ended.state is JobState.QUARANTINED
    assert "no torch here" in ended.detail


@contextlib.contextmanager
def running(path):
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["slow", "hang", "ignore-sigterm"])
def test_cancel_ends_a_run_within_three_seconds_whatever_the_engine_does(store, model):
    job = store.jobs.enqueue(spec(model, 1000))
    with running(store.path):
        until(lambda: len(saved(store, job.run_id)) >= 2)
        begin = time.monotonic()
        store.jobs.request_cancel(job.job_id)
        until(lambda: store.jobs.get(job.job_id).state is JobState.CANCELLED)
        assert time.monotonic() - begin < 3 * slack()
        kept = saved(store, job.run_id)
        assert kept == [f"p{i}" for i in range(len(kept))]
        after = store.jobs.enqueue(spec())
        until(lambda: store.jobs.get(after.job_id).state is JobState.SUCCEEDED)


@pytest.mark.slow
def test_progress_and_phase_are_written_while_it_runs(store):
    job = store.jobs.enqueue(spec("slow", 40))
    with running(store.path) as process:
        until(lambda: store.runs.poll(job.run_id)["phase"] == "measure")
        seen, begin = set(), time.monotonic()
        while time.monotonic() - begin < 2.2 * slack():
            seen.add(store.runs.poll(job.run_id)["done"])
            time.sleep(0.05)
        assert len(seen) >= 3
        (worker,) = store.workers.list()
        assert worker.alive
        assert worker.pid == process.pid


@pytest.mark.slow
def test_sigterm_puts_the_run_back_and_the_next_worker_goes_on(store):
    job = store.jobs.enqueue(spec("slow", 30))
    with running(store.path) as process:
        until(lambda: len(saved(store, job.run_id)) >= 5)
        engine = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(4 * slack()) == 0
        assert not any(e.is_running() and e.status() != psutil.STATUS_ZOMBIE for e in engine)
    waiting = store.jobs.get(job.job_id)
    assert (waiting.state, waiting.crashes) == (JobState.QUEUED, 0)
    before = saved(store, job.run_id)
    assert store.workers.list() == []
    with running(store.path):
        until(lambda: store.jobs.get(job.job_id).state is JobState.SUCCEEDED)
    assert saved(store, job.run_id) == [f"p{i}" for i in range(30)]
    assert saved(store, job.run_id)[: len(before)] == before


@pytest.mark.slow
def test_a_killed_worker_leaves_no_engine_and_loses_no_answer(store):
    job = store.jobs.enqueue(spec("slow", 40))
    for _ in range(2):
        with running(store.path) as process:
            done = len(saved(store, job.run_id))
            until(lambda done=done: len(saved(store, job.run_id)) >= done + 5)
            children = psutil.Process(process.pid).children(recursive=True)
            acknowledged = saved(store, job.run_id)
            process.kill()
            process.wait()
            until(lambda c=children: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in c))
        assert saved(store, job.run_id)[: len(acknowledged)] == acknowledged
    with running(store.path):
        until(lambda: store.jobs.get(job.job_id).state is JobState.SUCCEEDED)
    assert saved(store, job.run_id) == [f"p{i}" for i in range(40)]
    assert store.jobs.get(job.job_id).attempt == 3
    assert store.runs.get(job.run_id).result.measures["n_problems"] == 40


def test_a_lost_lease_ends_the_engine_at_once(store):
    job = store.jobs.enqueue(spec("slow", 1000))
    lease = store.jobs.claim("me")
    pool, seen = EnginePool(lambda: EngineProcess(FAKE)), []

    def take_it_away(event):
        seen.append(event)
        if len(seen) == 10:
            store.connection.execute("UPDATE jobs SET fence = fence + 1 WHERE job_id = ?", (job.job_id,))

    begin = time.monotonic()
    ending = Attempt(store, lease, pool, on_event=take_it_away).conduct()
    assert ending.outcome is Outcome.LOST
    assert time.monotonic() - begin < 4 * slack()
    assert pool._engine is None
    pool.close()
    assert store.jobs.get(job.job_id).state is JobState.RUNNING


def test_a_result_says_which_runs_were_measured_beside_it(store, work):
    alone = store.jobs.enqueue(spec())
    work()
    foreground = store.jobs.start(spec("slow", 1000), "me")
    job = store.jobs.enqueue(spec())
    work()
    assert not any("same time" in note for note in store.runs.get(alone.run_id).result.notes)
    (note,) = (note for note in store.runs.get(job.run_id).result.notes if "same time" in note)
    assert note.startswith(f"Run {foreground.run_id} was measured at the same time")


@pytest.mark.slow
def test_a_second_worker_is_refused(store):
    with running(store.path) as process:
        until(lambda: store.workers.list())
        with pytest.raises(SlotTaken, match=f"process {process.pid}"):
            Worker(store.path, command=FAKE).work(until_idle=True)


def test_an_unknown_device_names_the_valid_ones(store):
    with pytest.raises(SpecError, match="cpu"):
        Worker(store.path, device="gpu7")


@pytest.mark.parametrize(("machine", "state"), [(("a GPU",), JobState.QUEUED), ((), JobState.SUCCEEDED)])
def test_a_worker_without_the_gpu_leaves_its_runs_to_one_that_has_it(store, work, monkeypatch, machine, state):
    monkeypatch.setattr("jobs.worker.gpus", lambda: machine)
    wanted = [RunSpec("ok", task=TaskSpec(limit=3), runtime=Runtime(device=d)) for d in ("cuda:0", "auto", "cpu")]
    jobs = [store.jobs.enqueue(s) for s in wanted]
    work(device="cpu")
    assert [store.jobs.get(j.job_id).state for j in jobs] == [state, JobState.SUCCEEDED, JobState.SUCCEEDED]


@pytest.mark.slow
def test_two_databases_have_two_workers(store, tmp_path):
    with running(store.path), running(tmp_path / "other.db"):
        other = open_store(tmp_path / "other.db")
        until(lambda: store.workers.list() and other.workers.list())
        other.close()


def test_cancel_of_a_foreground_run_keeps_what_it_measured(store):
    lease, orders = store.jobs.start(spec("slow", 1000), "me"), Orders()

    seen = []

    def stop_at_five(event):
        seen.extend([event.answer.problem_id] if isinstance(event, Answered) else [])
        orders.cancel = len(seen) >= 5

    pool = EnginePool(lambda: EngineProcess(FAKE))
    ending = Attempt(store, lease, pool, orders=orders, on_event=stop_at_five).conduct()
    pool.close()
    assert ending.outcome is Outcome.CANCELLED
    run = store.runs.get(lease.run_id)
    assert run.state is JobState.CANCELLED
    assert len(seen) >= 5
    assert saved(store, lease.run_id) == seen


def test_events_reach_the_watcher_in_order(store):
    lease, seen = store.jobs.start(spec(limit=3), "me"), []
    pool = EnginePool(lambda: EngineProcess(FAKE))
    Attempt(store, lease, pool, on_event=seen.append).conduct()
    pool.close()
    assert [(e.name, e.detail) for e in seen if isinstance(e, Phase)] == [
        ("load", "Starting the engine"),
        ("load", "ok"),
        ("measure", ""),
    ]
    assert len(seen) == 4 + 2 * 3


def test_the_name_tells_host_and_process(store):
    assert Worker(store.path, command=FAKE).name.endswith(f":{os.getpid()}")


@pytest.mark.slow
def test_a_heartbeat_that_cannot_be_written_is_tried_again(store, monkeypatch, caplog):
    opens = iter([StoreError("The disk is full."), StoreError("The disk is full.")])

    def open_later(path):
        if error := next(opens, None):
            raise error
        return open_store(path)

    monkeypatch.setattr("jobs.pulse.open_store", open_later)
    monkeypatch.setattr("jobs.pulse.BEAT_S", 0.1)
    lease = store.jobs.start(spec("slow", 20), "me")
    pool = EnginePool(lambda: EngineProcess(FAKE))
    seen = []
    Attempt(store, lease, pool, on_event=lambda e: seen.append(store.runs.poll(lease.run_id)["phase"])).conduct()
    pool.close()
    assert "measure" in seen
    assert sum("heartbeat could not be written" in r.message for r in caplog.records) == 1
