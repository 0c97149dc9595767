"""The engine on CUDA against the engine on the CPU. `make gpu-check` runs these; they need an NVIDIA GPU."""

from dataclasses import replace

import pytest
import torch

from engine.models import ModelHost
from engine.run import execute
from spec.choices import Attention, Dtype
from spec.errors import DoesNotFitError
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority
from tests.tiny import ARCHITECTURES, LetterTask, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `make gpu-check` on one"),
]


BACKENDS = ["isoquant", "transformers"]


def run(model, device, *, dtype=Dtype.FP32, strategy=None, batch=4, attention=Attention.AUTO, backend="isoquant"):
    spec = RunSpec(
        str(model),
        Precision(dtype),
        Runtime(backend=backend, device=device, batch_size=batch, attention=attention),
        strategy or Greedy(),
        TaskSpec("lab-words"),
    )
    answers = []
    result = execute(spec, lambda e: answers.append(e.answer) if hasattr(e, "answer") else None, task=LetterTask())
    return result, {a.problem_id: [c.text for c in a.candidates] for a in answers}


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
    assert run(model, "cuda", backend=backend)[1] == run(model, "cpu")[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_equal_the_cpus_in_fp32(tmp_path, backend):
    model = make_model(tmp_path / "m")
    strategy = Majority(n=4)
    found = run(model, "cuda", strategy=strategy, backend=backend)[1]
    assert found == run(model, "cpu", strategy=strategy, batch=7)[1]


@pytest.mark.parametrize("dtype", [Dtype.BF16, Dtype.FP16])
@pytest.mark.parametrize("attention", [Attention.AUTO, Attention.EAGER, Attention.SDPA])
def test_half_precision_runs_and_is_measured(tmp_path, dtype, attention):
    backend = BACKENDS[attention is not Attention.AUTO]
    result, texts = run(make_model(tmp_path / "m"), "cuda", dtype=dtype, attention=attention, backend=backend)
    assert len(texts) == LetterTask().n
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
