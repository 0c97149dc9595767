"""The queue: order, leases, fences, cancelling, retries, and who takes over from whom."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spec.choices import JobState
from spec.errors import SpecError, StoreError
from spec.results import Phase
from store import LeaseLost, NotFound, open_store
from store.clock import Clock, Process, this_process
from store.leases import LEASE_S, MAX_CRASHES
from tests.fake_store import FakeClock, a_finished_run, a_progress, a_result, a_spec, an_answer, new_store


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(tmp_path, clock):
    with new_store(tmp_path, clock) as store:
        yield store


@pytest.fixture
def other(store, clock):
    """The same database as another process sees it."""
    with open_store(store.path, clock=clock) as other:
        yield other


def events(store, job_id):
    return [(e["event"], e["state"]) for e in store.jobs.events(job_id)]


def test_the_way_of_a_job_that_goes_well(store):
    job = store.jobs.enqueue(a_spec(), source="web")
    assert (job.state, job.spec, job.source, job.attempt) == (JobState.QUEUED, a_spec(), "web", 0)
    assert store.runs.get(job.run_id).state is JobState.QUEUED
    lease = store.jobs.claim("w")
    assert (lease.job_id, lease.run_id, lease.job.attempt, lease.job.worker) == (job.job_id, job.run_id, 1, "w")
    assert store.jobs.heartbeat(lease, a_progress(), Phase("measure", "batch 1 of 13")) is False
    polled = store.runs.poll(job.run_id)
    assert (polled["state"], polled["phase"], polled["phase_detail"], polled["done"]) == (
        "running",
        "measure",
        "batch 1 of 13",
        5,
    )
    store.jobs.finish(lease, a_result())
    run = store.runs.get(job.run_id)
    assert (run.state, run.result, run.phase, run.message) == (JobState.SUCCEEDED, a_result(), None, None)
    assert run.created <= run.started <= run.finished
    assert store.jobs.get(job.job_id).state is JobState.SUCCEEDED
    assert events(store, job.job_id) == [("queued", "queued"), ("claimed", "running"), ("finished", "succeeded")]


def test_jobs_are_claimed_in_the_order_they_came(store):
    queued = [store.jobs.enqueue(a_spec(seed=i)) for i in range(3)]
    assert [store.jobs.queue_position(j.job_id) for j in queued] == [1, 2, 3]
    assert [store.jobs.claim("w").job_id for _ in queued] == [j.job_id for j in queued]
    assert store.jobs.claim("w") is None
    assert store.jobs.queue_position(queued[0].job_id) is None


def test_jobs_are_listed_by_state_newest_first(store):
    queued = [store.jobs.enqueue(a_spec(seed=i)) for i in range(4)]
    store.jobs.claim("w")
    assert [j.job_id for j in store.jobs.list()] == [j.job_id for j in reversed(queued)]
    assert [j.job_id for j in store.jobs.list([JobState.RUNNING])] == [queued[0].job_id]
    assert [j.job_id for j in store.jobs.list(["queued"], limit=1)] == [queued[3].job_id]


def test_a_double_click_makes_one_job(store, other):
    first = store.jobs.enqueue(a_spec(), idempotency_key="form-1")
    assert other.jobs.enqueue(a_spec(), idempotency_key="form-1") == first
    assert store.runs.count() == 1
    assert store.jobs.enqueue(a_spec(), idempotency_key="form-2").run_id != first.run_id


def test_a_job_that_waits_is_cancelled_at_once(store):
    job = store.jobs.enqueue(a_spec())
    assert store.jobs.request_cancel(job.job_id).state is JobState.CANCELLED
    assert store.runs.poll(job.run_id)["state"] == "cancelled"
    assert store.jobs.claim("w") is None
    assert store.jobs.request_cancel(job.job_id).state is JobState.CANCELLED
    assert events(store, job.job_id) == [("queued", "queued"), ("cancelled", "cancelled")]


def test_a_heartbeat_is_a_sign_of_life_before_there_is_any_progress(store, clock):
    job = store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    for phase in (Phase("load", "Loading"), None):
        clock.pass_time(5)
        store.jobs.heartbeat(lease, None, phase)
        polled = store.runs.poll(job.run_id)
        assert (polled["updated"], polled["phase"]) == (clock.wall(), "load")


def test_a_running_job_is_told_to_stop_by_its_heartbeat(store, other):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    assert store.jobs.heartbeat(lease) is False
    assert other.jobs.request_cancel(lease.job_id).state is JobState.CANCELLING
    assert store.jobs.heartbeat(lease) is True
    assert store.answers.add(lease, [an_answer()]) == 1, "what was measured before it stopped is kept"
    store.jobs.finish_cancelled(lease)
    run = store.runs.get(lease.run_id)
    assert (run.state, run.result) == (JobState.CANCELLED, None)
    assert "kept" in run.message
    assert store.answers.count(lease.run_id) == 1


def test_a_run_that_finished_before_it_saw_the_cancel_has_finished(store):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    store.jobs.request_cancel(lease.job_id)
    store.jobs.finish(lease, a_result())
    assert store.jobs.get(lease.job_id).state is JobState.SUCCEEDED
    assert store.jobs.request_cancel(lease.job_id).state is JobState.SUCCEEDED


def test_a_failure_keeps_its_reason_and_the_end_of_stderr(store):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    state = store.jobs.fail(lease, "The model needs 12 GB and 4 GB are free.", "x" * 100_000 + "the end", retry=False)
    job = store.jobs.get(lease.job_id)
    assert state is job.state is JobState.FAILED
    assert (len(job.detail), job.detail[-7:]) == (64 * 1024, "the end")
    assert store.runs.get(lease.run_id).message == job.reason == "The model needs 12 GB and 4 GB are free."


def test_a_crash_is_tried_again_later_and_quarantined_after_the_third(store, clock):
    job = store.jobs.enqueue(a_spec())
    behind = store.jobs.enqueue(a_spec(seed=1))
    for crash, wait in ((1, 5.0), (2, 10.0)):
        lease = store.jobs.claim("w")
        assert lease.job_id == job.job_id
        assert store.jobs.fail(lease, "It crashed.", retry=True) is JobState.RETRY_WAIT
        assert store.jobs.get(job.job_id).crashes == crash
        assert store.runs.poll(job.run_id)["message"] == "It crashed."
        if crash == 1:
            assert store.jobs.claim("w").job_id == behind.job_id, "a job that waits does not block the queue"
        clock.pass_time(wait - 0.1)
        assert store.jobs.claim("w") is None
        clock.pass_time(0.2)
    lease = store.jobs.claim("w")
    assert lease.job.attempt == MAX_CRASHES
    assert store.jobs.fail(lease, "It crashed.", retry=True) is JobState.QUARANTINED
    assert "tried 3 times" in store.runs.get(job.run_id).message
    clock.pass_time(1e6)
    assert store.jobs.claim("w") is None


def test_a_crash_while_cancelling_is_a_cancel(store):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    store.jobs.request_cancel(lease.job_id)
    assert store.jobs.fail(lease, "killed", "stderr", retry=True) is JobState.CANCELLED
    assert store.jobs.get(lease.job_id).detail == "stderr"


def test_a_released_job_waits_again_unharmed(store):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    assert store.jobs.release(lease) is JobState.QUEUED
    again = store.jobs.claim("v")
    assert (again.job_id, again.job.attempt, again.job.crashes) == (lease.job_id, 2, 0)


def test_releasing_a_job_that_is_being_cancelled_cancels_it(store):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    store.jobs.request_cancel(lease.job_id)
    assert store.jobs.release(lease) is JobState.CANCELLED


def test_a_lease_that_is_renewed_is_not_taken(store, other, clock):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    for _ in range(10):
        clock.pass_time(LEASE_S - 1)
        assert other.jobs.reap() == []
        store.jobs.heartbeat(lease)
    clock.pass_time(LEASE_S - 1)
    store.answers.add(lease, [an_answer()])
    clock.pass_time(LEASE_S - 1)
    assert other.jobs.reap() == [], "saving answers renews the lease as well"


def test_who_lost_the_lease_changes_nothing_any_more(store, other, clock):
    store.jobs.enqueue(a_spec())
    old = store.jobs.claim("sleeper")
    store.answers.add(old, [an_answer("p1")])
    clock.pass_time(LEASE_S + 1)
    assert other.jobs.reap() == [old.job_id]
    new = other.jobs.claim("taker")
    assert (new.job_id, new.fence, new.job.crashes) == (old.job_id, old.fence + 1, 0)
    for attempt in (
        lambda: store.jobs.heartbeat(old, a_progress()),
        lambda: store.answers.add(old, [an_answer("p2")]),
        lambda: store.jobs.finish(old, a_result()),
        lambda: store.jobs.fail(old, "late", retry=True),
        lambda: store.jobs.fail(old, "late", retry=False),
        lambda: store.jobs.finish_cancelled(old),
        lambda: store.jobs.release(old),
    ):
        with pytest.raises(LeaseLost, match="taken over"):
            attempt()
    assert store.runs.poll(old.run_id)["done"] == 0
    assert [a.problem_id for a in other.answers.of_run(new.run_id)] == ["p1"]
    assert store.jobs.get(old.job_id).worker == "taker"
    other.jobs.finish(new, a_result())


def test_a_lease_that_ran_out_still_counts_while_nobody_took_it(store, clock):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    clock.pass_time(10 * LEASE_S)
    assert store.jobs.heartbeat(lease) is False


def test_three_lost_workers_quarantine_a_job(store, clock):
    store.jobs.enqueue(a_spec())
    for _ in range(MAX_CRASHES):
        lease = store.jobs.claim("w")
        clock.pass_time(LEASE_S + 1)
        assert store.jobs.reap() == [lease.job_id]
    assert store.jobs.get(lease.job_id).state is JobState.QUARANTINED


def test_lost_workers_that_saved_answers_are_not_held_against_the_job(store, clock):
    job = store.jobs.enqueue(a_spec())
    for attempt in range(2 * MAX_CRASHES):
        lease = store.jobs.claim("w")
        store.answers.add(lease, [an_answer(f"p{attempt}")])
        clock.pass_time(LEASE_S + 1)
        assert store.jobs.reap() == [lease.job_id]
        assert (store.jobs.get(job.job_id).state, store.jobs.get(job.job_id).crashes) == (JobState.QUEUED, 0)
    for crashes in range(1, MAX_CRASHES + 1):  # and now it is stuck
        store.jobs.claim("w")
        clock.pass_time(LEASE_S + 1)
        store.jobs.reap()
        assert store.jobs.get(job.job_id).crashes == crashes
    assert store.jobs.get(job.job_id).state is JobState.QUARANTINED


def test_a_reboot_ends_every_lease_and_is_no_crash(store, clock):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    clock.reboot()
    assert store.jobs.reap() == [lease.job_id]
    job = store.jobs.get(lease.job_id)
    assert (job.state, job.crashes) == (JobState.QUEUED, 0)
    assert "started anew" in job.reason


def test_a_reboot_ends_the_wait_for_a_retry(store, clock):
    clock.pass_time(1e6)
    store.jobs.enqueue(a_spec())
    store.jobs.fail(store.jobs.claim("w"), "crash", retry=True)
    assert store.jobs.claim("w") is None
    clock.reboot()
    assert store.jobs.claim("w") is not None


def test_setting_the_wall_clock_takes_no_lease_away(store, other, clock):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    for shift in (3600, -7200, 86400 * 365):
        clock.offset += shift
        assert other.jobs.reap() == []
        assert store.jobs.heartbeat(lease) is False
        assert store.workers.list() == []


def test_a_cancel_is_answered_even_when_the_worker_is_gone(store, clock):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    clock.pass_time(LEASE_S + 1)
    assert store.jobs.request_cancel(lease.job_id).state is JobState.CANCELLED
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    store.jobs.request_cancel(lease.job_id)
    clock.pass_time(LEASE_S + 1)
    assert store.jobs.reap() == [lease.job_id]
    assert store.jobs.get(lease.job_id).state is JobState.CANCELLED


def test_the_job_of_a_dead_worker_is_taken_at_once(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    assert store.jobs.reap() == []
    store.connection.execute("UPDATE jobs SET worker_pid = ?", (dead.pid,))
    assert store.jobs.reap() == [lease.job_id]
    assert "ended without a word" in store.jobs.get(lease.job_id).reason


def test_a_process_is_dead_only_when_that_is_certain():
    me = this_process()
    assert me.pid == os.getpid()
    assert not me.is_dead()
    assert Process(me.pid, me.start + 1, me.namespace).is_dead(), "another process under the same number"
    assert not Process(me.pid, me.start + 1, "pid:[1]").is_dead(), "numbers of another container mean nothing here"
    assert not Process(me.pid, None, me.namespace).is_dead()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert not Process(child.pid, start, me.namespace).is_dead()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Process(child.pid, start, me.namespace).is_dead(), "a zombie does not work any more"
    child.wait()
    assert Process(child.pid, start, me.namespace).is_dead()


def test_the_real_clock_goes_forward_and_knows_its_boot():
    clock = Clock()
    assert clock.now() <= clock.now()
    assert clock.boot_id() == clock.boot_id() != ""


def test_a_foreground_run_is_claimed_by_who_started_it(store, other):
    lease = store.jobs.start(a_spec(), "cli", source="cli")
    assert other.jobs.claim("w") is None
    assert store.runs.poll(lease.run_id)["state"] == "running"
    store.jobs.finish(lease, a_result())
    assert store.runs.get(lease.run_id).source == "cli"


def test_a_foreground_run_that_dies_is_not_taken_up_behind_its_users_back(store, clock):
    lease = store.jobs.start(a_spec(), "cli")
    clock.pass_time(LEASE_S + 1)
    store.jobs.reap()
    assert store.jobs.get(lease.job_id).state is JobState.FAILED
    assert store.jobs.claim("w") is None


def test_a_run_that_ended_early_is_resumed_under_its_name(store):
    store.jobs.enqueue(a_spec())
    first = store.jobs.claim("w")
    store.answers.add(first, [an_answer("p1")], a_progress())
    store.jobs.fail(first, "The disk failed.", retry=False)
    job = store.jobs.enqueue(a_spec(), run_id=first.run_id)
    assert (job.run_id, job.job_id != first.job_id) == (first.run_id, True)
    run = store.runs.get(first.run_id)
    assert (run.state, run.message, run.finished, run.progress.done) == (JobState.QUEUED, None, None, 5)
    second = store.jobs.claim("w")
    assert store.answers.add(second, [an_answer("p1"), an_answer("p2")]) == 1
    assert store.jobs.of_run(first.run_id).job_id == second.job_id
    with pytest.raises(LeaseLost):
        store.jobs.heartbeat(first)


def test_only_an_ended_run_of_the_same_kind_can_be_resumed(store):
    live = store.jobs.enqueue(a_spec())
    done = a_finished_run(store)
    cancelled = store.jobs.enqueue(a_spec(seed=3))
    store.jobs.request_cancel(cancelled.job_id)
    for run_id, says in ((live.run_id, "is queued"), (done, "is finished")):
        with pytest.raises(StoreError, match=says):
            store.jobs.enqueue(store.runs.get(run_id).spec, run_id=run_id)
    with pytest.raises(SpecError, match="another specification"):
        store.jobs.enqueue(a_spec(seed=4), run_id=cancelled.run_id)
    store.runs.delete(cancelled.run_id)
    with pytest.raises(StoreError, match="restore it"):
        store.jobs.enqueue(a_spec(seed=3), run_id=cancelled.run_id)
    with pytest.raises(NotFound, match="no run"):
        store.jobs.enqueue(a_spec(), run_id="nothing")
    assert len(store.jobs.list()) == 2


def test_names_that_are_not_there_are_said_so(store):
    for call in (store.jobs.get, store.jobs.request_cancel, store.jobs.queue_position):
        with pytest.raises(NotFound, match="no job '<script>"):
            call("<script>")
    assert store.jobs.of_run("nothing") is None
    assert store.jobs.events("nothing") == []


def test_a_specification_of_another_version_fails_its_job_and_not_the_queue(store):
    strange, good = store.jobs.enqueue(a_spec(seed=1)), store.jobs.enqueue(a_spec(seed=2))
    store.connection.execute(
        "UPDATE specs SET spec = json_set(spec, '$.strategy.name', 'telepathy') WHERE spec_key = ?",
        (a_spec(seed=1).key(),),
    )
    assert store.jobs.claim("w").job_id == good.job_id
    job = store.jobs.get(strange.job_id)
    assert job.state is JobState.FAILED
    assert "telepathy" in job.reason
    with pytest.raises(SpecError):
        _ = job.spec


def test_a_result_that_cannot_be_saved_leaves_the_job_running(store):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    with pytest.raises(StoreError, match="accuracy is nan"):
        store.jobs.finish(lease, a_result(accuracy=float("nan")))
    assert store.jobs.get(lease.job_id).state is JobState.RUNNING
    assert events(store, lease.job_id)[-1] == ("claimed", "running")
    store.jobs.finish(lease, a_result())


def test_cancel_and_finish_at_the_same_moment_end_the_job_once(store):
    """Two connections, two threads, one job: whoever comes first, history and state agree."""
    rounds = 40
    leases = []
    for seed in range(rounds):
        store.jobs.enqueue(a_spec(seed=seed))
        leases.append(store.jobs.claim("w"))
    gate = threading.Barrier(2)

    def cancel():
        with open_store(store.path) as mine:
            for lease in leases:
                gate.wait()
                mine.jobs.request_cancel(lease.job_id)

    def finish():
        with open_store(store.path) as mine:
            for number, lease in enumerate(leases):
                gate.wait()
                if number % 2 and mine.jobs.heartbeat(lease):
                    mine.jobs.finish_cancelled(lease)
                else:
                    mine.jobs.finish(lease, a_result())

    # The fake clock belongs to the fixture; these threads use the real one, as two processes would.
    store.connection.execute("UPDATE jobs SET boot_id = ?, lease_until = ?", (Clock().boot_id(), Clock().now() + 60))
    threads = [threading.Thread(target=cancel), threading.Thread(target=finish)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in leases:
        job = store.jobs.get(lease.job_id)
        ends = [state for _, state in events(store, lease.job_id) if JobState(state).is_final]
        assert ends == [job.state] == [store.runs.poll(lease.run_id)["state"]]
        assert (store.runs.get(lease.run_id).result is not None) == (job.state is JobState.SUCCEEDED)


def test_runs_that_were_measured_side_by_side_are_known(store):
    before, mine, during, later = (store.jobs.enqueue(a_spec(seed=n)) for n in range(4))
    first, lease = store.jobs.claim("v"), store.jobs.claim("w")
    assert (first.run_id, lease.run_id) == (before.run_id, mine.run_id)
    store.jobs.release(first)
    again, second = store.jobs.claim("v"), store.jobs.claim("u")
    assert (again.run_id, second.run_id) == (before.run_id, during.run_id)
    store.jobs.finish_cancelled(second)
    store.jobs.request_cancel(again.job_id)
    store.jobs.finish_cancelled(again)
    store.jobs.release(lease)
    assert store.jobs.claim("w").run_id == mine.run_id
    store.jobs.request_cancel(later.job_id)  # it only waited
    assert store.jobs.beside(mine.run_id) == [before.run_id, during.run_id]
    assert store.jobs.beside(during.run_id) == [before.run_id, mine.run_id]
    assert store.jobs.beside(later.run_id) == []


def test_a_run_measured_between_two_attempts_at_another_was_not_beside_it(store):
    mine = store.jobs.enqueue(a_spec(seed=1))
    store.jobs.finish_cancelled(store.jobs.claim("w"))
    between = store.jobs.start(a_spec(seed=2), "w")
    store.jobs.finish_cancelled(between)
    store.jobs.enqueue(a_spec(seed=1), run_id=mine.run_id)
    store.jobs.claim("w")
    assert store.jobs.beside(mine.run_id) == store.jobs.beside(between.run_id) == []
