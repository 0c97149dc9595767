"""Whole models through the runtime, with the Triton kernels for their attention and between their matrix products."""

import functools
import types

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.runtime import forest as forests
from engine.runtime import module_runner, support
from engine.runtime.batch import Batch
from engine.runtime.sampler import NotNumbers, choose
from engine.runtime.support import Unsupported, runner_for
from engine.runtime.way import Way
from engine.sampling import Sampling
from kernels.decode import triton as decode_kernel
from kernels.dispatch import Machine
from kernels.forest import triton as forest_kernel
from kernels.forest.plan import plan
from kernels.linear import dynamic, reference
from kernels.linear import triton as linear_kernel
from kernels.linear.packing import unpack
from kernels.linear.weight import Kind, QuantizedWeight
from kernels.norm import triton as norm
from kernels.prefill import triton as prefill_kernel
from kernels.rope import triton as rope
from kernels.sampler import triton as sampler_kernel
from kernels.swiglu import triton as swiglu
from spec.choices import Attention, Fusion, KvDtype
from tests.batches import CPU, NATIVE, PLAIN, batcher, causal, drain, greedy, ids, known, plain, row, text
from tests.kernels.paged import DEVICE
from tests.kernels.quantized import quantized

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU tests/test_gpu_engine.py runs whole models")
# In the interpreter each head of each token takes its time.
CONTEXTS = (text(1), text(18), text(18), text(9))
TRITON = Way(attention=Attention.TRITON, fusion=Fusion.OFF)


@pytest.fixture(params=[False, True], ids=["ragged", "padded"])
def runner(request, monkeypatch):
    class Runner(module_runner.ModuleRunner):
        def __init__(self, model, shapes, dtype, device, way):
            super().__init__(model, shapes, dtype, device, way, fixed=request.param)

        def allocate(self, count, batch_size=3, longest=48, new=1):
            super().allocate(count, batch_size, longest, new)
            whole = (t for t in (*self._kv.keys, *self._kv.values) if t.dtype != torch.int8)
            for tensor in (*whole, *self._kv.key_scales, *self._kv.value_scales):
                tensor.view(torch.uint8).fill_(255) if tensor.itemsize == 1 else tensor.fill_(float("nan"))

    monkeypatch.setattr(support, "ModuleRunner", Runner)
    on_a_gpu(monkeypatch)


def on_a_gpu(monkeypatch):
    """The rules of a GPU, for the kernels run here in the interpreter."""
    monkeypatch.setattr(support, "machine_of", lambda device: Machine((9, 0), "3.6.0"))
    monkeypatch.setattr(support, "_whole", lambda *given: "another way was chosen")
    candidates = support._candidates
    monkeypatch.setattr(
        support, "_candidates", lambda model, device, *more: candidates(model, torch.device("cuda"), *more)
    )
    # A shorter trial than on a GPU.
    monkeypatch.setattr(support, "_TEXTS", (17, 2))
    monkeypatch.setattr(support, "_PIECES", ((15, 1), (1, 0), (1, 1)))
    make = support.ModuleRunner
    monkeypatch.setattr(support, "ModuleRunner", lambda m, shapes, dtype, device, way: make(m, shapes, dtype, CPU, way))


def check(architecture, way, name, limit=5, blocks=4):
    """Ragged prompts in pieces, equal contexts that fork, and so few blocks that a sequence is put back."""
    made = batcher(known(architecture), batch_size=3, budget=12, blocks=blocks, way=way)
    assert made.runner.name == name
    try:
        found = drain(made, [row(c, limit, order=(i,)) for i, c in enumerate(CONTEXTS)])
    finally:
        made.close()
    assert ids(found) == [greedy(known(architecture), c, limit) for c in CONTEXTS]


@pytest.mark.parametrize(
    ("architecture", "runner"),
    [*((a, True) for a in ("llama", "gemma2", "gpt_oss", "gpt2", "qwen3")), ("llama", False), ("gpt_oss", False)],
    indirect=["runner"],
)
def test_greedy_text_is_that_of_generate(architecture, runner):
    check(architecture, TRITON, "paged, Triton")


