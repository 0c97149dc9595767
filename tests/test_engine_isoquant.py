"""Our runtime as a back end: several models, memory that runs out, and every strategy from beginning to end on it."""

from dataclasses import replace

import pytest
import torch

from engine.backends import isoquant
from engine.backends.isoquant import IsoquantBackend, Layout
from engine.backends.transformers import TransformersBackend
from engine.catalog import resolve
from engine.models import ModelHost, load
from engine.run import execute
from engine.runtime.blocks import BLOCK
from engine.runtime.plan import Plan
from kernels.native import build, matrix
from spec.choices import Attention, Dtype
from spec.errors import Cancelled, DoesNotFitError, SpecError
from spec.results import Answered
from spec.run_spec import RunSpec, Runtime
from spec.strategy import STRATEGIES, parse_strategy
from tests.batches import CPU, greedy, quiet, row
from tests.tiny import LetterTask, make_model, make_prm

HOST = ModelHost()
needs_forward = pytest.mark.skipif(build.reason() is not None, reason=f"no native forward: {build.reason()}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("isoquant")
    made = {name: make_model(root / name, seed=i) for i, name in enumerate(("model", "small"))}
    return made | {"gpt2": make_model(root / "gpt2", "gpt2"), "prm": make_prm(root / "prm")}


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: load(resolve(str(folders[name])), CPU, Dtype.FP32) for name in ("model", "small", "gpt2")}


def opened(models, **how):
    models = models if isinstance(models, dict) else {None: models}
    return IsoquantBackend(models, Layout(**({"plan": Plan(4, 64), "longest": 60} | how)))


def drained(backend, rows, on_step=quiet):
    backend.submit(rows)
    found = {}
    while backend.busy:
        found.update(backend.step(on_step))
    return [found[r] for r in rows]


def contexts(one, *texts):
    return [tuple(one.tokenizer.encode(t)) for t in texts]


def alone(one, context, limit):
    found = greedy(one.model, context, limit)
    return found[: found.index(0) + 1] if 0 in found else found


def test_each_model_continues_its_own_rows(loaded):
    models = {None: loaded["model"], "small": loaded["small"], "again": loaded["model"], "other": loaded["gpt2"]}
    (context,) = contexts(loaded["model"], "Question 1\nAnswer:")
    rows = [row(context, 10, (i,), model=name) for i, name in enumerate((None, "small", "other", "again", "small"))]
    expected = [alone(models[r.model], context, 10) for r in rows]
    backend = opened(models)
    if build.reason() is None:
        assert backend.attention == "paged, native forward + paged, native kernel"
    found = drained(backend, rows)
    backend.close()
    assert [g.extension.ids for g in found] == expected
    assert len({tuple(e) for e in expected}) == 3


def test_a_row_whose_context_is_full_ends_at_once(loaded):
    backend = opened(loaded["model"])
    (context,) = contexts(loaded["model"], "abc")
    nothing, something = drained(backend, [row(context, 0), row(context, 3)])
    assert (nothing.extension.ids, nothing.extension.finish, nothing.spans) == ((), "length", ())
    assert len(something.extension.ids) == 3
    backend.close()


def test_the_peak_is_that_of_the_blocks_held(loaded):
    backend = opened(loaded["model"], plan=Plan(1, 64))
    assert backend.kv_bytes_peak == 0
    (context,) = contexts(loaded["model"], "x" * 20)
    drained(backend, [row(context, 8)])
    layers, heads, width, fp32 = 2, 2, 8, 4
    assert backend.kv_bytes_peak == 2 * BLOCK * layers * 2 * heads * width * fp32
    backend.forget()
    assert backend.kv_bytes_peak == 0
    assert drained(backend, [row(context, 1)])[0].cached == 0, "what was forgotten is not found"
    backend.close()


def test_it_wants_more_while_every_model_has_a_place(loaded):
    backend = opened({None: loaded["model"], "small": loaded["small"]}, plan=Plan(2, 64))
    (context,) = contexts(loaded["model"], "x" * 20)
    assert backend.wanting
    assert not backend.busy
    backend.submit([row(context, 9, model="small") for _ in range(2)])
    assert backend.busy
    assert not backend.wanting
    backend.close()


