"""A vector times a weight in half precision."""

import math

import pytest
import torch
from torch import nn

from engine.runtime.products import Product
from kernels.linear.dense import ROWS, vector
from tests.kernels.paged import DEVICE, INTERPRETED, LIMIT, error

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that is taken and not written is NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: empty(*shape, **how).fill_(math.nan))


@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 33), (9, 1024), (7, 2500)])
@pytest.mark.parametrize("rows", ROWS)
def test_it_is_the_product(rows, n, k, dtype):
    """The weight is a part of something larger whose rest is NaN."""
    around = torch.full((n, k + 16), math.nan, dtype=dtype, device=DEVICE)
    weight = around[:, :k]
    weight.copy_(normal(n, k, seed=1))
    x, bias = normal(1, k, seed=2, dtype=dtype), normal(n, seed=3, dtype=dtype)
    for b in (None, bias):
        expected = x.double() @ weight.double().T + (0 if b is None else b.double())
        plain = nn.functional.linear(x, weight, b)
        # The interpreter cuts off where it is to round to bf16.
        limit = LIMIT[dtype] if INTERPRETED else max(2 * error(plain, expected), 1e-3)
        found = vector(x, weight, b, rows=rows)
        assert found.dtype == dtype
        assert found.shape == (1, n)
        assert error(found, expected) < limit


def test_a_layer_takes_it_for_a_single_row_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "kernels.linear.dense.vector", lambda *given, **how: calls.append(how["rows"]) or vector(*given, **how)
    )
    modules = [nn.Linear(64, n).to(DEVICE, torch.float16) for n in (12, 5)]
    product = Product(modules)
    (part,) = product.plain
    x = normal(3, 64, dtype=torch.float16)
    with torch.inference_mode():
        expected = product(x)
        part.rows = 4
        assert torch.equal(product(x), expected)
        assert calls == []
        assert error(product(x[:1]), expected[:1].double()) < LIMIT[torch.float16]
    assert calls == [4]
    assert Product([nn.Linear(64, 8).to(DEVICE)]).plain == [], "in fp32 the same text comes out of any batch"
