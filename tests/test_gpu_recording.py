"""CUDA graphs on a GPU, or on the simulated one: what is recorded, what cannot be, what is left where one breaks."""

import functools
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.decoding.requests import Draft
from engine.measure.timing import time_calls
from engine.recording import Recorder, Unrecordable
from engine.runtime import attention
from engine.runtime import forest as forests
from engine.runtime.batch import Batch
from engine.runtime.blocks import BlockPool
from engine.runtime.drafting import LookupDrafter, ModelDrafter
from engine.runtime.graphs import Decoding, Graphs
from engine.runtime.module_runner import ModuleRunner
from engine.runtime.support import runner_for
from engine.runtime.way import Way
from engine.sampling import Sampling
from kernels.decode import triton as decode_kernel
from kernels.forest import triton as forest_kernel
from kernels.forest.plan import plan
from spec.choices import Attention, Fusion
from spec.choices import Graphs as Recording
from tests.batches import PLAIN, batcher, causal, drain, greedy, ids, row, text

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `make gpu-check` on one"),
]
GPU = torch.device("cuda", 0)


def test_a_replay_computes_anew_from_what_lies_there():
    x = torch.arange(6.0, device=GPU)
    graph, found = Recorder(GPU).record(lambda: (x * 2).view(2, 3)[1] + torch.ones(3, device=GPU))
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert found.tolist() == [2 * value + 1] * 3


@pytest.mark.parametrize(
    "work",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: x + torch.tensor([1.0], device=GPU)],
)
def test_what_waits_for_the_gpu_is_found_before_it_is_recorded(work):
    x = torch.ones(4, device=GPU)
    with pytest.raises(Unrecordable, match="synchronizing"):
        Recorder(GPU).record(lambda: work(x))
    usable(x)


def test_a_recording_that_breaks_off_leaves_the_gpu_usable():
    """What waits in words of its own is not looked for, and CUDA refuses it in the middle of the recording."""
    x = torch.ones(4, device=GPU)

    def work():
        torch.cuda.synchronize()
        return x * 2

    with pytest.raises(Unrecordable, match="capturing") as caught:
        Recorder(GPU).record(work)
    assert "previous error" not in str(caught.value), "the end of the recording is not what broke it"
    usable(x)


def test_an_error_that_is_no_matter_of_recording_stays_what_it_is():
    x, calls = torch.ones(4, device=GPU), []

    def work():
        calls.append(x * 2)
        if len(calls) == 3:
            raise KeyError("third")

    with pytest.raises(KeyError, match="third"):
        Recorder(GPU).record(work)
    usable(x)


def usable(x):
    """Memory can be given back, and the next recording works."""
    torch.cuda.empty_cache()
    assert torch.rand(4, device=GPU).isfinite().all()
    graph, found = Recorder(GPU).record(lambda: x + 1)
    x.fill_(6.0)
    graph.replay()
    assert found.tolist() == [7.0] * 4


def test_what_cannot_be_recorded_is_timed_with_the_host_in_it():
    x = torch.ones(4, device=GPU)
    assert time_calls([lambda: x + 1], GPU, 0.01).note is None
    note = time_calls([lambda: x.sum().item()], GPU, 0.01).note
    assert note is not None
    assert "the host's part is in the time" in note


def test_a_model_that_waits_runs_without_graphs_and_says_why(monkeypatch):
    """Mixtures of experts did so, and every recording after theirs failed."""
    model = causal("llama").to(GPU)
    inner = model.model.layers[0].mlp
    plain = inner.forward
    monkeypatch.setattr(inner, "forward", lambda x: plain(x) * float(x.abs().max() > -1))
    made = batcher(model, batch_size=3, blocks=12, way=PLAIN)
    contexts = (text(1), text(18), text(9))
    try:
        found = drain(made, [row(c, 5, order=(i,)) for i, c in enumerate(contexts)])
        assert "no CUDA graphs: called a synchronizing" in made.runner.name
    finally:
        made.close()
    assert ids(found) == [greedy(model, c, 5) for c in contexts]
    usable(torch.ones(4, device=GPU))


TRITON = Way(Attention.TRITON, Fusion.OFF)


