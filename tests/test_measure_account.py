"""The bill of a problem: every token that went through a model, whoever asked, found by watching the model itself."""

import itertools
import random

import pytest

from engine.backends.isoquant import IsoquantBackend, Layout
from engine.backends.rows import Grown
from engine.catalog import resolve
from engine.decoding import begin
from engine.decoding.requests import Draft, Exit, Extend, Extension, Outcome, Path, Question, Replay
from engine.job import Asked, Job
from engine.measure.account import Account, Shapes
from engine.measure.flops import ModelShape, exit_savings, model_shape, spans_flops
from engine.models import load
from engine.prompts import Prompt
from engine.rewards import Scored
from engine.runtime.drafting import LookupDrafter
from engine.runtime.plan import Plan
from engine.runtime.way import Way
from engine.sampling import Sampling
from engine.scheduler import Scheduler
from kernels.native import build
from spec.choices import Dtype, Fusion
from spec.strategy import parse_strategy
from tasks.problem import Problem
from tests.batches import CPU, batcher, drain, known, quiet, row, text
from tests.tiny import make_model

PROMPT = "Question: how much is 12 + 34, and why?\nAnswer:"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("account")
    return {name: str(make_model(root / name, "llama", seed=i)) for i, name in enumerate(("model", "draft"))}


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: load(resolve(folder), CPU, Dtype.FP32) for name, folder in folders.items()}


class Meter:
    """Every (token, position) that goes through a model, by a hook."""

    def __init__(self, model):
        self.positions = []
        self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        assert kwargs["position_ids"].shape == kwargs["input_ids"].shape
        self.positions += kwargs["position_ids"].flatten().tolist()

    def close(self):
        self._handle.remove()

    def flops(self, shape):
        each = 4 * shape.heads * shape.head_dim
        return sum(
            2.0 * shape.active_parameters + each * sum(min(p + 1, w or 10**9) for w in shape.windows)
            for p in self.positions
        )


