"""What the simulated GPU refuses, counts and spoils, as a real one does. Its tests run in a process of its own."""

import os

import numpy as np
import pytest
import torch

if os.environ.get("ISOQUANT_SIMULATED_GPU") != "1":
    pytest.skip("needs the simulated GPU", allow_module_level=True)

import triton
import triton.language as tl

from engine.runtime import graphs
from engine.runtime.batch import Batch
from engine.runtime.way import Way
from spec.choices import Attention, Fusion
from tests.batches import batcher, causal, row, text
from tests.simulator.waiting import WAITS

GPU = torch.device("cuda", 0)


def test_the_memories_are_kept_apart():
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    for mixed in (lambda: x + y, lambda: torch.cat([x, y]), lambda: x @ y, lambda: torch.where(x > 0, x, y)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(x)
    assert (x + 1).device == x[1:].device == torch.zeros_like(x).device == x.to(torch.float16).device == GPU
    assert x.cpu().device == y.device == torch.device("cpu")
    assert (x * torch.tensor(2.0)).device == GPU  # a number of the host may be read
    model = torch.nn.Linear(3, 2).to("cuda")
    assert model.weight.device == model(x).device == GPU


def test_what_nobody_wrote_is_rubbish():
    assert torch.empty(3, device="cuda").isnan().all()
    assert torch.empty(3, device="cuda", dtype=torch.int64)[0] != 0
    assert not torch.zeros(3, device="cuda").isnan().any()


def test_waiting_is_counted():
    x = torch.ones(3, device="cuda")
    WAITS.clear()
    x.sum()
    assert not WAITS
    x.tolist(), x.sum().item(), x.cpu(), x.nonzero(), x[torch.tensor([0])], x.copy_(torch.ones(3))
    assert sum(WAITS.values()) == 6


def test_page_locked_memory_must_wait_for_its_copy():
    host, x = torch.ones(3, pin_memory=True), torch.zeros(3, device="cuda")
    x.copy_(host, non_blocking=True)
    host.fill_(2.0)
    with pytest.raises(AssertionError, match="page-locked"):
        x.sum().item()
    x.copy_(host, non_blocking=True)
    x.sum().item()
    host.fill_(3.0)
    x.sum().item()


def test_a_number_of_the_host_is_recorded_as_it_was():
    x, factor, graph = torch.ones(2, device="cuda"), [2.0], torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = x * factor[0]
    factor[0] = 5.0
    x.fill_(3.0)
    graph.replay()
    assert found.tolist() == [6.0, 6.0]


@triton.jit
def _doubled(X, OUT, N: tl.constexpr):
    i = tl.program_id(0)
    tl.store(OUT + i, tl.load(X + i) * 2)


@triton.jit
def _running(X, OUT, N: tl.constexpr):
    i = tl.program_id(0)
    before = tl.load(OUT + i - 1, mask=i > 0, other=0.0)
    tl.store(OUT + i, before + tl.load(X + i))


def test_kernels_take_what_lies_on_the_gpu_and_are_recorded():
    x, out = torch.arange(8.0, device="cuda"), torch.zeros(8, device="cuda")
    with pytest.raises(ValueError, match="cpu tensor"):
        _doubled[(8,)](x.cpu(), out, N=8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _doubled[(8,)](x, out, N=8)
    x.add_(1)
    graph.replay()
    assert out.tolist() == [2.0 * (i + 1) for i in range(8)]


def test_programs_of_a_kernel_come_in_any_order():
    x, out = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")
    _running[(8,)](x, out, N=8)
    assert out.tolist() != [i + 1.0 for i in range(8)], "it counts on the program before it"


@pytest.mark.parametrize(
    "way", [Way(attention=Attention.PLAIN), Way(Attention.TRITON, Fusion.OFF)], ids=["plain", "triton"]
)
def test_a_decoding_step_waits_once_for_its_tokens(way):
    """What else waited would let the GPU stand still: its launches take longer than its work."""
    made = batcher(causal("llama").to(GPU), batch_size=2, blocks=16, way=way)
    made.submit([row(text(n), 12, order=(n,)) for n in (3, 5)])
    try:
        for _ in range(3):
            made.step(lambda _: None)
        WAITS.clear()
        made.step(lambda _: None)
        assert dict(WAITS) == {"tolist": 1}
    finally:
        made.close()


def test_a_step_reads_what_was_filled_in_last():
    """Two steps from one recording, whose tables, positions and tokens differ."""
    scores = []
    step = graphs.Graphs(lambda s: scores.append(s) or (s.positions + s.tokens).float()[:, None], 3, GPU, width=4)
    for at in (5, 9):
        one = np.array([at], dtype=np.int32)
        tables = np.array([[0, 1, 2, 0]], dtype=np.int32)
        found = step.logits(Batch(one, one, np.zeros(1, np.int32), tables, np.zeros(1, np.int32)))
        assert found.tolist() == [[2.0 * at]]
    assert len(scores) == 3, "each step ran the model again"