@pytest.mark.parametrize("way", [PLAIN, TRITON], ids=["plain", "triton"])
@pytest.mark.parametrize("by_model", [False, True], ids=["lookup", "model"])
def test_guessed_tokens_are_verified_in_recorded_steps(way, by_model, monkeypatch):
    """Of every other step a GPU would spend most on launching it. Guesses of any length stand in steps of one."""
    target = causal("llama").to(GPU)
    drafter, eager, shapes = LookupDrafter(), [], set()
    if by_model:
        runner = runner_for(causal("llama", seed=1, num_hidden_layers=1).to(GPU), GPU, way)
        runner.allocate(30, 3, 60, 2)
        drafter = ModelDrafter(runner, BlockPool(30), 3)
    made = batcher(target, batch_size=3, blocks=20, way=way, drafter=drafter)
    made.runner.allocate(20, 3, 60, 5)
    run, decode = ModuleRunner._run, decode_kernel.decode
    monkeypatch.setattr(ModuleRunner, "_run", lambda *given, **how: eager.append(given[2].m) or run(*given, **how))
    monkeypatch.setattr(
        decode_kernel, "decode", lambda q, *rest, **how: shapes.add(q.shape[1]) or decode(q, *rest, **how)
    )
    contexts = (text(4) * 3, text(18), (7, 8, 9, 7, 8))
    rows = [
        row(c, n, order=(i,), draft=Draft(None, 4, 3))
        for i, (c, n) in enumerate(zip(contexts, (9, 7, 12), strict=True))
    ]
    try:
        found = drain(made, rows)
        assert "CUDA graphs" in made.runner.name
        assert "no CUDA graphs" not in made.runner.name
    finally:
        made.close()
        if by_model:
            runner.close()
    assert ids(found) == [greedy(target, c, n) for c, n in zip(contexts, (9, 7, 12), strict=True)]
    drafted = sum(f.drafted for f in found)
    assert drafted > 0
    assert len(eager) == 1 + by_model, "only prompts are launched piece by piece"
    assert 5 not in shapes, "such a step was first met in the run"


def guesses_are_checked(way):
    """The text is the model's own, with guesses checked beside recorded steps of single tokens."""
    target = causal("llama").to(GPU)
    made = batcher(target, batch_size=2, blocks=20, way=way, drafter=LookupDrafter())
    made.runner.allocate(20, 2, 60, 5)
    try:
        found = drain(made, [row(text(4) * 3, 9, draft=Draft(None, 4, 3))])
        assert made.runner.name.endswith(", CUDA graphs")
    finally:
        made.close()
    assert ids(found) == [greedy(target, text(4) * 3, 9)]
    assert found[0].drafted


REFUSED = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})


@pytest.mark.parametrize("refused", [REFUSED, torch.cuda.OutOfMemoryError])
def test_a_check_that_does_not_fit_runs_as_a_piece_of_a_prompt_does(refused, monkeypatch):
    """Wide heads and long guesses may take more shared memory than a GPU has, their scores more memory than is left."""
    decode = decode_kernel.decode

    def small(q, *rest, **how):
        if q.shape[1] > 1:
            raise refused("out of resource: shared memory")
        return decode(q, *rest, **how)

    monkeypatch.setattr(decode_kernel, "decode", small)
    guesses_are_checked(TRITON)


def test_a_check_that_does_not_fit_where_steps_are_recorded_as_they_come(monkeypatch):
    """Attention in plain PyTorch takes longer for wider tables, so there steps of each width are recorded."""
    gathered = attention.gathered

    def small(q, kv, layer, step, *rest):
        if isinstance(step, Decoding) and step.new > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return gathered(q, kv, layer, step, *rest)

    monkeypatch.setattr(attention, "gathered", small)
    guesses_are_checked(PLAIN)


@pytest.fixture
def short_prefixes(monkeypatch):
    """Few keys and few sequences are worth reading together."""
    monkeypatch.setattr(forests, "plan", functools.partial(plan, least_keys=16, least_sequences=2))


CONTEXTS = (text(33), text(33), text(60))
CASCADE = Way(Attention.CASCADE, Fusion.OFF)


@pytest.mark.usefixtures("short_prefixes")
def test_prefixes_that_a_gpu_cannot_read_together_are_read_by_each_beside_prompts_too(monkeypatch):
    def refuse(*_, **__):
        raise REFUSED("out of resource: shared memory")

    monkeypatch.setattr(forest_kernel, "forest", refuse)
    for graphs in (Recording.AUTO, Recording.OFF):
        found, name = mixed(graphs)
        assert "prefixes read by each after all: out of resource" in name
        assert ids(found) == [greedy(causal("llama").to(GPU), c, 6) for c in CONTEXTS]


@pytest.mark.usefixtures("short_prefixes")
def test_a_plan_outlasts_the_steps_that_feed_prompts_beside_it(monkeypatch):
    plans, steps = [], []
    made, run = forests.plan, ModuleRunner._run
    monkeypatch.setattr(forests, "plan", lambda *given: plans.append(given[2].sequences) or made(*given))
    monkeypatch.setattr(ModuleRunner, "_run", lambda *given, **how: steps.append(given[2].m) or run(*given, **how))
    mixed()
    assert len(steps) > 4, "too few steps fed prompts"
    assert plans.count(2) <= 4, "each step was planned anew"