@pytest.mark.parametrize("runner", [True], ids=["padded"], indirect=True)  # prompts are ragged there too
@pytest.mark.parametrize("architecture", NATIVE)
def test_fused_layers_write_what_generate_writes(architecture, runner):
    check(architecture, Way(attention=Attention.TRITON), "paged, Triton, fused kernels", limit=3)
    # The model is as it was: its own modules, its own attention, the same numbers.
    model, fresh = known(architecture), causal(architecture)
    assert not [m for m in model.modules() if "forward" in vars(m)]
    assert torch.equal(plain(model, text(20)), plain(fresh, text(20)))


@pytest.mark.parametrize("runner", [True], ids=["padded"], indirect=True)
@pytest.mark.parametrize("fusion", [Fusion.OFF, Fusion.KERNELS])
@pytest.mark.parametrize("kind", [KvDtype.INT8, KvDtype.FP8])
def test_a_cache_of_one_byte_gives_nearly_the_same_scores(kind, fusion, runner):
    """Both ways to fill it, and both kernels that read it, against the plain path with the same cache."""
    model, rows = known("qwen3"), np.arange(21, dtype=np.int32)
    tables = np.array([[2, 0, 1, 3]], dtype=np.int32)
    tokens, none = np.array(text(21), dtype=np.int32), np.zeros_like(rows)
    steps = [
        Batch(tokens[:20], rows[:20], none[:20], tables, rows[:20]),
        Batch(tokens[20:], rows[20:], none[:1], tables, none[:1]),
    ]
    scores = []
    for way in (Way(attention=Attention.PLAIN, kv_cache=kind), Way(Attention.TRITON, fusion, kv_cache=kind)):
        made = runner_for(model, CPU, way)
        made.allocate(4)
        scores.append(torch.cat([made.logits(step).clone() for step in steps]))
        made.close()
    assert made.name.startswith(f"paged, Triton, {'fused kernels, ' if fusion is Fusion.KERNELS else ''}{kind} cache")
    # Rounding to fp8 the interpreter loses a carry: 1.97 becomes 1 and not 2.
    loose = kind is KvDtype.FP8 and fusion is Fusion.KERNELS
    assert (scores[0] - scores[1]).norm() / scores[0].norm() < (0.15 if loose else 1e-2)


@pytest.mark.parametrize(("architecture", "runner"), [("llama", False), ("gpt_oss", True)], indirect=["runner"])
def test_a_prefix_that_is_read_once_changes_no_text(architecture, runner, monkeypatch):
    """Samples of two prompts, of which one has its own; a sequence that ends early makes the rest a new plan."""
    monkeypatch.setattr(forests, "plan", functools.partial(plan, least_keys=16, least_sequences=2))
    calls = []
    for name in ("forest", "decode"):
        module = {"forest": forest_kernel, "decode": decode_kernel}[name]
        count(monkeypatch, module, name, calls)
    contexts = [text(33)] * 2 + [text(33)[:32] + text(5)] + [text(20)]
    limits = [4, 2, 4, 4]
    made = batcher(known(architecture), batch_size=4, budget=64, blocks=16, way=Way(Attention.CASCADE, Fusion.OFF))
    assert made.runner.name == "paged, Triton, prefixes read once"
    try:
        found = drain(made, [row(c, n, order=(i,)) for i, (c, n) in enumerate(zip(contexts, limits, strict=True))])
    finally:
        made.close()
    assert ids(found) == [greedy(known(architecture), c, n) for c, n in zip(contexts, limits, strict=True)]
    assert calls.count("forest") >= 2 * 2, "shared keys were read for each sequence"


