"""A full disk, a full machine: no answer is lost, no engine is blamed, and the user is told."""

import errno
import logging

import psutil
import pytest

from jobs.attempt import Attempt, Orders, Outcome
from jobs.host import EngineProcess
from jobs.pool import EnginePool
from jobs.worker import Worker
from spec.choices import JobState
from spec.errors import StoreError
from store import open_store
from tests.fake_engine import FAKE, saved, spec
from tests.patience import until


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "db" / "isoquant.db") as opened:
        yield opened


class Full(Exception):
    sqlite_errorcode = 13


def fails(times, then):
    """A write that finds the disk full for a while."""
    left = [times]

    def write(*args, **kwargs):
        if left[0] > 0:
            left[0] -= 1
            raise StoreError("The disk is full.") from Full()
        return then(*args, **kwargs)

    return write


def test_a_full_disk_holds_the_answers_back_and_loses_none(store, monkeypatch, caplog):
    monkeypatch.setattr("jobs.attempt.RETRY_WRITE_S", 0.05)
    job = store.jobs.enqueue(spec(limit=60))
    lease = store.jobs.claim("me")
    monkeypatch.setattr(store.answers, "add", fails(5, store.answers.add))
    monkeypatch.setattr(store.jobs, "finish", fails(5, store.jobs.finish))
    pool = EnginePool(lambda: EngineProcess(FAKE))
    assert Attempt(store, lease, pool).conduct().outcome is Outcome.SUCCEEDED
    pool.close()
    assert saved(store, job.run_id) == [f"p{i}" for i in range(60)]
    assert sum("The disk is full" in r.message for r in caplog.records) == 2


@pytest.mark.slow
def test_time_spent_waiting_for_the_disk_is_not_held_against_the_engine(store, monkeypatch):
    monkeypatch.setattr("jobs.attempt.RETRY_WRITE_S", 0.5)
    job = store.jobs.enqueue(spec("slow", 20))
    lease = store.jobs.claim("me")
    monkeypatch.setattr(store.answers, "add", fails(5, store.answers.add))
    pool = EnginePool(lambda: EngineProcess(FAKE))
    pool.warm_up()
    until(lambda: pool._spare.receive(0.1) is None and pool._spare.ready)
    assert Attempt(store, lease, pool, stall_s=1.5).conduct().outcome is Outcome.SUCCEEDED
    pool.close()
    assert store.jobs.get(job.job_id).state is JobState.SUCCEEDED


def test_a_full_disk_does_not_keep_a_stopped_worker_from_ending(store, monkeypatch):
    monkeypatch.setattr("jobs.attempt.RETRY_WRITE_S", 0.05)
    store.jobs.enqueue(spec("slow", 1000))
    lease, orders, tries = store.jobs.claim("me"), Orders(), []

    def full(*args):
        tries.append(args)
        orders.release = len(tries) > 3
        raise StoreError("The disk is full.") from Full()

    monkeypatch.setattr(store.answers, "add", full)
    pool = EnginePool(lambda: EngineProcess(FAKE))
    with pytest.raises(StoreError, match="disk is full"):
        Attempt(store, lease, pool, orders=orders).conduct()
    assert pool._engine is None


def test_a_disk_with_no_room_starts_no_run_and_says_so_once(store, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("jobs.worker.POLL_S", 0.01)
    job = store.jobs.enqueue(spec())
    monkeypatch.setattr("jobs.worker.PRESENCE_S", 0.01)
    usage, shown = psutil.disk_usage("/"), []

    def disk_usage(path):
        """Full until the worker has let the pages know."""
        shown.extend(w.reason for w in store.workers.list() if w.reason)
        return usage._replace(free=10**10 if shown else 1000)

    monkeypatch.setattr("jobs.worker.shutil.disk_usage", disk_usage)
    Worker(store.path, command=FAKE).work(until_idle=True)
    assert "0 MB are free" in shown[0]
    assert store.jobs.get(job.job_id).state is JobState.SUCCEEDED
    assert sum("No run is started" in r.message for r in caplog.records) == 1
    assert any("going on" in r.message for r in caplog.records)


@pytest.mark.parametrize("missing", [{1, 2, 3}, {2, 3}], ids=["from the beginning", "for the second run"])
def test_a_machine_with_no_room_for_an_engine_is_waited_for(store, monkeypatch, caplog, missing):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("jobs.worker.POLL_S", 0.01)
    monkeypatch.setattr("jobs.worker.START_AGAIN_S", 0.05)
    jobs = [store.jobs.enqueue(spec()), store.jobs.enqueue(spec("slow", 2))]
    worker, starts, said = Worker(store.path, command=FAKE), [], []
    start = worker.pool._start

    def refused():
        starts.append(len(starts) + 1)
        said.append(worker.presence.reason)
        if starts[-1] in missing:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start()

    worker.pool._start = refused
    worker.work(until_idle=True)
    ended = [store.jobs.get(job.job_id) for job in jobs]
    assert [(job.state, job.crashes) for job in ended] == [(JobState.SUCCEEDED, 0)] * 2
    words = "No engine process can be started (Resource temporarily unavailable). No run is started until that changes."
    assert words in said
    assert worker.presence.reason is None
    assert sum("No engine process" in r.message for r in caplog.records) == 1
