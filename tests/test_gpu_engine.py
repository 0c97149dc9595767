"""The engine on CUDA against the engine on the CPU. `make gpu-check` runs these; they need an NVIDIA GPU."""

import functools
import os
from dataclasses import fields, replace

import pytest
import torch

from engine.measure.hardware import machine
from engine.models import ModelHost
from engine.run import execute
from engine.runtime import forest as forests
from engine.runtime import sparse, support
from engine.runtime.products import Product
from kernels.dispatch import triton_reason
from kernels.forest.plan import plan
from spec.choices import Attention, Dtype, Fusion, Graphs, KvDtype
from spec.errors import DoesNotFitError
from spec.recipe import parse_recipe
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority, parse_strategy
from tests.tiny import ARCHITECTURES, LetterTask, make_model, make_prm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `make gpu-check` on one"),
]


BACKENDS = ["isoquant", "transformers"]
SIMULATED = os.environ.get("ISOQUANT_SIMULATED_GPU") == "1"  # where a kernel's program takes milliseconds
TASK = LetterTask(n=3, default_max_new_tokens=4) if SIMULATED else LetterTask()


def run(
    model, device, *, dtype=Dtype.FP32, strategy=None, batch=4, attention=Attention.AUTO, backend="isoquant",
    runtime=None, kv_cache=KvDtype.AUTO, recipe="",
):  # fmt: skip
    runtime = runtime or Runtime(backend=backend, attention=attention)
    spec = RunSpec(
        str(model),
        Precision(dtype, kv_cache),
        replace(runtime, device=device, batch_size=batch),
        strategy or Greedy(),
        TaskSpec("lab-words"),
        compression=parse_recipe(recipe),
    )
    answers = []
    result = execute(spec, lambda e: answers.append(e.answer) if hasattr(e, "answer") else None, task=TASK)
    return result, {a.problem_id: [c.text for c in a.candidates] for a in answers}


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    """Which way runs a model is tried with less text on the simulated GPU."""
    if SIMULATED:
        monkeypatch.setattr(support, "_TEXTS", (17, 2))
        monkeypatch.setattr(support, "_PIECES", ((15, 1), (1, 0), (1, 1)))


