"""The queue against a model of it: any order of any calls, with time passing and the machine starting anew."""

import tempfile
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from spec.choices import JobState
from store import LeaseLost, open_store
from store.leases import BACKOFF_S, LEASE_S, MAX_CRASHES
from tests.fake_store import FakeClock, a_result, a_spec, an_answer, new_store

QUEUED, RUNNING, WAIT = JobState.QUEUED, JobState.RUNNING, JobState.RETRY_WAIT
HELD = (RUNNING, JobState.CANCELLING)


@dataclass
class Model:
    """What the job should be."""

    job_id: str
    run_id: str
    state: JobState = QUEUED
    fence: int = 0
    attempt: int = 0
    crashes: int = 0
    boot: str = ""
    until: float = 0.0
    not_before: float = 0.0
    answers: set = field(default_factory=set)


class Queue(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        first = new_store(self.folder.name, self.clock)
        self.stores = [first, open_store(first.path, clock=self.clock)]
        self.models = {}
        self.results = 0

    def teardown(self):
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    @rule(target=jobs, seed=st.integers(0, 3), who=st.integers(0, 1))
    def enqueue(self, seed, who):
        job = self.stores[who].jobs.enqueue(a_spec(seed=seed))
        self.models[job.job_id] = Model(job.job_id, job.run_id)
        return job.job_id

    @rule(target=leases, who=st.integers(0, 1))
    def claim(self, who):
        due = [m for m in self.models.values() if self._is_due(m)]
        lease = self.stores[who].jobs.claim(f"w{who}")
        if not due:
            assert lease is None
            return multiple()
        model = due[0]
        assert lease.job_id == model.job_id
        model.state, model.boot, model.until = RUNNING, self.clock.boot, self.clock.time + LEASE_S
        model.fence += 1
        model.attempt += 1
        assert (lease.fence, lease.job.attempt) == (model.fence, model.attempt)
        return lease

    def _is_due(self, model):
        return model.state is QUEUED or (
            model.state is WAIT and (model.not_before <= self.clock.time or model.boot != self.clock.boot)
        )

    def _holder(self, lease):
        model = self.models[lease.job_id]
        return model if model.state in HELD and model.fence == lease.fence else None

    def _renewed(self, model):
        model.until, model.boot = self.clock.time + LEASE_S, self.clock.boot

    def _fenced(self, lease, call):
        """``call()``; the model of the job where the lease holds, else None after checking that it was refused."""
        model = self._holder(lease)
        if model is None:
            try:
                call()
            except LeaseLost:
                return None, None
            raise AssertionError("a lost lease was obeyed")
        return model, call()

    @rule(lease=leases, who=st.integers(0, 1))
    def heartbeat(self, lease, who):
        model, cancel = self._fenced(lease, lambda: self.stores[who].jobs.heartbeat(lease))
        if model:
            assert cancel == (model.state is JobState.CANCELLING)
            self._renewed(model)

    @rule(lease=leases, names=st.sets(st.sampled_from("abcde")), who=st.integers(0, 1))
    def answer(self, lease, names, who):
        batch = [an_answer(name) for name in sorted(names)]
        model, added = self._fenced(lease, lambda: self.stores[who].answers.add(lease, batch))
        if model:
            assert added == len(names - model.answers)
            model.answers |= names
            self._renewed(model)

    @rule(lease=leases)
    def finish(self, lease):
        model, _ = self._fenced(lease, lambda: self.stores[0].jobs.finish(lease, a_result()))
        if model:
            model.state = JobState.SUCCEEDED
            self.results += 1

    @rule(lease=leases)
    def finish_cancelled(self, lease):
        model, _ = self._fenced(lease, lambda: self.stores[0].jobs.finish_cancelled(lease))
        if model:
            model.state = JobState.CANCELLED

    @rule(lease=leases)
    def release(self, lease):
        model, state = self._fenced(lease, lambda: self.stores[0].jobs.release(lease))
        if model:
            model.state = JobState.CANCELLED if model.state is JobState.CANCELLING else QUEUED
            assert state is model.state

    @rule(lease=leases, retry=st.booleans())
    def fail(self, lease, retry):
        model, state = self._fenced(lease, lambda: self.stores[0].jobs.fail(lease, "Broken.", "why", retry=retry))
        if model:
            self._crashed(model, WAIT) if retry else setattr(model, "state", JobState.FAILED)
            model.not_before, model.boot = self.clock.time + BACKOFF_S * 2 ** (model.crashes - 1), self.clock.boot
            assert state is model.state

    def _crashed(self, model, otherwise):
        model.crashes += 1
        if model.state is JobState.CANCELLING:
            model.state = JobState.CANCELLED
        else:
            model.state = JobState.QUARANTINED if model.crashes >= MAX_CRASHES else otherwise

    @rule(job_id=jobs, who=st.integers(0, 1))
    def cancel(self, job_id, who):
        self._reaped()
        model = self.models[job_id]
        if model.state in (QUEUED, WAIT):
            model.state = JobState.CANCELLED
        elif model.state is RUNNING:
            model.state = JobState.CANCELLING
        assert self.stores[who].jobs.request_cancel(job_id).state is model.state

    @rule(who=st.integers(0, 1))
    def reap(self, who):
        assert self.stores[who].jobs.reap() == self._reaped()

    def _reaped(self):
        gone = [m for m in self.models.values() if m.state in HELD]
        gone = [m for m in gone if m.boot != self.clock.boot or m.until < self.clock.time]
        for model in gone:
            if model.boot == self.clock.boot:
                self._crashed(model, QUEUED)
            else:
                model.state = JobState.CANCELLED if model.state is JobState.CANCELLING else QUEUED
        return [m.job_id for m in gone]

    @rule(seconds=st.sampled_from([0.5, 4.0, 6.0, 11.0, LEASE_S + 1]))
    def wait(self, seconds):
        self.clock.pass_time(seconds)

    @rule()
    def reboot(self):
        self.clock.reboot()

    @rule(target=jobs, job_id=consumes(jobs))
    def resume(self, job_id):
        old = self.models[job_id]
        live = [m for m in self.models.values() if m.run_id == old.run_id and not m.state.is_final]
        if live or old.state is JobState.SUCCEEDED or not old.state.is_final:
            return job_id
        run = self.stores[0].runs.get(old.run_id)
        if run.state is JobState.SUCCEEDED:
            return job_id
        job = self.stores[0].jobs.enqueue(run.spec, run_id=old.run_id)
        self.models[job.job_id] = Model(job.job_id, old.run_id, answers=old.answers)
        return job.job_id

    @invariant()
    def agrees(self):
        store = self.stores[1]
        newest = {}
        for model in self.models.values():
            job = store.jobs.get(model.job_id)
            assert (job.state, job.attempt, job.crashes) == (model.state, model.attempt, model.crashes)
            newest[model.run_id] = model
        for model in newest.values():
            assert store.runs.poll(model.run_id)["state"] == model.state
            assert store.answers.count(model.run_id) == len(model.answers)
            assert store.jobs.events(model.job_id)[-1]["state"] == model.state
        assert store.runs.count({"state": JobState.SUCCEEDED}) == self.results


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
