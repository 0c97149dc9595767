"""Many problems' strategies in full batches: order, batch sizes, counts. Back end and reward model are fakes."""

import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.rows import Grown
from engine.decoding.requests import Exit, Extend, Extension, Outcome, Path, Peek, Replay, Score
from engine.job import Asked, Job
from engine.measure.account import Account, Shapes
from engine.measure.flops import ModelShape
from engine.measure.time import now
from engine.prompts import Prompt
from engine.rewards import Scored
from engine.sampling import Sampling, stream_key
from engine.scheduler import Scheduler
from spec.errors import Cancelled, InputError, SpecError
from spec.results import Candidate
from tasks.problem import Problem


class FakeBackend:
    """Grows each row by its key's last digit plus one tokens, a batch at a time; remembers the batches."""

    kv_bytes_peak, attention = None, "none"

    def __init__(self, size=8):
        self.size = size
        self.batches = []
        self._waiting = []
        self._count = itertools.count()

    @property
    def wanting(self):
        return len(self._waiting) < self.size

    @property
    def busy(self):
        return bool(self._waiting)

    def submit(self, rows):
        for row in rows:
            heapq.heappush(self._waiting, (row.order, next(self._count), row))

    def step(self, on_step):
        assert self.busy, "there is nothing to do"
        batch = [heapq.heappop(self._waiting)[2] for _ in range(min(self.size, len(self._waiting)))]
        self.batches.append(batch)
        started = now()
        on_step(len(batch))
        return [(row, self._grow(row, started)) for row in reversed(batch)]

    def _grow(self, row, started):
        if row.peek:
            choices = tuple((t, -1.0 - t) for t in range(row.peek))
            return Grown(Extension("", (), "length"), started, [now()], choices=choices)
        if row.replay:
            return Grown(Extension("", (), "length"), started, [], replayed=tuple(range(row.replay)))
        n = min(row.limit, row.key % 3 + 1)
        fed = [(0, len(row.context) + n - 1)] if n else []
        return Grown(Extension(f"{row.key}", tuple(range(n)), "stop"), started, [now()] * n, fed)


class FakeJudge:
    """Scores a text by its length; remembers the calls."""

    def __init__(self):
        self.calls = []

    def score(self, items, on_step):
        self.calls.append(list(items))
        on_step(0)
        return [Scored((len(text) / 100,), n := len(prompt) + len(text), False, ((0, n),)) for prompt, text in items]


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


SHAPE = ModelShape(1000, 900, 2, 8, (None,))
SHAPES = Shapes({None: SHAPE, "small": SHAPE}, verifier=SHAPE)


def job_of(name, search, context=None, prompt=(1, 2, 3)):
    prompts = {None: Prompt(tuple(prompt), name), "small": Prompt((9,), name)}
    asked = Asked(Problem(name, name, None), 0, 0, {None: context, "small": context}, lambda: (prompts, search))
    return Job(asked, Account(SHAPES))


def run(backend, judge, jobs, on_step=lambda tokens: None):
    return list(Scheduler(backend, judge, on_step).run(jobs))


shapes = st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4), max_size=8)


@settings(max_examples=60)
@given(shapes, st.integers(1, 7))
def test_every_request_is_served_once_in_batches_of_at_most_the_size_asked(problems, batch_size):
    backend = FakeBackend(batch_size)
    jobs = [job_of(f"p{i}", tree(rounds)) for i, rounds in enumerate(problems)]
    ended = run(backend, FakeJudge(), jobs)
    assert sorted(j.problem.id for j in ended) == sorted(j.problem.id for j in jobs)
    assert all(j.outcome is not None and j.error is None for j in jobs)
    wanted = sum(n for rounds in problems for n, _ in rounds)
    assert sum(len(b) for b in backend.batches) == wanted
    assert all(1 <= len(b) <= batch_size for b in backend.batches)
    for job, rounds in zip(jobs, problems, strict=True):
        assert len(job.timings) == sum(n for n, _ in rounds)
        assert job.finished_s >= job.admitted_s > 0
        assert all(t.started_s >= t.admitted_s >= job.admitted_s for t in job.timings)
        assert job.account.tokens_generated == sum(len(t.token_s) for t in job.timings)
        assert (job.account.tokens_verifier > 0) == any(score for _, score in rounds)


def test_batches_are_full_while_problems_wait():
    backend = FakeBackend(8)
    run(backend, None, [job_of(f"p{i}", tree([(5, False)])) for i in range(10)])
    assert [len(b) for b in backend.batches] == [8, 8, 8, 8, 8, 8, 2]


def test_a_problem_is_admitted_only_when_its_first_sequence_can_start():
    backend = FakeBackend(4)
    jobs = [job_of(f"p{i}", tree([(2, False)])) for i in range(6)]
    for _ in Scheduler(backend, None, lambda tokens: None).run(jobs):
        waiting = [j for j in jobs if j.admitted_s == 0]
        assert len(waiting) == 6 - 2 * len(backend.batches)