class Judge:
    """Scores texts by chance, as if the reward model had read all but the first half of each."""

    def __init__(self):
        self.read = []

    def score(self, items, on_step):
        found = []
        for prompt, solution in items:
            n = len(prompt) + len(solution)
            rng = random.Random(solution)
            steps = tuple(rng.random() for _ in range(solution.count("e") + 1))
            found.append(Scored(steps, n, False, ((n // 2, n),)))
            self.read.append((n // 2, n))
        return found


def job(loaded, search, others=(), asked=PROMPT):
    tokenizer = loaded["model"].tokenizer
    shapes = Shapes({None: loaded["model"].shape}, loaded["draft"].shape, loaded["draft"].shape)
    question = Question(
        problem=Problem("p", asked, None), max_new_tokens=12, stop=(), step="e",
        extract=lambda t: t[:1] or None, equivalent=lambda a, b: a == b,
        encode=lambda t: tuple(tokenizer.encode_plain(t)), decode=lambda i: tokenizer.decode(list(i)),
        is_end=lambda t: t in tokenizer.stop_ids, key=5, layers=2,
    )  # fmt: skip
    prompt = Prompt(tuple(tokenizer.encode(asked)), asked, asked)
    made = lambda: ({None: prompt}, search(question))  # noqa: E731
    return Job(Asked(question.problem, 0, 3, {None: 128}, made), Account(shapes))


def replaying(question):
    made = yield Extend((Path(0),), 20)
    found = yield Replay(made[0].ids)
    assert found == made[0].ids
    return Outcome((), None)


SEARCHES = {
    "greedy": "greedy",
    "majority": "majority:n=6,temperature=1.2",
    "rebase": "rebase:n=6,reward=x,max_step_tokens=5",
    "step-beam": "step-beam:n=6,width=3,reward=x,max_step_tokens=5",
    "mcts": "mcts:expansions=6,reward=x,max_step_tokens=6",
    "beam": "beam:width=3",
    "replay": replaying,
}
LAYOUTS = {
    "prefix": {},
    "sequence": {"share": False},
    "off": {"plan": Plan(4, 64, kv_cache=False)},
    "static": {"plan": Plan(3, 16, static=True)},
    "few blocks": {"blocks": 7, "plan": Plan(6, 16)},
    "small pieces": {"plan": Plan(2, 7)},
}


EVERY = [(search, "prefix") for search in SEARCHES]
EVERY += [(search, "few blocks") for search in ("majority", "rebase", "beam", "replay")]
EVERY += [(search, layout) for search in ("greedy", "rebase") for layout in list(LAYOUTS)[1:4]]
EVERY += [(search, "small pieces") for search in ("majority", "beam", "replay")]


@pytest.mark.parametrize(("search", "layout"), EVERY)
def test_the_bill_is_what_went_through_the_model(loaded, search, layout):
    how = {"plan": Plan(4, 64), "way": Way(fusion=Fusion.OFF)} | LAYOUTS[layout]
    backend = IsoquantBackend({None: loaded["model"]}, Layout(longest=90, **how))
    meter, judge = Meter(loaded["model"].model), Judge()
    wanted = SEARCHES[search]
    start = wanted if callable(wanted) else lambda q: begin(q, parse_strategy(wanted))
    jobs = [job(loaded, start, asked=f"{PROMPT} {'x' * 7 * i}") for i in range(2)]
    try:
        list(Scheduler(backend, judge, quiet).run(jobs))
    finally:
        meter.close()
        backend.close()
    shape, bills = loaded["model"].shape, [j.account for j in jobs]
    assert all(j.error is None and j.outcome is not None for j in jobs)
    read = spans_flops(loaded["draft"].shape, judge.read)
    assert sum(b.tokens_verifier for b in bills) == sum(e - f for f, e in judge.read)
    assert sum(b.flops_total for b in bills) == pytest.approx(meter.flops(shape) + read, rel=1e-12)
    for bill in bills:
        assert bill.flops_generated == 2.0 * shape.active_parameters * bill.tokens_generated
        assert bill.flops_total <= bill.flops_no_reuse
    fed = sum(b.tokens_prompt for b in bills)
    assert fed <= len(meter.positions)
    cached = sum(b.tokens_cached for b in bills)
    if layout in ("off", "sequence"):
        assert cached == 0
    elif search in ("majority", "rebase"):
        assert cached > 0
    prompts = [len(j.prompts[None].ids) for j in jobs]  # the second goes on where the first ends
    if (search, layout) == ("majority", "prefix"):
        assert fed == max(prompts)
    if (search, layout) == ("majority", "few blocks"):
        assert fed > max(prompts), "nothing was lost and read again"


def test_what_is_shared_and_what_is_not_by_hand(loaded):
    """Four samples of one prompt: it is read once, and three find it; T tokens take T - 1 passes behind it."""
    one = job(loaded, lambda q: begin(q, parse_strategy("majority:n=4,temperature=1.0")))
    backend = IsoquantBackend({None: loaded["model"]}, Layout(Plan(4, 512), 90))
    list(Scheduler(backend, None, quiet).run([one]))
    backend.close()
    prompt, bill, shape = len(PROMPT), one.account, loaded["model"].shape
    lengths = [c.tokens for c in one.outcome.candidates]
    assert bill.tokens_prompt == prompt
    assert bill.tokens_cached == 3 * prompt
    assert bill.tokens_generated == sum(lengths)
    each = [spans_flops(shape, [(prompt, prompt + n - 1)]) for n in lengths]
    once = spans_flops(shape, [(0, prompt)])
    assert bill.flops_total == pytest.approx(once + sum(each))
    assert bill.flops_no_reuse == pytest.approx(4 * once + sum(each))


def test_a_step_that_continues_a_path_reads_nothing_of_it_again(loaded):
    def two_steps(question):
        first = yield Extend((Path(0),), 6)
        yield Extend((Path(1, first[0].ids), Path(2, first[0].ids)), 4, Sampling(1.0))
        return Outcome((), None)

    one = job(loaded, two_steps)
    backend = IsoquantBackend({None: loaded["model"]}, Layout(Plan(4, 512), 90))
    list(Scheduler(backend, None, quiet).run([one]))
    backend.close()
    prompt = len(PROMPT)
    assert one.account.tokens_prompt == prompt
    assert one.account.tokens_cached == (prompt + 5) + (prompt + 6)
    assert one.account.tokens_generated == 6 + 4 + 4


def test_without_a_cache_each_token_reads_everything_again(loaded):
    one = job(loaded, lambda q: begin(q, parse_strategy("greedy")))
    plan = Plan(4, 512, kv_cache=False)
    backend = IsoquantBackend({None: loaded["model"]}, Layout(plan, 90, share=False))
    list(Scheduler(backend, None, quiet).run([one]))
    backend.close()
    prompt, n = len(PROMPT), one.account.tokens_generated
    fed = sum(prompt + i for i in range(n))
    assert one.account.tokens_prompt == fed - (n - 1)
    spans = [(0, prompt + i) for i in range(n)]
    assert one.account.flops_total == pytest.approx(spans_flops(loaded["model"].shape, spans))


SHAPE = ModelShape(1500, 1000, heads=2, head_dim=8, windows=(None, 4), head_parameters=100, kv_parameters=50)
SMALL = ModelShape(150, 100, heads=1, head_dim=4, windows=(None,))


def bill(grown, asked=None, **more):
    made = Account(Shapes({None: SHAPE}, **more))
    made.grew(asked or row(text(10), 9), grown)
    return made


def grown(ids=5, spans=((0, 14),), **more):
    extension = Extension("", tuple(range(ids)), "length", exits=more.pop("exits", ()))
    return Grown(extension, 0.0, [0.0] * ids, spans, **more)


def test_guesses_are_paid_for_in_both_models():
    # Two passes behind a context of ten: three guesses each, of which one and two were taken.
    made = bill(
        grown(6, [(0, 15), (12, 14), (14, 15)], drafted=6, accepted=3, passes=3, draft_spans=[(0, 13), (12, 16)]),
        draft=SMALL,
    )
    assert (made.tokens_drafted, made.tokens_accepted, made.target_passes) == (6, 3, 3)
    assert (made.tokens_prompt, made.tokens_generated) == (10, 6)
    target = spans_flops(SHAPE, [(0, 15), (12, 14), (14, 15)])
    assert made.flops_total == target + spans_flops(SMALL, [(0, 13), (12, 16)])
    assert made.flops_no_reuse == made.flops_total
    assert made.flops_generated == 2.0 * 1000 * 6


def test_a_text_the_reward_model_found_in_part_is_paid_for_in_part():
    made = Account(Shapes({None: SHAPE}, verifier=SMALL))
    made.scored(Scored((0.5,), 20, False, ((12, 20),)))
    assert made.tokens_verifier == 8
    assert made.flops_generated == 0
    assert made.flops_total == spans_flops(SMALL, [(12, 20)])
    assert made.flops_no_reuse == pytest.approx(spans_flops(SMALL, [(0, 20)]))


def test_what_early_exits_save_is_taken_off_and_kept_in_a_histogram():
    made = bill(grown(4, [(0, 13)], exits=(2, 1, 1, 2)))
    full = spans_flops(SHAPE, [(0, 13)])
    assert made.flops_total == pytest.approx(full - exit_savings(SHAPE, (2, 1, 1, 2), 10))
    assert made.flops_total < full
    assert dict(made.exits) == {1: 2, 2: 2}


def test_a_peek_counts_as_the_token_it_is_asked_for():
    peek = Grown(Extension("", (), "length"), 0.0, (0.0,), [(4, 10)], cached=4)
    made = bill(peek, row(text(10), 0, peek=3))
    assert (made.tokens_generated, made.tokens_prompt, made.tokens_cached) == (1, 6, 4)
    assert made.flops_no_reuse == pytest.approx(spans_flops(SHAPE, [(0, 10)]))


def test_one_model_of_unknown_size_makes_all_sums_unknown():
    made = Account(Shapes({None: SHAPE, "b": ModelShape(10, None, 1, 1, (None,))}))
    made.grew(row(text(10)), grown())
    assert made.flops_total is not None
    made.grew(row(text(10), model="b"), grown())
    assert (made.flops_total, made.flops_generated, made.flops_no_reuse) == (None, None, None)
    assert made.tokens_generated == 10


def test_the_models_of_a_run_are_told_apart():
    made = Account(Shapes({None: SHAPE, "small": SMALL}))
    made.grew(row(text(10), model="small"), grown())
    assert made.flops_total == spans_flops(SMALL, [(0, 14)])


@pytest.mark.parametrize("blocks", [100, 8])
@pytest.mark.parametrize("kind", ["draft", "exit"])
def test_spans_are_the_tokens_that_were_fed(kind, blocks):
    """On our own forward pass there is no hook: the batches are counted instead."""
    if build.reason() is not None:
        pytest.skip(build.reason())
    more = {"draft": Draft(None, 4, 1)} if kind == "draft" else {"exit": Exit(0.05)}
    made = batcher(known("llama"), blocks=blocks, budget=12, drafter=LookupDrafter())
    rows = [row(tuple(itertools.islice(itertools.cycle(text(5, i)), 30)), 25, (i,), **more) for i in range(4)]
    found = drain(made, rows)
    assert any(g.drafted for g in found) == (kind == "draft")
    fed = sorted(p for batch in made.seen for p in batch.positions.tolist())
    assert fed == sorted(p for g in found for first, end in g.spans for p in range(first, end))


def test_the_shape_of_a_model_says_what_an_exit_saves():
    shape = model_shape(known("llama"))
    full = [shape.layers] * 5
    assert exit_savings(shape, full, 10) == pytest.approx(-2.0 * shape.head_parameters * (shape.layers - 1) * 4)
    assert exit_savings(shape, [shape.layers, 1], 10) > exit_savings(shape, [shape.layers, 2], 10)


def test_no_head_is_charged_before_the_first_layer_a_token_may_leave_at():
    shape = model_shape(known("llama"))
    full = [shape.layers] * 5
    assert exit_savings(shape, full, 10, first=shape.layers) == 0
    made = bill(grown(4, [(0, 13)], exits=(2, 2, 2, 2)), row(text(10), exit=Exit(0.9, False, 2)))
    assert made.flops_total == spans_flops(SHAPE, [(0, 13)])
