"""Many problems' strategies in full batches: order, batch sizes, counts. Back end and reward model are fakes."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.rows import Grown
from engine.decoding.requests import Extend, Extension, Outcome, Path, Score
from engine.measure.time import now
from engine.prompts import Prompt
from engine.rewards import Scored
from engine.scheduler import Job, Scheduler
from spec.errors import Cancelled, InputError, SpecError
from spec.results import Candidate
from tasks.problem import Problem


class FakeBackend:
    """Grows each row by its key's last digit plus one tokens; remembers the batches."""

    kv_bytes_peak = None

    def __init__(self):
        self.batches = []

    def extend(self, rows, on_step):
        self.batches.append(list(rows))
        started = now()
        on_step(len(rows))
        return [self._grow(r, started) for r in rows]

    def _grow(self, row, started):
        n = min(row.limit, row.key % 3 + 1)
        return Grown(Extension(f"{row.key}", tuple(range(n)), "stop"), started, [now()] * n)


class FakeReward:
    """Scores a text by its length; remembers the calls."""

    def __init__(self):
        self.calls = []

    def score(self, items, batch_size, on_batch):
        self.calls.append(list(items))
        on_batch()
        return [Scored((len(text) / 100,), len(prompt) + len(text)) for prompt, text in items]


def tree(rounds):
    """A strategy that asks for ``rounds`` of (how many paths, whether to score them)."""
    ids = ()
    for n, score in rounds:
        grown = yield Extend(tuple(Path(i, ids) for i in range(n)), 8)
        assert len(grown) == n
        ids += grown[0].ids
        if score:
            scores = yield Score(tuple(g.text for g in grown))
            assert scores == [(len(g.text) / 100,) for g in grown]
    return Outcome((Candidate("done", "done", None, len(ids), "stop"),), 0)


def job_of(name, search, context=None, prompt=(1, 2, 3)):
    return Job(Problem(name, name, None), 0, 0, context, lambda: (Prompt(tuple(prompt), name), search))


shapes = st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4), max_size=8)


@settings(max_examples=60)
@given(shapes, st.integers(1, 7))
def test_every_request_is_served_once_in_batches_of_at_most_the_size_asked(problems, batch_size):
    backend, reward = FakeBackend(), FakeReward()
    steps = []
    jobs = [job_of(f"p{i}", tree(rounds)) for i, rounds in enumerate(problems)]
    ended = list(Scheduler(backend, reward, batch_size, steps.append).run(jobs))
    assert sorted(j.problem.id for j in ended) == sorted(j.problem.id for j in jobs)
    assert all(j.outcome is not None and j.error is None for j in jobs)
    wanted = sum(n for rounds in problems for n, _ in rounds)
    assert sum(len(b) for b in backend.batches) == wanted
    assert all(1 <= len(b) <= batch_size for b in backend.batches)
    for job, rounds in zip(jobs, problems, strict=True):
        assert len(job.timings) == sum(n for n, _ in rounds)
        assert job.finished_s >= job.admitted_s > 0
        assert all(t.started_s >= t.admitted_s >= job.admitted_s for t in job.timings)
        assert job.tokens_generated == sum(len(t.token_s) for t in job.timings)
        assert (job.tokens_verifier > 0) == any(score for _, score in rounds)


def test_batches_are_full_while_problems_wait():
    backend = FakeBackend()
    jobs = [job_of(f"p{i}", tree([(5, False)])) for i in range(10)]
    list(Scheduler(backend, None, 8, lambda tokens: None).run(jobs))
    assert [len(b) for b in backend.batches] == [8, 8, 8, 8, 8, 8, 2]


def test_a_problem_is_admitted_only_when_its_first_sequence_can_start():
    backend = FakeBackend()
    jobs = [job_of(f"p{i}", tree([(2, False)])) for i in range(6)]
    ended = []
    for job in Scheduler(backend, None, 4, lambda tokens: None).run(jobs):
        ended.append(job)
        waiting = [j for j in jobs if j.admitted_s == 0]
        assert len(waiting) == 6 - 2 * len(backend.batches)


def test_a_later_request_of_an_earlier_problem_goes_before_later_problems():
    backend = FakeBackend()
    jobs = [job_of("a", tree([(1, False)] * 3)), job_of("b", tree([(1, False)])), job_of("c", tree([(1, False)]))]
    list(Scheduler(backend, None, 1, lambda tokens: None).run(jobs))
    order = [[len(r.context) for r in b] for b in backend.batches]
    assert [len(b) for b in backend.batches] == [1, 1, 1, 1, 1]
    assert order[0] == [3]
    assert order[1][0] > 3
    assert order[2][0] > order[1][0]


def test_scores_of_several_problems_are_asked_together():
    reward = FakeReward()
    jobs = [job_of(f"p{i}", tree([(2, True)])) for i in range(4)]
    list(Scheduler(FakeBackend(), reward, 8, lambda tokens: None).run(jobs))
    assert [len(c) for c in reward.calls] == [8]


def test_prompt_tokens_are_counted_for_each_sample():
    job = job_of("a", tree([(4, False)]))
    list(Scheduler(FakeBackend(), None, 8, lambda tokens: None).run([job]))
    assert job.tokens_prompt == 4 * 3


def test_a_full_context_gives_an_empty_extension_without_running():
    backend = FakeBackend()
    job = job_of("a", tree([(2, False)] * 4), context=6)
    list(Scheduler(backend, None, 8, lambda tokens: None).run([job]))
    assert job.outcome is not None
    assert job.cut_short
    assert all(len(r.context) + r.limit <= 6 for b in backend.batches for r in b)
    assert all(r.limit > 0 for b in backend.batches for r in b)


def test_a_problem_that_cannot_begin_fails_alone_and_a_wrong_spec_ends_the_run():
    def refuse(error):
        def begin():
            raise error

        return Job(Problem("bad", "bad", None), 0, 0, None, begin)

    jobs = [refuse(InputError("too long")), job_of("good", tree([(1, False)]))]
    ended = list(Scheduler(FakeBackend(), None, 4, lambda tokens: None).run(jobs))
    assert {j.problem.id: j.error for j in ended} == {"bad": "too long", "good": None}
    with pytest.raises(SpecError):
        list(Scheduler(FakeBackend(), None, 4, lambda tokens: None).run([refuse(SpecError("wrong"))]))


def test_problems_are_taken_from_the_iterator_as_needed():
    taken = itertools.count()
    jobs = (job_of(f"p{next(taken)}", tree([(1, False)])) for _ in range(1000))
    first = next(iter(Scheduler(FakeBackend(), None, 4, lambda tokens: None).run(jobs)))
    assert first.problem.id == "p0"
    assert next(taken) < 10


def test_cancelling_between_steps_ends_the_run():
    def stop(tokens):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        list(Scheduler(FakeBackend(), None, 4, stop).run([job_of("a", tree([(1, False)]))]))