@pytest.mark.parametrize("runner", [False], ids=["ragged"], indirect=True)
@pytest.mark.parametrize("attention", [Attention.TRITON, Attention.CASCADE])
def test_sequences_that_write_beside_a_prompt_are_attended_as_without_it(attention, runner, monkeypatch):
    """Two that share a prefix of two blocks, then pieces of prompts, of which one is a single token."""
    monkeypatch.setattr(forests, "plan", functools.partial(plan, least_keys=16, least_sequences=2))
    calls = []
    for module, name in ((forest_kernel, "forest"), (decode_kernel, "decode"), (prefill_kernel, "prefill")):
        count(monkeypatch, module, name, calls)
    model, prefix = known("llama"), np.arange(32)
    tables = np.array([[0, 1, 2], [0, 1, 3], [4, 5, 5], [6, 6, 6]], dtype=np.int32)

    def batch(*pieces):
        """Of (slot, positions); the scores of all rows are wanted."""
        slots = np.concatenate([np.full(len(at), slot) for slot, at in pieces]).astype(np.int32)
        positions = np.concatenate([at for _, at in pieces]).astype(np.int32)
        tokens = (7 * positions + 5 * slots * (positions >= 32) + 3) % 90
        return Batch(tokens.astype(np.int32), positions, slots, tables, np.arange(len(slots), dtype=np.int32))

    first = [batch((0, prefix)), batch((2, prefix[:9]), (0, prefix[-1:] + 1))]
    mixed = batch((1, prefix[-1:] + 1), (0, prefix[-1:] + 2), (2, prefix[9:14]), (3, prefix[:1]))
    scores = []
    for way in (Way(attention=Attention.PLAIN), Way(attention=attention, fusion=Fusion.OFF)):
        made = runner_for(model, CPU, way)
        made.allocate(8)
        for step in first:
            made.logits(step)
        calls.clear()
        scores.append(made.logits(mixed).clone())
        made.close()
    torch.testing.assert_close(*scores)
    layers = model.config.num_hidden_layers
    assert calls == ["decode" if attention is Attention.TRITON else "forest", "prefill"] * layers


def test_a_plan_holds_until_a_sequence_is_another_one():
    made = []

    def planned(*given, **more):
        made.append(plan(*given, **more, least_keys=16, least_sequences=2))
        return made[-1]

    tables = np.array([[1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 5, 9]], dtype=np.int32)
    lengths = np.array([40, 41, 42])
    forest = forests.Forest(3, [(4, 2, 16)], torch.float32, DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forests, "plan", planned)
        assert forest.update(tables, lengths)
        grown = tables.copy()
        grown[:, 3] = [6, 7, 8]
        assert forest.update(grown, lengths + 9)
        assert len(made) == 1
        other = grown.copy()
        other[0, :2] = [11, 12]
        assert forest.update(other, lengths + 10)
        assert not forest.update(other, np.array([40, 3, 42]))
        assert not forest.update(np.array([[1, 2], [3, 4], [5, 6]], dtype=np.int32), np.array([20, 20, 20]))
    assert len(made) == 4


@pytest.mark.parametrize("runner", [True], ids=["padded"], indirect=True)
def test_a_seed_gives_the_same_text_with_the_fused_sampler(runner, monkeypatch):
    """Rows with several filters and a greedy one in one batch, all with their log-probabilities."""
    calls = []
    count(monkeypatch, sampler_kernel, "sample", calls)
    model = known("llama")
    kinds = [Sampling(0.9), Sampling(1.3, top_k=5), Sampling(0.7, top_p=0.8, min_p=0.05), None]
    found = []
    for way in (PLAIN, Way(attention=Attention.TRITON)):
        rows = [row(text(4), 5, (i,), sampling=kind, key=i + 7, logprobs=True) for i, kind in enumerate(kinds)]
        made = batcher(model, batch_size=4, blocks=8, way=way)
        try:
            found.append(drain(made, rows))
        finally:
            made.close()
    assert len(calls) >= 5
    assert ids(found[0]) == ids(found[1])
    for one, other in zip(*found, strict=True):
        assert one.extension.logprobs == pytest.approx(other.extension.logprobs, abs=1e-4)


def test_scores_that_are_no_numbers_are_an_error():
    sequence = types.SimpleNamespace(row=row(text(4), sampling=None), tokens=[1])
    with pytest.raises(NotNumbers):
        choose(torch.full((1, 96), float("nan"), device=DEVICE), [sequence], fused=True)


def test_fused_kernels_are_refused_where_the_layers_are_others(runner):
    with pytest.raises(Unsupported, match="run the Llama family"):
        runner_for(known("gpt2"), CPU, Way(attention=Attention.TRITON, fusion=Fusion.KERNELS))