@pytest.mark.parametrize("name", ["model", "gpt2"])
def test_after_it_was_closed_the_baseline_runs_as_before(loaded, name):
    one = loaded[name]
    rows = [row(c, 8) for c in contexts(one, "abc", "Question 7\nAnswer:")]

    def baseline():
        backend = TransformersBackend(one, 4)
        backend.submit(rows)
        found = dict(backend.step(quiet))
        return [found[r].extension.ids for r in rows]

    before = baseline()
    backend = opened(one)
    assert [g.extension.ids for g in drained(backend, rows)] == before
    backend.close()
    assert one.model.config._attn_implementation == one.attention == Attention.SDPA
    assert baseline() == before


def test_what_on_step_raises_comes_through(loaded):
    def stop(tokens):
        raise Cancelled("stop")

    backend = opened(loaded["model"])
    with pytest.raises(Cancelled):
        drained(backend, [row((5, 6), 9)], stop)
    backend.close()


def test_a_sequence_beyond_the_blocks_is_a_result_that_says_what_to_do(loaded):
    backend = opened(loaded["model"], blocks=2)
    with pytest.raises(DoesNotFitError, match=r"more than 32 tokens.*max_new_tokens"):
        drained(backend, [row((5,) * 30, 9)])
    backend.close()


def test_a_cache_that_does_not_fit_is_refused_before_it_runs(loaded, monkeypatch):
    monkeypatch.setattr(isoquant, "available_bytes", lambda device: 10_000)
    with pytest.raises(DoesNotFitError, match="60 tokens"):
        opened(loaded["model"])
    assert loaded["model"].model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("size", "advice"), [(4, "try batch size 2"), (1, "choose a smaller model")])
