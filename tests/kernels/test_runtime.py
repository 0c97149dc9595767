"""Whole models through the runtime, with the Triton kernels for their attention."""

import pytest

from engine.runtime import module_runner, support
from engine.runtime.way import Way
from kernels.dispatch import Machine
from spec.choices import Attention
from tests.batches import batcher, drain, greedy, ids, known, row, text
from tests.kernels.paged import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU tests/test_gpu_engine.py runs whole models")
CONTEXTS = (text(1), text(30), text(30), text(17))


@pytest.fixture(params=[False, True], ids=["ragged", "padded"])
def runner(request, monkeypatch):
    class Runner(module_runner.ModuleRunner):
        def __init__(self, model, shapes, dtype, device, way):
            super().__init__(model, shapes, dtype, device, way, fixed=request.param)

        def allocate(self, count, batch_size=3, longest=48):
            super().allocate(count, batch_size, longest)
            for tensor in (*self._kv.keys, *self._kv.values):
                tensor.fill_(float("nan"))

    monkeypatch.setattr(support, "ModuleRunner", Runner)
    monkeypatch.setattr(support, "machine_of", lambda device: Machine((9, 0), "3.6.0"))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "gpt2", "qwen3"])
def test_greedy_text_is_that_of_generate(architecture, runner):
    """Ragged prompts in pieces, equal contexts that fork, and so few blocks that a sequence is put back."""
    made = batcher(known(architecture), batch_size=3, budget=12, blocks=8, way=Way(attention=Attention.TRITON))
    assert made.runner.name == "paged, Triton"
    try:
        found = drain(made, [row(c, 10, order=(i,)) for i, c in enumerate(CONTEXTS)])
    finally:
        made.close()
    assert ids(found) == [greedy(known(architecture), c, 10) for c in CONTEXTS]
