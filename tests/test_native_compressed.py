"""Compressed models through the native forward pass, against their own modules."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.compress.linears import LowRankLinear, QuantizedEmbedding, QuantizedLinear
from engine.runtime import native_runner
from engine.runtime.batch import Batch
from engine.runtime.family import is_family, is_plain, linears_of
from engine.runtime.native_runner import NativeRunner
from engine.runtime.support import Unsupported, runner_for
from engine.runtime.way import Way
from kernels.linear.weight import Kind, quantize
from kernels.native import build, matrix
from spec.choices import Fusion
from tests.batches import CPU, causal, greedy, ids, plain, row, run, text

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no native kernels: {build.reason()}")
LAYERS = 4
FORMATS = {
    "int8": {"kind": Kind.INT8},
    "fp8": {"kind": Kind.FP8},
    "nf4": {"kind": Kind.NF4, "group": 32},
    "int4": {"kind": Kind.INT4, "group": 32},
    "int4 with zero points": {"kind": Kind.INT4, "group": 32, "zero_points": True},
    "int8 dynamic": {"kind": Kind.INT8, "activation": "dynamic"},
    "int8 static": {"kind": Kind.INT8, "activation": "static"},
}


def quantized(module, kind=Kind.INT8, activation=None, **more):
    scale = torch.tensor(0.05) if activation == "static" else None
    return QuantizedLinear.from_weight(quantize(module.weight.detach(), kind, **more), module.bias, activation, scale)


def low_rank(module, rank=24):
    u, s, v = torch.linalg.svd(module.weight.detach().float(), full_matrices=False)
    first = nn.Linear(module.in_features, rank, bias=False)
    second = nn.Linear(rank, module.out_features, bias=module.bias is not None)
    first.weight.data, second.weight.data = v[:rank].clone(), (u[:, :rank] * s[:rank]).contiguous()
    if module.bias is not None:
        second.bias.data = module.bias.detach().clone()
    return LowRankLinear(first, second)


def changed(model, change):
    """``change(layer, number, module)`` for each linear of each layer, in the order of ``linears_of``."""
    for layer in model.base_model.layers:
        for i, module in enumerate(linears_of(layer)):
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    if child is module:
                        setattr(parent, name, change(layer, i, module))
    return model


def tied(model, **how):
    """Head and embedding one quantized matrix."""
    head = quantized(model.get_output_embeddings(), **how)
    model.base_model.embed_tokens = QuantizedEmbedding(head.quantized, model.dtype)
    model.lm_head = head
    return model


def compressed(name, architecture="llama", **changes):
    how = FORMATS[name]
    model = causal(architecture, num_hidden_layers=LAYERS, **changes)
    return tied(changed(model, lambda layer, i, m: quantized(m, **how)), **how)


def mixed():
    """Every format there is, side by side within layers, and low-rank pairs of plain and of quantized factors."""
    model = causal("qwen2", num_hidden_layers=LAYERS)
    hows = list(FORMATS.values())

    def change(layer, i, module):
        at = layer.self_attn.layer_idx + 2 * i
        if at % 9 == 7:
            return module
        if at % 9 == 8:
            pair = low_rank(module)
            return LowRankLinear(quantized(pair.first), pair.second) if i % 2 else pair
        return quantized(module, **hows[at % 9])

    return changed(model, change)


def pruned(model):
    """Fewer heads, fewer keys and values, narrower layers, each layer in its own way."""
    dim = model.base_model.layers[0].self_attn.head_dim
    for i, layer in enumerate(model.base_model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        query, kv = [(4, 2), (2, 2), (1, 1), (3, 1)][i]
        attention.num_key_value_groups = query // kv
        width = 96 - 17 * i
        for owner, name, n in [
            (attention, "q_proj", query * dim),
            (attention, "k_proj", kv * dim),
            (attention, "v_proj", kv * dim),
            (mlp, "gate_proj", width),
            (mlp, "up_proj", width),
        ]:
            module = getattr(owner, name)
            module.weight.data, module.out_features = module.weight.data[:n].clone(), n
            if module.bias is not None:
                module.bias.data = module.bias.data[:n].clone()
        for owner, name, k in [(attention, "o_proj", query * dim), (mlp, "down_proj", width)]:
            module = getattr(owner, name)
            module.weight.data, module.in_features = module.weight.data[:, :k].clone(), k
    return model


def scores(model, runner, length=30):
    """The runner's and the model's own, for one text, over a cache and a working memory full of NaN."""
    expected = plain(model, text(length))
    runner.allocate(3)
    for tensor in (*runner._kv.keys, *runner._kv.values):
        tensor.fill_(float("nan"))
    runner._grow(length)
    runner._room(length)
    for tensor in (runner._x, runner._work, runner._states, runner._out):
        tensor.fill_(float("nan"))
    return runner.logits(batch_of(length)), expected


def batch_of(length):
    rows = np.arange(length, dtype=np.int32)
    tokens = np.array(text(length), dtype=np.int32)
    return Batch(tokens, rows, np.zeros_like(rows), np.arange(3, dtype=np.int32)[None], rows)


def check(model, limit=1e-4):
    runner = NativeRunner(model, model.dtype)
    try:
        found, expected = scores(model, runner)
        assert float((found - expected).square().mean().sqrt()) <= limit * float(expected.std())
    finally:
        runner.close()


@pytest.mark.parametrize("name", FORMATS)
def test_it_scores_as_its_own_modules_do(name):
    # An input at the edge of two codes of int8 falls to either side with the last bit of the sums before it.
    check(compressed(name), 0.02 if "int8 " in name else 1e-4)


@pytest.mark.parametrize("name", ["int8", "int4 with zero points", "nf4"])
def test_greedy_text_is_that_of_generate(name):
    model = compressed(name)
    contexts = (text(1), text(30), text(17))
    wanted = [greedy(model, c, 12) for c in contexts]
    assert ids(run(model, [row(c, 12) for c in contexts], batch_size=2, budget=12, blocks=12)) == wanted


def test_formats_may_differ_within_a_layer_and_pairs_stand_among_them():
    model = mixed()
    check(model, 0.02)  # int8 activations among them
    runner = NativeRunner(model, model.dtype)
    assert runner.name == (
        "paged, native forward, fp8 and int4 and int8 and int8 with int8 activations (dynamic) and "
        "int8 with int8 activations (static) and low-rank and nf4 weights"
    )
    runner.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_layers_may_have_heads_and_widths_of_their_own(architecture):
    model = pruned(causal(architecture, num_hidden_layers=LAYERS))
    check(model)
    runner = NativeRunner(model, model.dtype)
    whole = NativeRunner(causal(architecture, num_hidden_layers=LAYERS), model.dtype)
    assert [s.heads for s in runner._shapes] == [2, 2, 1, 1]
    assert runner.block_bytes * 8 == whole.block_bytes * 6
    runner.close()
    whole.close()
    wanted = greedy(model, text(20), 12)
    assert ids(run(model, [row(text(20), 12)])) == [wanted]


def test_a_pruned_layer_may_be_quantized_too():
    check(changed(pruned(causal("llama", num_hidden_layers=LAYERS)), lambda layer, i, m: quantized(m)))


@pytest.mark.parametrize("name", ["int8", "int4 with zero points", "nf4", "fp8", "int8 dynamic"])
def test_a_tied_embedding_is_kept_once_and_one_apart_is_kept_apart(name):
    model = compressed(name)
    runner = NativeRunner(model, model.dtype)
    assert runner._native.lookup[0].data == runner._native.head[0].data
    runner.close()
    apart = QuantizedEmbedding(quantize(torch.randn(96, 64), Kind.NF4, group=32), torch.float32)
    model.base_model.embed_tokens = apart
    runner = NativeRunner(model, model.dtype)
    assert runner._native.lookup[0].data != runner._native.head[0].data
    runner.close()
    check(model, 0.02 if "int8 " in name else 1e-4)


def same(one, other):
    """To the bit."""
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def bits(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("make", [mixed, lambda: compressed("int4 with zero points"), lambda: compressed("fp8")])
def test_closing_puts_everything_back_to_the_bit(make):
    model = make()
    before, expected = bits(model), plain(model, text(20))
    runner = NativeRunner(model, model.dtype, sole=True)
    taken = [name for name, t in model.state_dict().items() if not t.numel()]
    assert len([n for n in taken if n.endswith(("codes", "weight"))]) >= 7 * LAYERS
    scores(make(), runner)
    runner.close()
    runner.close()
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert same(after[name], tensor), name
        assert after[name].is_contiguous()
    assert torch.equal(plain(model, text(20)), expected)
    embedding = model.base_model.embed_tokens
    if isinstance(embedding, QuantizedEmbedding):
        assert embedding.is_tied(model.lm_head)


def test_a_failure_on_the_way_puts_everything_back(monkeypatch):
    model = mixed()
    before, done, pack = bits(model), [], matrix.pack

    def failing(*given):
        done.append(given)
        if len(done) == 9:
            raise MemoryError
        return pack(*given)

    monkeypatch.setattr(matrix, "pack", failing)
    with pytest.raises(MemoryError):
        NativeRunner(model, model.dtype, sole=True)
    assert all(same(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["int8", "int4 with zero points"])
def test_tokens_leave_a_compressed_model_early(name):
    model = compressed(name)
    runner = NativeRunner(model, model.dtype)
    runner.allocate(3)
    prompt = batch_of(20)
    runner.logits(prompt)
    last = Batch(prompt.tokens[19:], prompt.positions[19:], prompt.slots[:1], prompt.tables, prompt.positions[:1])
    with torch.no_grad():
        states = model(torch.tensor([list(text(20))]), output_hidden_states=True).hidden_states
        expected = model.lm_head(model.model.norm(states[2][0, -1]))
    found, layers = runner.exiting(last, np.zeros(1), False, 2)
    assert layers == [2]
    assert torch.allclose(found[0], expected, atol=1e-4)
    whole, layers = runner.exiting(last, np.full(1, 1.5), False, 1)
    assert layers == [LAYERS]
    assert torch.equal(whole, runner.logits(last))
    assert runner.greedy(last) == [int(whole.argmax())]
    runner.close()


@pytest.mark.parametrize("name", FORMATS)
def test_the_trial_against_the_models_own_pass_lets_every_format_through(name):
    runner = runner_for(compressed(name), CPU)
    assert runner.name.startswith(f"paged, native forward, {FORMATS[name]['kind']}")
    runner.close()


@pytest.mark.parametrize("name", ["int8", "int8 dynamic"])
def test_the_trial_notices_a_layer_that_computes_something_else(name, monkeypatch):
    made = native_runner.NativeRunner._layer

    def swapped(self, layer):
        found = made(self, layer)
        found.gate_up[0], found.gate_up[1] = found.gate_up[1], found.gate_up[0]
        return found

    monkeypatch.setattr(native_runner.NativeRunner, "_layer", swapped)
    runner = runner_for(compressed(name), CPU)
    assert not runner.name.startswith("paged, native forward")
    runner.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_compared_with_their_own_modules(dtype):
    model = compressed("int4").to(dtype)
    model.base_model.embed_tokens.dtype = dtype
    runner = runner_for(model, CPU)
    assert runner.name == "paged, native forward, int4 weights"
    runner.close()


def test_compressed_models_are_of_the_family_but_not_plain():
    model = compressed("int8")
    assert is_family(model)
    assert not is_plain(model)
    assert is_plain(causal("llama"))
    runner = runner_for(model, CPU, Way(fusion=Fusion.KERNELS))
    assert runner.name == "paged, native forward, int8 weights"
    runner.close()
    model.base_model.layers[0].mlp.up_proj = nn.Sequential()
    model.base_model.layers[0].mlp.up_proj.out_features = 96
    assert not is_family(model)


def test_shapes_that_do_not_go_together_are_not_of_the_family():
    model = causal("llama")
    assert native_runner.serves(model, CPU)
    model.base_model.layers[1].self_attn.q_proj.out_features = 48  # three heads over two of keys
    assert not native_runner.serves(model, CPU)
    with pytest.raises(Unsupported):
        runner_for(model, CPU, Way(fusion=Fusion.KERNELS))