@pytest.fixture
def quick_products(monkeypatch):
    """Quantized products as their reference computes them; ``test_products.py`` has the kernels in their place."""

    def of_bytes(x, packed, bias, step):
        codes = packed.data[:, : packed.shape[1]]
        stored = QuantizedWeight(Kind.INT8, codes, packed.scales[:, None], None, -1, packed.shape)
        return reference.linear_of_bytes(x, stored, bias, step).to(x.dtype)

    def of_weights(x, packed, bias):
        return reference.linear(x, unpack(packed), bias).to(x.dtype)

    monkeypatch.setattr(linear_kernel, "linear", of_weights)
    monkeypatch.setattr(dynamic, "linear", of_bytes)


@pytest.mark.usefixtures("quick_products")
@pytest.mark.parametrize("runner", [True], ids=["padded"], indirect=True)
@pytest.mark.parametrize(
    ("architecture", "how"),
    [
        ("llama", {"kind": "int4", "group": 32, "zero_points": True}),
        ("qwen2", {"kind": "nf4"}),
        ("qwen3", {"kind": "int8", "activation": "dynamic"}),
        ("llama", {"kind": "int8", "activation": "static"}),
    ],
)
def test_fused_layers_run_quantized_matrices(architecture, how, runner):
    """What comes out is tried as the runner is made; the weights are given up meanwhile and are there again later."""
    model = quantized(causal(architecture), **how)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = plain(model, text(20))
    made = runner_for(model, CPU, Way(attention=Attention.TRITON, fusion=Fusion.KERNELS))
    assert made.name == "paged, Triton, fused kernels"
    made.close()
    after = model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    assert torch.equal(plain(model, text(20)), scores)


class Launches(TorchDispatchMode):
    """Operations of PyTorch that a GPU would be launched for; those that only look at memory in another way are not.

    In inference mode a composite operation is seen whole: ``linear`` is one product.
    """

    SILENT = ("view", "_unsafe_view", "unsqueeze", "split", "slice", "select", "transpose", "t", "detach", "alias")
    SILENT += (
        "unflatten",
        "flatten",
        "reshape",
        "empty",
        "empty_like",
        "expand",
        "permute",
        "split_with_sizes",
        "_reshape_alias",
        "as_strided",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name.partition("::")[2] not in self.SILENT
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("quick_products")
@pytest.mark.parametrize(
    ("fusion", "most", "how"),
    [
        (Fusion.KERNELS, 9, {}),
        (Fusion.OFF, 40, {}),
        (Fusion.KERNELS, 9, {"kind": "int4", "group": 32}),
        (Fusion.KERNELS, 9, {"kind": "int8", "activation": "dynamic"}),
    ],
)
def test_a_layer_of_a_decoding_step_launches_few_operations(fusion, most, how, monkeypatch):
    """Launches are most of a small batch's time on a GPU, so a change must not add any: four products, and kernels.

    A quantized product is counted once, though it may launch a second kernel for the sum of its parts, or for the codes
    of its inputs.
    """
    kernels = []
    count(monkeypatch, linear_kernel, "linear", kernels)
    count(monkeypatch, dynamic, "linear", kernels)
    for module, name in ((norm, "add_rms_norm"), (rope, "rotate_and_store"), (swiglu, "gated")):
        count(monkeypatch, module, name, kernels)
    count(monkeypatch, decode_kernel, "decode", kernels)
    on_a_gpu(monkeypatch)
    found = []
    for layers in (1, 2):
        model = causal("llama", num_hidden_layers=layers)
        model = quantized(model, **how) if how else model
        made = batcher(model, batch_size=2, way=Way(Attention.TRITON, fusion), blocks=8)
        made.submit([row(c, 20) for c in (text(2), text(3))])
        made.step(lambda tokens: None)
        kernels.clear()
        with Launches() as launches:
            made.step(lambda tokens: None)
        made.close()
        assert kernels, "no kernel of ours ran"
        assert ("linear" in kernels) == bool(how)
        found.append(launches.count + len(kernels))
    assert found[1] - found[0] <= most


def count(monkeypatch, module, name, calls):
    """Note each call of one of our kernels, and hide what it does in PyTorch's operations from ``Launches``."""
    function = getattr(module, name)

    def counted(*given, **more):
        calls.append(name)
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*given, **more)

    monkeypatch.setattr(module, name, counted)
