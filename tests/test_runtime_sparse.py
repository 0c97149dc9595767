"""Two zeros in each four weights: what is taken for that, what is tried, and where the weights are meanwhile."""

import pytest
import torch
from torch import nn

from engine.runtime import sparse
from engine.runtime.products import Product


def two_of_four(n, k, seed=0):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    groups = weight.view(n, -1, 4)
    return weight, (groups * (groups.abs() >= groups.abs().topk(2, -1).values[..., 1:])).view(n, k)


def test_what_has_two_zeros_in_each_four():
    dense, thin = two_of_four(6, 16)
    assert sparse.is_two_of_four(thin)
    assert sparse.is_two_of_four(torch.zeros(2, 8))
    assert not sparse.is_two_of_four(dense)
    thin[5, 12:] = 1.0  # in the last group of the last row
    assert not sparse.is_two_of_four(thin)
    assert not sparse.is_two_of_four(torch.zeros(2, 6))


def test_a_processor_has_no_such_units():
    assert sparse.compressed(two_of_four(32, 64)[1].bfloat16()) is None


def test_what_the_library_refuses_or_gets_wrong_stays_dense(monkeypatch):
    weight = two_of_four(32, 64)[1].bfloat16()

    def refuses(w):
        raise RuntimeError("shape not supported")

    for made, taken in ((refuses, False), (lambda w: w * 1.1, False), (lambda w: w.clone(), True)):
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", made)
        assert (sparse._tried(weight) is not None) == taken

    def full(w):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sparse._tried(weight)


@pytest.mark.parametrize("bias", [True, False])
def test_the_modules_give_their_weights_up_and_get_them_back(monkeypatch, bias):
    modules = [nn.Linear(16, n, bias=bias) for n in (8, 12)]
    for i, module in enumerate(modules):
        module.weight.data = two_of_four(module.out_features, 16, i)[1]
    before, x = [m.weight.data.clone() for m in modules], torch.randn(3, 16)
    expected = torch.cat([m(x) for m in modules], -1)
    assert not Product(modules).is_sparse
    monkeypatch.setattr(sparse, "compressed", lambda weight: weight.clone())
    product = Product(modules)
    assert product.is_sparse
    assert all(m.weight.numel() == 0 for m in modules)
    torch.testing.assert_close(product(x), expected)
    product.close()
    assert all(torch.equal(m.weight, w) for m, w in zip(modules, before, strict=True))