def mixed(graphs=Recording.AUTO):
    """Two sequences that share keys and write while a long prompt is fed, 8 tokens a step."""
    made = batcher(causal("llama").to(GPU), batch_size=3, blocks=40, budget=10, way=replace(CASCADE, graphs=graphs))
    made.runner.allocate(40, 3, 120, 1)
    try:
        return drain(made, [row(c, 6, order=(i,)) for i, c in enumerate(CONTEXTS)]), made.runner.name
    finally:
        made.close()


def test_a_closed_runner_holds_on_to_no_cache():
    runner = runner_for(causal("llama").to(GPU), GPU, PLAIN)
    runner.allocate(8)
    runner.logits(Batch(*(np.zeros(1, dtype=np.int32),) * 3, np.zeros((1, 1), dtype=np.int32), np.zeros(1, dtype=int)))
    cache = weakref.ref(runner._kv)
    runner.close()
    gc.collect()
    assert cache() is None


def broken_once(monkeypatch, target, error):
    """The first call of a function raises."""
    module, _, name = target.rpartition(".")
    function, calls = getattr(__import__(module, fromlist=[name]), name), []

    def call(*given, **how):
        calls.append(None)
        if len(calls) == 1:
            raise error
        return function(*given, **how)

    monkeypatch.setattr(target, call)


def test_a_model_serves_another_run_where_memory_ran_out_as_it_was_opened(monkeypatch):
    model = causal("llama").to(GPU)
    broken_once(monkeypatch, "engine.runtime.products._joined", torch.cuda.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        runner_for(model, GPU, Way(Attention.TRITON, Fusion.KERNELS))
    assert not [m for m in model.modules() if {"isoquant_step", "forward"} & set(vars(m))]
    runner_for(model, GPU, PLAIN).close()


def test_a_way_that_breaks_as_it_is_made_is_passed_over(monkeypatch):
    """What Triton lacks on a machine, such as a C compiler, shows with the first kernel."""
    broken_once(monkeypatch, "engine.runtime.fusion.choose", RuntimeError("Failed to find C compiler"))
    runner = runner_for(causal("llama").to(GPU), GPU, Way(Attention.TRITON))
    assert "fused" not in runner.name.partition("for a faster way failed")[0]
    assert "Failed to find C compiler" in runner.name
    runner.close()


def test_models_that_look_for_padding_are_recorded():
    """transformers warns of it, and to look it waits for the GPU. Our batches have none."""
    model = causal("gpt2").to(GPU)
    model.config.pad_token_id = 0
    made = batcher(model, batch_size=2, blocks=12, way=PLAIN)
    try:
        found = drain(made, [row(text(9), 4)])
        assert "no CUDA graphs" not in made.runner.name
    finally:
        made.close()
    assert ids(found) == [greedy(model, text(9), 4)]
    assert not [m for m in model.modules() if "warn_if_padding_and_no_attention_mask" in vars(m)]


@pytest.mark.parametrize("new", [1, 5])
def test_scores_are_those_of_the_rows_that_are_wanted(new):
    step = Graphs(lambda s: (s.positions * 10 + s.tokens).float()[:, None], 3, GPU, width=2, new=new)
    tokens, positions = np.array([0, 3, 5], dtype=np.int32), np.array([1, 2, 3], dtype=np.int32)
    slots, tables = np.array([2, 0, 1], dtype=np.int32), np.array([[0, 0], [1, 0], [2, 0]], dtype=np.int32)

    def batch(*wanted):
        return Batch(tokens, positions, slots, tables, np.array(wanted, dtype=np.int32))

    assert step.serves(batch(1, 2))
    assert step.logits(batch(1, 2)).tolist() == [[23.0], [35.0]]
    assert step.logits(batch(0, 1, 2)).tolist() == [[10.0], [23.0], [35.0]]
    assert not step.serves(batch()), "nobody would wait until the step's arrays are copied"


@pytest.mark.parametrize("way", [PLAIN, TRITON], ids=["plain", "triton"])
def test_sampled_texts_are_the_same_with_recorded_steps(way):
    """Guesses are taken over by the same numbers, whether steps are recorded or not."""
    target, found = causal("llama"), []
    for device, how in ((torch.device("cpu"), PLAIN), (GPU, way)):
        made = batcher(target.to(device), batch_size=3, blocks=20, way=how, drafter=LookupDrafter())
        made.runner.allocate(20, 3, 60, 5)
        rows = [row(text(4) * 3, 8, (i,), sampling=Sampling(0.3), key=i + 5, draft=Draft(None, 4, 3)) for i in range(2)]
        try:
            found.append(drain(made, rows))
            assert "no CUDA graphs" not in made.runner.name
        finally:
            made.close()
    assert ids(found[0]) == ids(found[1])
    assert any(f.drafted for f in found[0])