def test_a_later_request_of_an_earlier_problem_goes_before_later_problems():
    backend = FakeBackend(1)
    jobs = [job_of("a", tree([(1, False)] * 3)), job_of("b", tree([(1, False)])), job_of("c", tree([(1, False)]))]
    run(backend, None, jobs)
    order = [[len(r.context) for r in b] for b in backend.batches]
    assert [len(b) for b in backend.batches] == [1, 1, 1, 1, 1]
    assert order[0] == [3]
    assert order[1][0] > 3
    assert order[2][0] > order[1][0]


def test_scores_of_several_problems_are_asked_together():
    judge = FakeJudge()
    run(FakeBackend(8), judge, [job_of(f"p{i}", tree([(2, True)])) for i in range(4)])
    assert [len(c) for c in judge.calls] == [8]


def test_a_full_context_gives_an_empty_extension_without_running():
    backend = FakeBackend()
    job = job_of("a", tree([(2, False)] * 4), context=6)
    run(backend, None, [job])
    assert job.outcome is not None
    assert job.cut_short
    assert all(len(r.context) + max(0, r.limit) <= 6 for b in backend.batches for r in b)
    assert backend.batches[-1][0].limit == 0


def test_a_problem_that_cannot_begin_fails_alone_and_a_wrong_spec_ends_the_run():
    def refuse(error):
        def begin():
            raise error

        return Job(Asked(Problem("bad", "bad", None), 0, 0, {None: None}, begin), Account(SHAPES))

    jobs = [refuse(InputError("too long")), job_of("good", tree([(1, False)]))]
    ended = run(FakeBackend(4), None, jobs)
    assert {j.problem.id: j.error for j in ended} == {"bad": "too long", "good": None}
    with pytest.raises(SpecError):
        run(FakeBackend(4), None, [refuse(SpecError("wrong"))])


def test_problems_are_taken_from_the_iterator_as_needed():
    taken = itertools.count()
    jobs = (job_of(f"p{next(taken)}", tree([(1, False)])) for _ in range(1000))
    first = next(iter(Scheduler(FakeBackend(4), None, lambda tokens: None).run(jobs)))
    assert first.problem.id in ("p0", "p1", "p2", "p3")
    assert next(taken) < 10


def test_cancelling_between_steps_ends_the_run():
    def stop(tokens):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(FakeBackend(4), None, [job_of("a", tree([(1, False)]))], stop)


def test_cancelling_between_scores_ends_the_run():
    told = []

    def stop(tokens):
        told.append(tokens)
        if tokens == 0:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(FakeBackend(4), FakeJudge(), [job_of("a", tree([(1, True)]))], stop)
    assert told == [1, 0]


def test_a_peek_and_a_replay_get_their_own_kind_of_answer():
    def search():
        found = yield Peek((Path(0), Path(0, (5,))), 3)
        assert found == [((0, -1.0), (1, -2.0), (2, -3.0))] * 2
        assert (yield Replay((7, 8, 9))) == (0, 1, 2)
        return Outcome((), None)

    backend = FakeBackend()
    job = job_of("a", search())
    run(backend, None, [job])
    peeked, replayed = backend.batches
    assert [(r.context, r.peek, r.limit) for r in peeked] == [((1, 2, 3), 3, 0), ((1, 2, 3, 5), 3, 0)]
    assert [(r.context, r.replay) for r in replayed] == [((1, 2, 3, 7, 8), 3)]
    assert len(job.timings) == 2, "a replay is no sequence that somebody waits for"


def test_a_row_says_all_that_its_request_asks():
    sampling, leave = Sampling(0.7), Exit(0.9)

    def search():
        yield Extend((Path(4, (8, 9), limit=5), Path(5)), 20, sampling, ("x",), "small", True, exit=leave)
        return Outcome((), None)

    backend = FakeBackend()
    run(backend, None, [job_of("other", tree([(1, False)])), job_of("a", search(), context=16)])
    first, second = (r for b in backend.batches for r in b if r.model == "small")
    assert (first.context, first.start, first.limit) == ((9, 8, 9), 2, 5)
    assert (second.context, second.start, second.limit) == ((9,), 0, 15)
    assert first.key == stream_key(0, 0, "a", 4) != second.key == stream_key(0, 0, "a", 5)
    assert all(r.order == (1, 1) for r in (first, second))
    assert all((r.sampling, r.stop, r.logprobs, r.exit) == (sampling, ("x",), True, leave) for r in (first, second))


def test_results_are_in_the_order_of_the_paths():
    def search():
        made = yield Extend(tuple(Path(i) for i in range(5)), 8)
        assert [e.text for e in made] == [str(stream_key(0, 0, "a", i)) for i in range(5)]
        return Outcome((), None)

    job = job_of("a", search())
    run(FakeBackend(3), None, [job])
    assert job.outcome is not None
