"""The modules of compressed models: what they compute, by which arithmetic, and how they are kept."""

import copy

import pytest
import torch
from torch import nn

from engine.compress import linears
from engine.compress.linears import LowRankLinear, QuantizedEmbedding, QuantizedLinear
from kernels.linear.weight import Kind, dequantize, quantize
from kernels.native import build

FORMATS = [(Kind.INT8, -1, False), (Kind.FP8, -1, False), (Kind.NF4, 64, False), (Kind.NF4, -1, False)]
FORMATS += [(Kind.INT4, 32, False), (Kind.INT4, -1, False), (Kind.INT4, 64, True)]
needs_kernels = pytest.mark.skipif(build.reason() is not None, reason=f"no native kernels: {build.reason()}")


def weight_of(kind, group=-1, zeros=False, n=48, k=128, seed=0):
    return quantize(
        torch.randn(n, k, generator=torch.Generator().manual_seed(seed)), kind, group=group, zero_points=zeros
    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[pytest.param(True, marks=needs_kernels), False], ids=["native", "torch"])
def native(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(linears.build, "reason", lambda: "switched off")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "group", "zeros"), FORMATS)
@torch.no_grad()
def test_it_computes_what_a_plain_layer_of_the_same_numbers_does(kind, group, zeros, dtype, native):
    weight = weight_of(kind, group, zeros)
    bias = torch.randn(48).to(dtype)
    module = QuantizedLinear.from_weight(weight, bias)
    x = torch.randn(2, 3, 128).to(dtype)
    exact = x.double() @ dequantize(weight, torch.float64).T + bias.double()
    plain = nn.functional.linear(x, dequantize(weight, dtype), bias)
    found = module(x)
    assert found.dtype == dtype
    assert found.shape == (2, 3, 48)
    # PyTorch's packed operations round their result before scale and bias come to it.
    limit = 2 * float((plain.double() - exact).abs().max()) + torch.finfo(dtype).eps * float(exact.abs().max())
    assert float((found.double() - exact).abs().max()) <= limit


@pytest.mark.parametrize("activation", ["dynamic", "static"])
@torch.no_grad()
def test_inputs_in_int8_are_the_same_integers_by_both_arithmetics(activation, monkeypatch):
    scale = torch.tensor(0.03) if activation == "static" else None
    module = QuantizedLinear.from_weight(weight_of(Kind.INT8, n=33, k=50), torch.randn(33), activation, scale)
    x = torch.randn(9, 50)
    x[3] = 0
    found = module(x)
    codes, scales = module._codes_of(x)
    expected = codes.double() @ module.codes.double().T * scales.double() * module.scales[:, 0].double() + module.bias
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-5)
    monkeypatch.setattr(linears.build, "reason", lambda: "switched off")
    assert torch.allclose(module(x).double(), expected, rtol=1e-6, atol=1e-5)
    assert module.path("cpu") == f"int8 weights, int8 activations ({activation}), torch packed"


@pytest.mark.parametrize(
    ("kind", "group", "zeros", "k", "words"),
    [
        (Kind.INT8, -1, False, 128, "int8 weights, torch packed"),
        (Kind.INT8, -1, False, 127, "int8 weights, dequantized in each call"),
        (Kind.INT4, 32, False, 128, "int4 weights, torch packed"),
        (Kind.INT4, 32, True, 128, "int4 weights, dequantized in each call"),
        (Kind.INT4, -1, False, 128, "int4 weights, dequantized in each call"),
        (Kind.NF4, 32, False, 128, "nf4 weights, dequantized in each call"),
        (Kind.FP8, -1, False, 128, "fp8 weights, dequantized in each call"),
    ],
)
def test_it_says_which_arithmetic_runs(kind, group, zeros, k, words, native):
    module = QuantizedLinear.from_weight(weight_of(kind, group, zeros, k=k))
    assert module.path("cpu") == (f"{kind} weights, C++" if native else words)
    assert module.is_simulated("cpu") == (not native and "dequantized" in words)
    assert module.path("cuda") == f"{kind} weights, Triton"
    assert not module.is_simulated("cuda")


