"""Everything that `make gpu-check` launches is compiled for a Hopper GPU here, as Triton specialises it there."""

import pytest
import torch

from tests.simulator import compiling

if not compiling.is_installed():
    pytest.skip("needs the simulated GPU, whose kernels are only compiled", allow_module_level=True)

from bench.gpu_kernels import cases
from engine.laboratory import sides
from engine.laboratory.cases import OPS
from engine.laboratory.measure import here, sides_of
from engine.runtime import support
from engine.runtime.way import Way
from kernels.compiled import read
from spec.choices import Attention, Fusion, KvDtype
from tests.batches import batcher, causal, row, text
from tests.exhaustive import rare
from tests.kernels.quantized import quantized

GPU = torch.device("cuda", 0)
LARGEST = 2**31  # bytes of a case: what lies in memory is not looked at


@pytest.fixture(autouse=True)
def _zeros(monkeypatch):
    """Kernels leave what was there: numbers that index must be some."""
    monkeypatch.setattr("tests.simulator.operations.poison", lambda x: x.zero_() if x.numel() < 2**20 else x)


@pytest.fixture(autouse=True)
def made():
    """Kernels that were launched in a test, by name; afterwards each is looked at as it was compiled."""
    compiling.MADE.clear()
    compiling.FAILED.clear()
    yield lambda: {name.removeprefix("kernels.") for name, *_ in compiling.MADE.values()}
    assert not compiling.FAILED
    for name, kernel, words in compiling.MADE.values():
        made = read(kernel)
        assert made.stack == 0, f"{name} spills: {words}"
        assert made.shared <= compiling.SHARED_BYTES, f"{name} takes {made.shared} bytes of shared memory: {words}"
        assert made.registers <= 255


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", OPS)
def test_what_is_measured_of_a_kernel_compiles(op, monkeypatch):
    def zeros(device, seed, name):
        return lambda *shape: torch.zeros(shape, dtype=sides.dtype(name), device=device)

    monkeypatch.setattr(sides, "random", zeros)
    device, ran = here("cuda"), 0
    for case in cases(op):
        if case.cost().bytes_moved > LARGEST:
            continue
        inputs = OPS[op].inputs(case, GPU, 0)
        for side in sides_of(op):
            if side.ours and side.name != "gathered" and side.reason(case, device) is None:
                with torch.inference_mode():
                    side.prepare(case, inputs).run()
                ran += 1
    assert ran


LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
QWEN = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
FUSED = Way(Attention.CASCADE, Fusion.KERNELS)
STEPS = {
    "fused": (FUSED, {}),
    "not fused": (Way(Attention.CASCADE, Fusion.OFF), {}),
    "int8 cache": (Way(Attention.CASCADE, Fusion.KERNELS, kv_cache=KvDtype.INT8), {}),
    "fp8 cache": (Way(Attention.CASCADE, Fusion.KERNELS, kv_cache=KvDtype.FP8), {}),
    "int8": (FUSED, {"kind": "int8"}),
    "int4": (FUSED, {"kind": "int4", "group": 128}),
    "nf4": (FUSED, {"kind": "nf4", "group": 64}),
    "fp8": (FUSED, {"kind": "fp8"}),
    "int8 times int8": (FUSED, {"kind": "int8", "activation": "dynamic"}),
}

USUAL = ("fused", "int8 cache", "int4")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", [w if w in USUAL else rare(w) for w in STEPS])
@pytest.mark.parametrize(("name", "changes", "dim"), [("llama", LLAMA, 128), rare("qwen2", QWEN, 64)])
def test_what_a_run_launches_compiles(name, changes, dim, way, made, monkeypatch):
    """One layer of the models that are measured: prompts, batches with a prefix in common, checks of four guesses."""
    how, weights = STEPS[way]
    monkeypatch.setattr(support, "_error", lambda runner, *_: runner.allocate(64, 6, 256))
    model = causal(name, num_hidden_layers=1, vocab_size=512, head_dim=dim, **changes).to(torch.bfloat16)
    model = (quantized(model, **weights) if weights else model).to(GPU)
    run = batcher(model, batch_size=6, budget=512, blocks=64, way=how)
    run.runner.allocate(64, 6, 320, 5)
    try:
        run.submit([row([*range(3, 303)], 6, order=(i,)) for i in range(5)] + [row(text(9), 8)])
        while run.busy:
            run.step(lambda _: None)
    finally:
        run.close()
    expected = {"prefill.triton._prefill", "decode.triton._attend", "forest.triton._attend", "forest.triton._merge"}
    if how.fusion is Fusion.KERNELS:
        expected |= {"norm.triton._add_rms_norm", "rope.triton._rotate_and_store", "swiglu.triton._gated"}
    assert made() >= expected
    linear = {kernel for kernel in made() if kernel.startswith("linear.")}
    if how.fusion is Fusion.KERNELS and not weights:
        assert linear == {"linear.dense._vector"}, "of products, only that with a single row has a kernel of ours"
    else:
        assert bool(linear) == bool(weights)