@pytest.fixture(autouse=True)
def exact_matmul():
    """fp32 as on the CPU: TF32 would round the operands."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_greedy_texts_equal_the_cpus_in_fp32(tmp_path, architecture, backend):
    model = make_model(tmp_path / "m", architecture)
    result, found = run(model, "cuda", backend=backend)
    assert found == run(model, "cpu")[1]
    if backend == "isoquant" and triton_reason(machine("cuda")) is None:
        assert "Triton" in result.environment["attention"], "a fallback ran"


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_equal_the_cpus_in_fp32(tmp_path, backend):
    model = make_model(tmp_path / "m")
    strategy = Majority(n=4)
    found = run(model, "cuda", strategy=strategy, backend=backend)[1]
    assert found == run(model, "cpu", strategy=strategy, batch=7)[1]


RECIPES = [
    *("int8", "int4:group=32", "int4:group=32,ranges=symmetric", "nf4:group=32", "int8-dynamic", "int8-static"),
    *("prune:structure=neurons,level=0.5", "prune:structure=2:4", "lowrank:ratio=0.3", "lowrank:ratio=0.3+int8"),
]


@pytest.mark.parametrize("fusion", [Fusion.KERNELS, Fusion.OFF])
@pytest.mark.parametrize("recipe", RECIPES)
def test_compressed_models_write_what_they_write_on_the_cpu(tmp_path, monkeypatch, recipe, fusion):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    model = make_model(tmp_path / "m", hidden_size=64, intermediate_size=96)
    expected = run(model, "cpu", recipe=recipe)[1]
    result, found = run(model, "cuda", recipe=recipe, runtime=Runtime(attention=Attention.TRITON, fusion=fusion))
    assert found == expected
    assert result.environment["simulated"] is None


STRATEGIES = [
    *(
        "beam:width=2",
        "adaptive",
        "budget",
        "best-of-n:n=3",
        "step-beam:n=4,width=2",
        "lookahead:n=4,width=2",
        "dvts:n=2,width=2",
    ),
    *(
        "mcts",
        "rebase:n=4",
        "particle:n=3",
        "speculative",
        "speculative:temperature=0.8",
        "lookup",
        "lookup:temperature=1",
    ),
    *("cascade", "ensemble"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_writes_what_it_writes_on_the_cpu(tmp_path, strategy):
    """With attention in plain PyTorch, for its numbers are those of the CPU: what is tried is all around it."""
    model, small = make_model(tmp_path / "m"), make_model(tmp_path / "small", seed=3, num_hidden_layers=1)
    wanted = parse_strategy(strategy)
    models = {"reward": str(make_prm(tmp_path / "prm")), "draft": str(small), "small": str(small), "others": str(small)}
    names = {f.name for f in fields(wanted)}
    wanted = replace(wanted, **{name: value for name, value in models.items() if name in names})
    result, found = run(model, "cuda", strategy=wanted, runtime=Runtime(attention=Attention.PLAIN))
    assert found == run(model, "cpu", strategy=wanted)[1]
    assert "no CUDA graphs" not in result.environment["attention"]


WAYS = {
    "plain": Runtime(attention=Attention.PLAIN),
    "plain, no graphs": Runtime(attention=Attention.PLAIN, graphs=Graphs.OFF),
    "triton": Runtime(attention=Attention.TRITON, fusion=Fusion.OFF),
    "triton, no graphs": Runtime(attention=Attention.TRITON, fusion=Fusion.OFF, graphs=Graphs.OFF),
    "fused": Runtime(attention=Attention.TRITON, fusion=Fusion.KERNELS, graphs=Graphs.ON),
    "fused, no graphs": Runtime(attention=Attention.TRITON, fusion=Fusion.KERNELS, graphs=Graphs.OFF),
    "shared": Runtime(attention=Attention.CASCADE, fusion=Fusion.KERNELS, graphs=Graphs.ON),
    "eager": Runtime(backend="transformers", attention=Attention.EAGER),
    "math": Runtime(backend="transformers", attention=Attention.SDPA_MATH),
    "efficient": Runtime(backend="transformers", attention=Attention.SDPA_EFFICIENT),
    "flex": Runtime(backend="transformers", attention=Attention.FLEX),
    "compiled": Runtime(backend="transformers", fusion=Fusion.COMPILE),
}


SLOW = ("flex", "compiled")  # what they compile takes minutes


@pytest.mark.timeout(240)
@pytest.mark.parametrize("way", [pytest.param(w, marks=[pytest.mark.slow] if w in SLOW else []) for w in WAYS])
def test_every_way_writes_what_the_cpu_writes_in_fp32(tmp_path, way, monkeypatch):
    """Greedy and sampled, for the samples of a problem are where shared keys and the fused sampler come in."""
    if WAYS[way].attention in (Attention.TRITON, Attention.CASCADE) and triton_reason(machine("cuda")):
        pytest.skip(str(triton_reason(machine("cuda"))))
    model, shared = make_model(tmp_path / "m"), []
    update = forests.Forest.update
    monkeypatch.setattr(forests.Forest, "update", lambda *given: shared.append(update(*given)) or shared[-1])
    # The prompts are shorter than what is worth sharing.
    monkeypatch.setattr(forests, "plan", functools.partial(plan, least_keys=16, least_sequences=2))
    for strategy in (Greedy(), Majority(n=4)):
        result, found = run(model, "cuda", strategy=strategy, runtime=WAYS[way])
        assert found == run(model, "cpu", strategy=strategy)[1]
        name = result.environment["attention"]
        assert ("fused" in name) == (WAYS[way].fusion is Fusion.KERNELS)
        if WAYS[way].graphs is Graphs.ON:
            assert name.endswith("CUDA graphs")
        assert "failed" not in name
    assert any(shared) == (way == "shared"), (
        "keys were read together where they should not be, or not where they should"
    )


@pytest.mark.parametrize("kind", [KvDtype.INT8, KvDtype.FP8])
def test_a_cache_of_one_byte_runs_through_the_kernels(tmp_path, kind):
    if kind is KvDtype.FP8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 before compute capability 8.9")
    model = make_model(tmp_path / "m")
    result, texts = run(model, "cuda", kv_cache=kind)
    assert f"{kind} cache" in result.environment["attention"]
    assert len(texts) == TASK.n


@pytest.mark.parametrize("dtype", [Dtype.BF16, Dtype.FP16])
@pytest.mark.parametrize("attention", [Attention.AUTO, Attention.EAGER, Attention.SDPA])
def test_half_precision_runs_and_is_measured(tmp_path, dtype, attention):
    backend = BACKENDS[attention is not Attention.AUTO]
    result, texts = run(make_model(tmp_path / "m"), "cuda", dtype=dtype, attention=attention, backend=backend)
    assert len(texts) == TASK.n
    assert result.measures["peak_memory_bytes"] > 0
    assert result.measures["throughput_tok_s"] > 0
    assert "cuda" in result.environment["device"]


def test_energy_comes_from_the_counter_or_says_why_not(tmp_path):
    result, _ = run(make_model(tmp_path / "m"), "cuda")
    assert result.energy_method in ("nvml_counter", "nvml_power") or result.reasons["energy_j"]
    if result.energy_method == "nvml_counter":
        # A run this short covers few updates of the counter, so the reading must say that it is not to be trusted.
        assert result.energy_valid is not None
        assert result.energy_valid or result.energy_reason


@pytest.mark.alone
def test_a_batch_that_cannot_fit_is_a_plain_error_and_the_next_run_works(tmp_path):
    total = torch.cuda.get_device_properties(0).total_memory
    ballast = torch.empty(int(torch.cuda.mem_get_info()[0] - 600e6), dtype=torch.uint8, device="cuda")
    host = ModelHost()
    spec = RunSpec("shape:qwen2.5-0.5b", Precision(Dtype.BF16), Runtime(device="cuda"), task=TaskSpec(limit=1))
    with pytest.raises(DoesNotFitError) as caught:
        execute(spec, host=host)
    assert 0 <= (caught.value.available_bytes or 0) < total
    del ballast
    torch.cuda.empty_cache()
    small = replace(spec, task=replace(spec.task, max_new_tokens=4))
    assert execute(small, host=host).measures["accuracy"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(512, 256), (4096, 1024)])
def test_two_zeros_in_four_are_skipped_by_sparse_tensor_cores(n, k, dtype):
    weight = torch.randn(n, k, device="cuda", dtype=dtype)
    groups = weight.view(n, -1, 4)
    thin = (groups * (groups.abs() >= groups.abs().topk(2, -1).values[..., 1:])).view(n, k)
    assert sparse.compressed(weight) is None, "a dense matrix is no matter of theirs"
    made = sparse.compressed(thin)
    if torch.cuda.get_device_capability() < sparse.CAPABILITY:
        assert made is None
        return
    assert made is not None, "PyTorch's library refuses a usual shape, or computes it wrongly"
    assert torch.equal(made.to_dense(), thin)
    linear, modules = torch.nn.functional.linear, [torch.nn.Linear(k, n, bias=False, device="cuda", dtype=dtype)]
    modules[0].weight.data = thin.clone()
    product = Product(modules)
    assert product.is_sparse
    for rows in (1, 8, 37):
        x = torch.randn(rows, k, device="cuda", dtype=dtype)
        expected = linear(x, thin)
        for _ in range(2):
            found = product(x)
        assert float((found - expected).float().norm() / expected.float().norm()) < sparse.TOLERANCE
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = product(x)
        graph.replay()
        torch.testing.assert_close(again, found)
    product.close()
    assert torch.equal(modules[0].weight.data, thin)