def test_activations_that_do_not_fit_the_weight_are_refused():
    with pytest.raises(ValueError, match="int8 weights alone"):
        QuantizedLinear.from_weight(weight_of(Kind.INT4), activation="dynamic")
    for activation, scale in (("static", None), ("dynamic", torch.tensor(1.0)), (None, torch.tensor(1.0))):
        with pytest.raises(ValueError, match="has a scale"):
            QuantizedLinear.from_weight(weight_of(Kind.INT8), None, activation, scale)


@pytest.mark.parametrize(("kind", "group", "zeros"), FORMATS)
@torch.no_grad()
def test_its_state_is_kept_in_a_plain_state_dict(kind, group, zeros, native, tmp_path):
    bias = torch.randn(48)
    one = QuantizedLinear.from_weight(weight_of(kind, group, zeros), bias)
    other = QuantizedLinear.from_weight(weight_of(kind, group, zeros, seed=1), torch.zeros(48))
    x = torch.randn(3, 128)
    assert not torch.equal(one(x), other(x))  # which lays the other's weight out
    torch.save(one.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state"))
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("kind", list(Kind))
def test_a_change_of_number_type_leaves_codes_and_scales_alone(kind):
    module = QuantizedLinear.from_weight(weight_of(kind), torch.randn(48))
    before = copy.deepcopy(module.quantized)
    module.to(torch.bfloat16)
    assert module.bias.dtype == torch.bfloat16
    for name, tensor in module.quantized.tensors.items():
        assert tensor.dtype == before.tensors[name].dtype
        assert torch.equal(tensor.view(torch.uint8), before.tensors[name].view(torch.uint8))


@needs_kernels
@pytest.mark.parametrize(("kind", "group", "zeros"), FORMATS)
@torch.no_grad()
def test_canonical_tensors_are_given_up_and_come_back_to_the_bit(kind, group, zeros):
    module = QuantizedLinear.from_weight(weight_of(kind, group, zeros))
    before, x = {n: t.clone() for n, t in module.quantized.tensors.items()}, torch.randn(3, 128)
    expected = module(x)
    module.give_up()
    assert all(t.numel() == 0 for t in module.quantized.tensors.values())
    assert torch.equal(module(x), expected), "the packed order goes on serving"
    module.take_back()
    for name, tensor in module.quantized.tensors.items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
    assert torch.equal(module(x), expected)


@torch.no_grad()
def test_a_low_rank_pair_is_its_factors_one_after_the_other(native):
    first = QuantizedLinear.from_weight(weight_of(Kind.INT8, n=32))
    second = nn.Linear(32, 40)
    pair, x = LowRankLinear(first, second), torch.randn(5, 128)
    assert torch.equal(pair(x), second(first(x)))
    assert (pair.in_features, pair.out_features, pair.rank) == (128, 40, 32)
    assert pair.bias is second.bias
    with pytest.raises(ValueError, match="has no bias"):
        LowRankLinear(nn.Linear(128, 32), second)
    with pytest.raises(ValueError, match="as many outputs"):
        LowRankLinear(nn.Linear(128, 31, bias=False), second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "group", "zeros"), FORMATS)
def test_an_embedding_looks_rows_up_and_is_tied_by_its_buffers(kind, group, zeros, dtype):
    head = QuantizedLinear.from_weight(weight_of(kind, group, zeros))
    module = QuantizedEmbedding(head.quantized, dtype)
    tokens = torch.tensor([[3, 0, 47], [5, 5, 1]])
    assert torch.equal(module(tokens), dequantize(head.quantized, dtype)[tokens])
    assert module.is_tied(head)
    apart = copy.deepcopy(module)
    assert not apart.is_tied(head)
    apart.tie(head)
    assert apart.is_tied(head)
    assert not module.is_tied(nn.Linear(128, 48))
    assert not module.is_tied(None)
