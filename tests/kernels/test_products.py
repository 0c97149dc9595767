"""Products over several layers: which become one call, what they compute, and where the weights are meanwhile."""

import pytest
import torch
from torch import nn

from engine.runtime.products import Product
from kernels.linear import dynamic
from kernels.linear import triton as kernels
from tests.kernels.paged import DEVICE, error
from tests.kernels.quantized import linear_of

ALIKE = [
    {"kind": "int8"}, {"kind": "fp8"}, {"kind": "nf4", "group": 32}, {"kind": "int4", "group": 64, "zero_points": True},
    {"kind": "int8", "activation": "dynamic"},
]  # fmt: skip
MIXED = [
    ([{"kind": "int8"}, {"kind": "int4"}], 2),
    ([{"kind": "int4", "group": 32}, {"kind": "int4", "group": 64}], 2),
    ([{"kind": "int4", "zero_points": True}, {"kind": "int4"}], 2),
    ([{"kind": "int8", "activation": "static"}, {"kind": "int8", "activation": "static"}], 2),
    ([{"kind": "int8", "activation": "dynamic"}, {"kind": "int8"}], 2),
    ([{}, {"kind": "int8"}], 1),
    ([{}, {}], 0),
]


def layer(n, k, how, bias=True):
    torch.manual_seed(n)
    plain = nn.Linear(k, n, bias=bias)
    return (linear_of(plain, **how) if how else plain).to(DEVICE)


@pytest.fixture
def calls(monkeypatch):
    found = []
    for module in (kernels, dynamic):
        run = module.linear
        monkeypatch.setattr(module, "linear", lambda *given, run=run: found.append(given) or run(*given))
    return found


@pytest.mark.parametrize(("k", "bias"), [(64, False), (72, True)])
@pytest.mark.parametrize(("hows", "count"), [*(([how] * 3, 1) for how in ALIKE), *MIXED])
def test_layers_side_by_side(hows, count, bias, k, calls):
    if any("group" in how for how in hows) and k != 64:
        k = 128
    made = [(n, k, how, bias) for n, how in zip((12, 5, 7), hows, strict=False)]
    modules = [layer(*how) for how in made]
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(1))
    apart = [layer(*how).cpu() for how in made]  # on a GPU a module's own way is through these kernels too
    with torch.inference_mode():
        expected = torch.cat([m(x) for m in apart], -1).to(DEVICE)
    x = x.to(DEVICE)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in modules]
    product = Product(modules)
    with torch.inference_mode():
        assert error(product(x), expected.double()) < 1e-6
    assert len(calls) == count
    product.close()
    for module, tensors in zip(modules, before, strict=True):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), tensors[name].reshape(-1).view(torch.uint8)), name
            assert tensor.is_contiguous()


@pytest.mark.parametrize("how", ALIKE)
def test_weights_are_kept_once(how):
    modules = [layer(n, 64, how) for n in (12, 5)]
    product = Product(modules)
    held = sum(m.quantized.codes.numel() for m in modules)
    (part,) = product._parts
    if how.get("activation") is None:
        assert held == 0
    else:
        assert modules[1].codes.data_ptr() == part._packed.data.data_ptr() + 12 * 64
    product.close()


def test_what_is_given_up_comes_back_when_memory_runs_out(monkeypatch):
    modules = [layer(12, 64, {"kind": "int8"}), layer(5, 64, {"kind": "int4"})]
    before = modules[0].codes.clone()
    pack = Product.__init__.__globals__["pack"]

    def full(weight):
        if weight.kind == "int4":
            raise torch.OutOfMemoryError
        return pack(weight)

    monkeypatch.setattr("engine.runtime.products.pack", full)
    with pytest.raises(torch.OutOfMemoryError):
        Product(modules)
    assert torch.equal(modules[0].codes, before)


def test_other_modules_are_called_as_they_are():
    pair = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 9)).to(DEVICE)
    x = torch.randn(3, 64, device=DEVICE)
    with torch.inference_mode():
        assert torch.equal(Product([pair])(x), pair(x))
