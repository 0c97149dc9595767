"""Products of bytes: codes, steps and sums are integers or single operations of fp32, so they are held to the bit."""

import math

import pytest
import torch

from kernels.linear import dynamic, reference
from kernels.linear.packing import pack_bytes
from kernels.linear.weight import Kind, codes_of, quantize
from tests.kernels.paged import DEVICE, DTYPES, LIMIT, error

STEP = torch.tensor(0.0173, device=DEVICE)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rows(m, k, dtype=torch.float32):
    """Of very different size; the first one with ties between two codes, at both ends."""
    x = normal(m, k, seed=2) * torch.logspace(-2, 2, m, device=DEVICE)[:, None]
    x[0] = (torch.arange(k, device=DEVICE) % 255 - 127) / 2
    x[0, 0] = -127 / 2
    return x.to(dtype)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that is taken and not written is NaN, or in integers a large number."""
    empty = torch.empty

    def poisoned(*shape, **how):
        made = empty(*shape, **how)
        return made.fill_(math.nan if made.is_floating_point() else 101)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("k", [1, 33, 300, 4100])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("step", [None, STEP], ids=["each row", "one step"])
def test_rows_become_the_codes_of_the_reference(k, dtype, step):
    x = rows(4, k, dtype)
    codes, steps = dynamic.quantize_rows(x, step)
    expected, their_steps = reference.quantize_rows(x, step)
    assert torch.equal(steps, their_steps)
    assert torch.equal(codes[:, :k], expected)
    assert codes.shape[1] % 16 == 0
    assert not codes[:, k:].any()
    assert not (codes == -128).any()


def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_is_seen():
    x = torch.zeros(4, 40, device=DEVICE)
    x[1, 3], x[2, 5], x[3, 39] = math.inf, math.nan, -math.inf
    stored = quantize(normal(6, 40), Kind.INT8)
    y = dynamic.linear(x, pack_bytes(stored))
    assert torch.equal(y[0], torch.zeros(6, device=DEVICE))
    assert not y[1:].isfinite().any()


@pytest.mark.parametrize(("m", "splits"), [(1, 1), (5, 3), (17, 1), (40, 2), (70, 1)])
@pytest.mark.parametrize(("n", "k"), [(67, 853), (5, 16), (130, 33)])
def test_sums_are_exact(m, splits, n, k):
    """With scales and steps of 1, fp32 holds the sums."""
    stored = quantize(normal(n, k), Kind.INT8)
    packed = dynamic.PackedBytes(pack_bytes(stored).data, torch.ones(n, device=DEVICE), stored.shape)
    codes, steps = dynamic.quantize_rows(rows(m, k), None)
    found = dynamic.multiply(codes, torch.ones_like(steps), packed, None, torch.float32, splits=splits)
    expected = codes[:, :k].long() @ codes_of(stored).long().T
    assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("m", [1, 20, 80])
@pytest.mark.parametrize("step", [None, STEP], ids=["each row", "one step"])
def test_a_layer(m, dtype, step):
    stored = quantize(normal(67, 301), Kind.INT8)
    x, bias = rows(m, 301, dtype), normal(67, seed=3, dtype=dtype)
    found = dynamic.linear(x, pack_bytes(stored), bias, step)
    assert found.dtype == dtype
    assert error(found, reference.linear_of_bytes(x, stored, bias, step)) < LIMIT[dtype]


def test_rows_do_not_depend_on_those_beside_them():
    stored = quantize(normal(67, 600), Kind.INT8)
    x, packed = rows(80, 600, torch.float16), pack_bytes(stored)
    whole = dynamic.linear(x, packed)
    for part in (x[:1], x[:10], x[:33]):
        assert torch.equal(dynamic.linear(part, packed), whole[: len(part)])


def test_leading_dimensions_stay_none_may_be_empty_and_slices_are_read_where_they_lie():
    stored = quantize(normal(9, 64), Kind.INT8)
    packed, x = pack_bytes(stored), rows(6, 128).view(2, 3, 128)[..., 32:96]
    assert torch.equal(dynamic.linear(x, packed).view(6, 9), dynamic.linear(x.reshape(6, 64).clone(), packed))
    assert dynamic.linear(x[:, :0], packed).shape == (2, 0, 9)
    assert dynamic.linear(x[0, 0], packed).shape == (9,)


def test_the_weight_is_kept_once():
    stored = quantize(normal(9, 64), Kind.INT8)
    assert pack_bytes(stored).data.data_ptr() == stored.codes.data_ptr()
    odd = pack_bytes(quantize(normal(9, 63), Kind.INT8)).data
    assert odd.shape == (9, 64)
    assert not odd[:, 63].any()


@pytest.mark.parametrize(
    ("x", "bias", "step", "says"),
    [
        (torch.ones(1, 63), None, None, "does not fit"),
        (torch.ones(1, 64).double(), None, None, "fp32, fp16 or bf16"),
        (torch.ones(1, 64), torch.ones(3), None, "bias"),
        (torch.ones(1, 64), None, torch.ones(2), "one step"),
        (torch.ones(1, 64, device="meta"), None, None, "must be there"),
    ],
)
def test_what_cannot_be_multiplied_is_said(x, bias, step, says):
    packed = pack_bytes(quantize(normal(4, 64), Kind.INT8))
    on = [t if t is None or t.is_meta else t.to(DEVICE) for t in (x, bias, step)]
    with pytest.raises(ValueError, match=says):
        dynamic.linear(on[0], packed, *on[1:])
    with pytest.raises(ValueError, match="weights in int8, not int4"):
        pack_bytes(quantize(normal(4, 64), Kind.INT4))