def test_running_out_of_memory_names_a_batch_size(loaded, monkeypatch, size, advice):
    def fail(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    backend = opened(loaded["model"], plan=Plan(size, 64))
    monkeypatch.setattr(backend._runners[0], "logits", fail)
    with pytest.raises(DoesNotFitError, match=advice):
        drained(backend, [row((5, 6), 9)])
    backend.close()


def test_other_errors_are_not_taken_for_memory(loaded, monkeypatch):
    def fail(batch):
        raise RuntimeError("shapes differ")

    backend = opened(loaded["model"])
    monkeypatch.setattr(backend._runners[0], "logits", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        drained(backend, [row((5, 6), 9)])
    backend.close()


# ---- whole runs


def run(folders, strategy, task=None, model="model", **runtime):
    text = strategy
    for name in ("prm", "small"):
        text = text.replace(name.upper(), str(folders[name]))
    spec = RunSpec(
        str(folders[model]),
        strategy=parse_strategy(text),
        runtime=Runtime(device="cpu", **({"batch_size": 4} | runtime)),
    )
    answers = []
    keep = lambda e: answers.append(e.answer) if isinstance(e, Answered) else None  # noqa: E731
    result = execute(spec, keep, host=HOST, task=task or LetterTask(2))
    return result, {a.problem_id: a for a in answers}


EVERY = {
    "greedy": "greedy",
    "sample": "sample",
    "beam": "beam:width=3",
    "majority": "majority:n=4",
    "weighted": "weighted:n=4,reward=PRM",
    "best-of-n": "best-of-n:n=4,reward=PRM",
    "adaptive": "adaptive:n=6,wave=2",
    "step-beam": "step-beam:n=4,width=2,reward=PRM,max_step_tokens=3",
    "dvts": "dvts:n=4,width=2,reward=PRM,max_step_tokens=3",
    "lookahead": "lookahead:n=4,width=2,reward=PRM,max_step_tokens=3",
    "mcts": "mcts:expansions=4,reward=PRM,max_step_tokens=3",
    "rebase": "rebase:n=4,reward=PRM,max_step_tokens=3",
    "particle": "particle:n=4,reward=PRM,max_step_tokens=3",
    "speculative": "speculative:draft=SMALL",
    "lookup": "lookup",
    "early-exit": "early-exit:threshold=0.3",
    "budget": "budget:max_tokens=8,min_tokens=4",
    "cascade": "cascade:small=SMALL,k=3,n=3",
    "ensemble": "ensemble:others=SMALL,n=3",
}


def test_no_strategy_is_forgotten():
    assert set(EVERY) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", EVERY)
def test_every_strategy_runs_from_beginning_to_end(folders, strategy):
    if strategy == "early-exit" and build.reason() is not None:
        pytest.skip(build.reason())
    result, answers = run(folders, EVERY[strategy])
    m = result.measures
    assert len(answers) == m["n_problems"] == 2
    assert m["n_failed"] == 0
    assert m["flops_no_reuse"] >= m["flops_total"] > 0
    assert m["tokens_generated"] > 0
    assert m["kv_bytes_peak"] > 0
    for a in answers.values():
        assert all(c.text is not None for c in a.candidates)
        assert a.tokens_prompt + a.tokens_cached > 0
    if strategy in ("speculative", "lookup"):
        greedily, wanted = run(folders, "greedy")
        assert [a.candidates[0].text for a in answers.values()] == [wanted[i].candidates[0].text for i in answers], (
            "greedy guesses change no text"
        )
        assert m["tokens_drafted"] >= m["tokens_accepted"]
        assert greedily.measures["tokens_generated"] == m["tokens_generated"]


@pytest.mark.parametrize(
    "runtime",
    [{"batching": "static"}, {"caching": "sequence"}, {"caching": "off"}, {"chunk": 16}, {"backend": "transformers"}],
)
def test_the_answers_do_not_depend_on_how_the_work_is_laid_out(folders, runtime):
    expected, found = (run(folders, "majority:n=3,temperature=1.2", LetterTask(4), **how) for how in ({}, runtime))
    for name, answer in expected[1].items():
        assert [c.text for c in answer.candidates] == [c.text for c in found[1][name].candidates]
    cost = found[0].measures["flops_total"], expected[0].measures["flops_total"]
    assert (cost[0] > cost[1]) == ("caching" in runtime or "backend" in runtime)


def test_a_later_problem_may_be_much_longer_than_those_of_the_first_batch(folders):
    class Uneven(LetterTask):
        def problems(self):
            return [replace(p, question="x" * (90 if i == 3 else 2)) for i, p in enumerate(super().problems())]

    result, answers = run(folders, "greedy", Uneven(4), batch_size=1)
    assert result.measures["n_failed"] == 0
    assert answers["p3"].tokens_prompt == len("x" * 90 + "\nAnswer:")


def test_the_warm_up_leaves_nothing_to_be_found(folders):
    result, answers = run(folders, "greedy", batch_size=1)
    assert answers["p0"].tokens_cached == 0
    assert result.measures["warmup_s"] > 0
    assert result.measures["tokens_cached"] > 0, "questions begin alike"


def test_an_early_exit_that_cannot_run_is_refused_with_its_field(folders):
    with pytest.raises(SpecError, match="before its last layer") as error:
        run(folders, "early-exit", model="gpt2")
    assert error.value.field == "strategy"


@needs_forward
@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.BF16])
def test_a_model_of_its_own_is_in_memory_once_and_comes_back_to_the_bit(folders, dtype):
    one = load(resolve(str(folders["model"])), CPU, dtype)
    before = {name: w.clone() for name, w in one.model.state_dict().items()}
    (context,) = contexts(one, "Question 1\nAnswer:")
    plain = opened(one)
    expected = drained(plain, [row(context, 12)])[0].extension.ids
    plain.close()
    backend = opened(one, sole=True)
    held = sum(w.numel() for w in one.model.base_model.layers.parameters())
    matrices = sum(w.numel() for name, w in before.items() if ".layers." in name and w.dim() == 2)
    assert held == sum(w.numel() for name, w in before.items() if ".layers." in name) - matrices
    assert matrices > 1000
    assert drained(backend, [row(context, 12)])[0].extension.ids == expected
    backend.close()
    after = one.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], w) and after[name].is_contiguous() for name, w in before.items())
    backend.close()  # a second time does nothing
    assert torch.equal(one.model.state_dict()[name := next(iter(before))], before[name])


@needs_forward
def test_a_model_that_finds_no_room_is_given_back_whole(folders, monkeypatch):
    one = load(resolve(str(folders["model"])), CPU, Dtype.FP32)
    before = {name: w.clone() for name, w in one.model.state_dict().items()}
    monkeypatch.setattr(isoquant, "available_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFitError):
        opened(one, sole=True)
    assert all(torch.equal(w, before[name]) for name, w in one.model.state_dict().items())


@needs_forward
def test_a_model_whose_laying_out_fails_is_given_back_whole(folders, monkeypatch):
    one = load(resolve(str(folders["model"])), CPU, Dtype.FP32)
    before = {name: w.clone() for name, w in one.model.state_dict().items()}
    packed, plain = [], matrix.pack

    def pack(weight):
        packed.append(weight)
        if len(packed) == 5:
            raise MemoryError
        return plain(weight)

    monkeypatch.setattr(matrix, "pack", pack)
    with pytest.raises(DoesNotFitError, match="laid out anew"):
        opened(one, sole=True)
    assert len(packed) == 5
    assert all(torch.equal(w, before[name]) for name, w in one.model.state_dict().items())
