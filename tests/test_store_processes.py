"""Several real processes on one database: none claims twice, none is told it is busy, and kill -9 loses nothing."""

import random
import signal
import subprocess
import threading
import time

import pytest

from spec.choices import JobState
from store import open_store
from tests.fake_store import a_finished_run, a_spec, an_answer, new_store, run_script


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path) as store:
        yield store


def outputs(processes):
    results = [process.communicate() for process in processes]
    for process, (_, err) in zip(processes, results, strict=True):
        assert (process.returncode, err) == (0, "")
    return [out.split() for out, _ in results]


CLAIMER = """
import sys
from store import open_store
from tests.fake_store import a_result, an_answer
path, name = sys.argv[1:]
with open_store(path) as store:
    while (lease := store.jobs.claim(name)) is not None:
        store.answers.add(lease, [an_answer(name)])
        store.jobs.finish(lease, a_result())
        print(lease.job_id)
"""


@pytest.mark.slow
def test_four_processes_share_the_queue_without_claiming_twice(store):
    jobs = [store.jobs.enqueue(a_spec(seed=seed)).job_id for seed in range(400)]
    claimed = outputs([run_script(CLAIMER, store.path, f"w{i}") for i in range(4)])
    assert sorted(job for mine in claimed for job in mine) == sorted(jobs)
    assert sum(1 for mine in claimed if mine) > 1, "they did work at the same time"
    assert store.runs.count({"state": JobState.SUCCEEDED}) == 400
    assert store.connection.execute("SELECT DISTINCT attempt, fence FROM jobs") == [(1, 1)]
    assert store.connection.value("SELECT count(*) FROM answers") == 400


def test_four_threads_share_the_queue_without_claiming_twice(store):
    jobs = [store.jobs.enqueue(a_spec(seed=seed)).job_id for seed in range(40)]
    claimed, failures = [], []

    def work(name):
        try:
            with open_store(store.path) as mine:
                while (lease := mine.jobs.claim(name)) is not None:
                    claimed.append(lease.job_id)
                    mine.jobs.release(lease) if len(claimed) % 5 == 0 else mine.jobs.finish_cancelled(lease)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(claimed) == set(jobs)
    assert store.connection.value("SELECT sum(fence) FROM jobs") == len(claimed)


WRITER = """
import sys
from store import open_store
from tests.fake_store import a_progress, a_result, an_answer
path, total, batch = sys.argv[1], int(sys.argv[2]), 10
with open_store(path) as store:
    store.jobs.reap()
    lease = store.jobs.claim("w")
    have = {a.problem_id for a in store.answers.of_run(lease.run_id)}
    todo = [f"p{i}" for i in range(total) if f"p{i}" not in have]
    print("resuming", len(have), flush=True)
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        store.answers.add(lease, [an_answer(name) for name in part], a_progress(len(have) + start + len(part), total))
        print(*part, flush=True)
    store.jobs.finish(lease, a_result())
    print("finished", flush=True)
"""


@pytest.mark.slow
def test_kill_9_of_the_writer_loses_and_doubles_nothing(store):
    """Killed at random moments, again and again; every answer it had acknowledged is there, each once."""
    rng, total, kills = random.Random(0), 2000, 8
    job = store.jobs.enqueue(a_spec())
    acknowledged = set()
    for attempt in range(kills + 1):
        store.connection.execute("UPDATE jobs SET crashes = 0")  # kills before the first answer count, and are likely
        process = run_script(WRITER, store.path, total)
        first = process.stdout.readline()
        assert first.startswith("resuming"), process.stderr.read()
        if attempt < kills:
            time.sleep(rng.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].splitlines()
        whole = said if attempt == kills else [line for line in said if line.count("p") == 10]
        acknowledged |= {name for line in whole for name in line.split() if name[1:].isdigit()}
        stored = [a.problem_id for a in store.answers.of_run(job.run_id)]
        assert len(stored) == len(set(stored))
        assert acknowledged <= set(stored)
        if "finished" in said:  # whether or not it was killed on its way out
            break
    assert len(stored) == total
    assert store.jobs.get(job.job_id).state is JobState.SUCCEEDED
    assert store.integrity() == []


SLEEPER = """
import sys
from store import LeaseLost, open_store
from tests.fake_store import an_answer
with open_store(sys.argv[1]) as store:
    lease = store.jobs.claim("sleeper")
    store.answers.add(lease, [an_answer("p0")])
    print("holding", flush=True)
    sys.stdin.readline()
    try:
        store.answers.add(lease, [an_answer("p1")])
    except LeaseLost:
        print("refused", flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_was_stopped_and_wakes_up_late_is_refused(store):
    job = store.jobs.enqueue(a_spec())
    process = run_script(SLEEPER, store.path, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "holding\n"
    process.send_signal(signal.SIGSTOP)
    assert store.jobs.reap() == [], "it lives, and its lease has not run out"
    store.connection.execute("UPDATE jobs SET lease_until = 0")  # 30 s later
    assert store.jobs.reap() == [job.job_id]
    lease = store.jobs.claim("taker")
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate("go\n")
    assert (out, err) == ("refused\n", "")
    assert store.answers.add(lease, [an_answer("p1", answer="from the taker")]) == 1
    assert [a.answer for a in store.answers.of_run(job.run_id)] == ["13", "from the taker"]


@pytest.mark.slow
def test_the_job_of_a_killed_worker_is_taken_over_at_once(store):
    job = store.jobs.enqueue(a_spec())
    process = run_script(SLEEPER, store.path, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "holding\n"
    process.kill()
    process.wait()
    begin = time.monotonic()
    assert store.jobs.reap() == [job.job_id]
    assert store.jobs.claim("taker").job_id == job.job_id
    assert time.monotonic() - begin < 1.0
    process.communicate()


def test_a_backup_taken_while_others_write_is_whole(store, tmp_path):
    run_id = a_finished_run(store)
    stop, written = threading.Event(), []

    def write():
        with open_store(store.path) as mine:
            while not stop.is_set():
                written.append(mine.answers.add(run_id, [an_answer(f"p{len(written)}-{i}") for i in range(10)]))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            before = sum(written)
            with open_store(store.backup(tmp_path / f"copy-{number}.db")) as copy:
                assert copy.integrity() == []
                assert copy.answers.count(run_id) >= before
                assert copy.answers.count(run_id) % 10 == 0
    finally:
        stop.set()
        thread.join()


def test_readers_are_never_kept_waiting_by_a_writer(store):
    run_id = a_finished_run(store)
    with open_store(store.path) as reader, store.write():
        store.answers.add(run_id, [an_answer()])
        assert reader.answers.count(run_id) == 0
        assert reader.runs.poll(run_id)["state"] == "succeeded"
    assert store.answers.count(run_id) == 1
