import math

import pytest
import torch

from kernels.linear import mixed, reference
from kernels.linear import triton as kernels
from kernels.linear.packing import pack, unpack
from kernels.linear.weight import Kind, dequantize, quantize
from tests.kernels.paged import DEVICE, DTYPES, INTERPRETED, LIMIT, error

KINDS = {
    "int8": {"kind": Kind.INT8},
    "fp8": {"kind": Kind.FP8},
    "int4": {"kind": Kind.INT4},
    "int4, zero points": {"kind": Kind.INT4, "zero_points": True},
} | {
    f"int4 of {g}{', zero points' if z else ''}": {"kind": Kind.INT4, "group": g, "zero_points": z}
    for g in (32, 64, 128)
    for z in (False, True)
}
KINDS |= {"nf4": {"kind": Kind.NF4}} | {f"nf4 of {g}": {"kind": Kind.NF4, "group": g} for g in (32, 64, 128)}
# What rounding to each kind loses of normal numbers: at most a twelfth of a step squared, in 3 sigma of so many steps.
LOSS = {Kind.INT8: 0.012, Kind.FP8: 0.03, Kind.INT4: 0.2, Kind.NF4: 0.15}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def weight(n, k, seed=1):
    """Rows of very different size, each with more above zero than below: scales and zero points all matter."""
    return (normal(n, k, seed=seed) + 0.5) * torch.logspace(-3, 1, n, device=DEVICE)[:, None]


def check(found, x, weight, bias=None):
    """At most twice the error of plain PyTorch, which rounds the weight to the type of ``x``; each row counts alike.

    The order of a sum in fp32 alone is worth 2e-7. The interpreter cuts off where it is to round to bf16, which doubles
    that error of the result; there the limit is that of the other kernels.
    """
    scale = weight.scales.double().amax(1)
    expected = reference.linear(x, weight, bias) / scale
    plain = torch.nn.functional.linear(x, dequantize(weight, x.dtype), bias) / scale
    limit = max(2 * error(plain, expected), 2e-7)
    if x.dtype == torch.bfloat16 and INTERPRETED:
        limit = LIMIT[x.dtype]
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    assert error(found / scale, expected) < limit


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that is taken and not written is NaN."""
    empty = torch.empty

    def poisoned(*shape, **how):
        made = empty(*shape, **how)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def ran(monkeypatch):
    """The names of the kernels that ran, in order."""
    names = []

    def noting(name, run):
        return lambda *given, **how: names.append(name) or run(*given, **how)

    for name in ("vector", "few_rows", "many_rows", "dequantize"):
        monkeypatch.setattr(kernels, name, noting(name, getattr(kernels, name)))
    return names


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_vector(how, dtype):
    n = 67 if dtype == torch.float16 else 5  # the more rows, the more of them to a program
    k = 384 if how.get("group", -1) > 0 else 301
    stored = quantize(weight(n, k), **how)
    x = normal(1, k, seed=2, dtype=dtype)
    check(kernels.vector(x, pack(stored), None), x, stored)


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("dtype", "splits"), [(torch.float16, 3), (torch.bfloat16, 1)])
def test_a_few_rows(how, dtype, splits):
    k = 896 if how.get("group", -1) > 0 else 853
    stored = quantize(weight(67, k), **how)
    bias = normal(67, seed=3, dtype=dtype)
    x = normal(3, k, seed=2, dtype=dtype)
    check(kernels.few_rows(x, pack(stored), bias, splits=splits), x, stored, bias)


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("dtype", "splits", "rows"), [(torch.float16, 3, 65), (torch.bfloat16, 1, 7)])
def test_many_rows(how, dtype, splits, rows):
    """A last span that is not full, nor is the last tile of rows; more splits than one span each."""
    k = 896 if how.get("group", -1) > 0 else 853
    stored = quantize(weight(67 if dtype == torch.float16 else 130, k), **how)
    bias = normal(stored.shape[0], seed=3, dtype=dtype)
    x = normal(rows, k, seed=2, dtype=dtype)
    check(mixed.many_rows(x, pack(stored), bias, splits=splits), x, stored, bias)


@pytest.mark.parametrize(("kind", "group", "k"), [(Kind.INT4, 32, 160), (Kind.INT4, 64, 64), (Kind.NF4, 32, 352)])
def test_many_rows_of_groups_that_end_within_a_span(kind, group, k):
    stored = quantize(weight(5, k), kind, group=group)
    x = normal(40, k, seed=2, dtype=torch.float16)
    check(mixed.many_rows(x, pack(stored), None), x, stored)


@pytest.mark.parametrize(("kind", "group", "k"), [(Kind.INT4, 128, 4224), (Kind.INT8, -1, 2100), (Kind.FP8, -1, 2100)])
def test_rows_longer_than_a_program_reads_at_a_time(kind, group, k):
    stored = quantize(weight(3, k), kind, group=group)
    x = normal(2, k, seed=2, dtype=torch.float16)
    check(kernels.vector(x, pack(stored), None), x, stored)
    check(kernels.few_rows(x, pack(stored), None), x, stored)


def test_the_tiles_of_wide_layers():
    stored = quantize(weight(2050, 32), Kind.INT4)
    x = normal(2, 32, seed=2, dtype=torch.float16)
    check(kernels.few_rows(x, pack(stored), None), x, stored)


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_the_dequantized_weight_is_rounded_once(how):
    k = 128 if how.get("group", -1) > 0 else 75
    stored = quantize(weight(5, k), **how)
    assert torch.equal(kernels.dequantize(pack(stored), torch.float32), dequantize(stored, torch.float32))


@pytest.mark.parametrize(
    ("dtype", "rows", "name"),
    [
        (torch.float32, 1, "vector"),
        (torch.float32, 4, "vector"),
        (torch.float32, 5, "dequantize"),
        (torch.float16, 1, "vector"),
        (torch.float16, 2, "few_rows"),
        (torch.float16, 17, "few_rows"),
        (torch.float16, 32, "few_rows"),
        (torch.bfloat16, 33, "many_rows"),
        (torch.float16, 256, "many_rows"),
        (torch.float16, 257, "dequantize"),
    ],
)
def test_the_rows_choose_the_kernel(ran, dtype, rows, name):
    stored = quantize(weight(5, 128), Kind.INT4, group=64)
    x, bias = normal(rows, 128, seed=2, dtype=dtype), normal(5, seed=3, dtype=dtype)
    check(kernels.linear(x, pack(stored), bias), x, stored, bias)
    assert ran == [name]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 33), (2, 16), (65, 31)])
@pytest.mark.parametrize("kind", Kind)
def test_the_smallest_and_odd_shapes(kind, n, k, rows):
    stored = quantize(weight(n, k), kind)
    x = normal(rows, k, seed=2, dtype=torch.float16)
    check(kernels.linear(x, pack(stored)), x, stored)


@pytest.mark.parametrize("rows", [1, 3, 35])
def test_what_lies_beside_the_inputs_is_not_read(rows):
    """Inputs that are a part of something larger whose rest is NaN, as a layer's slice of a fused one."""
    stored = quantize(weight(5, 100), Kind.INT8)
    around = torch.full((rows, 164), math.nan, dtype=torch.float16, device=DEVICE)
    x = around[:, 32:132]
    x.copy_(normal(rows, 100, seed=2))
    check(kernels.linear(x, pack(stored)), x, stored)
    turned = x.T.contiguous().T
    assert torch.equal(kernels.linear(turned, pack(stored)), kernels.linear(x, pack(stored)))


def test_leading_dimensions_stay_and_none_may_be_empty():
    stored = quantize(weight(9, 64), Kind.INT4, group=32)
    x = normal(2, 3, 64, seed=2, dtype=torch.float16)
    check(kernels.linear(x, pack(stored)), x, stored)
    assert kernels.linear(x[:, :0], pack(stored)).shape == (2, 0, 9)
    assert kernels.linear(x[0, 0], pack(stored)).shape == (9,)


def test_equal_calls_give_equal_bits():
    stored = quantize(weight(40, 1024), Kind.INT4, group=128)
    x = normal(2, 1024, seed=2, dtype=torch.float16)
    first = kernels.few_rows(x, pack(stored), None, splits=4)
    assert all(torch.equal(first, kernels.few_rows(x, pack(stored), None, splits=4)) for _ in range(2))
    first = mixed.many_rows(x, pack(stored), None, splits=4)
    assert all(torch.equal(first, mixed.many_rows(x, pack(stored), None, splits=4)) for _ in range(2))


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_quantizing_loses_no_more_than_its_steps(how):
    w = normal(32, 256)
    stored = quantize(w, **how)
    assert error(dequantize(stored), w.double()) < LOSS[stored.kind]
    again = quantize(dequantize(stored), **how)
    assert error(dequantize(again), dequantize(stored).double()) < 0.02, "what fits the steps changes"
    step = stored.scales.float().repeat_interleave(256 // stored.scales.shape[1], 1)
    if stored.kind in (Kind.INT8, Kind.INT4):
        assert ((dequantize(stored) - w).abs() <= 0.55 * step).all(), "not rounded to the nearest"


def test_zero_points_help_a_range_that_is_off_centre():
    w = normal(32, 256).abs()
    plain, centred = (quantize(w, Kind.INT4, group=64, zero_points=z) for z in (False, True))
    assert error(dequantize(centred), w.double()) < 0.6 * error(dequantize(plain), w.double())


def test_the_layout_is_the_documented_one():
    codes = torch.arange(64).remainder(15) - 7  # with -7 and 7 in each row, the scale is 1
    packed = pack(quantize(codes.float()[None].to(DEVICE), Kind.INT4))
    for c, e, i in [(0, 0, 0), (0, 5, 1), (1, 7, 3), (1, 0, 2)]:
        word = int(packed.data[0, 8 * c + e]) & 0xFFFF
        assert (word >> (4 * i)) & 0xF == int(codes[32 * c + 8 * i + e]) + 8
    assert packed.data.shape == (1, 16)
    assert packed.size_bytes == 32 + 4


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_the_order_is_undone_to_the_bit(how):
    for k in (128,) if how.get("group", -1) > 0 else (1, 33, 128):
        stored = quantize(weight(7, k), **how)
        again = unpack(pack(stored))
        assert (again.kind, again.group, again.shape) == (stored.kind, stored.group, stored.shape)
        assert again.tensors.keys() == stored.tensors.keys()
        for name, tensor in stored.tensors.items():
            assert again.tensors[name].dtype == tensor.dtype
            assert torch.equal(again.tensors[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_groups_of_zeros_are_zeros():
    for how in KINDS.values():
        stored = quantize(torch.zeros(3, 128, device=DEVICE), **how)
        assert torch.equal(dequantize(stored), torch.zeros(3, 128, device=DEVICE))


@pytest.mark.parametrize(
    ("weight", "how", "says"),
    [
        (torch.ones(4, 100), {"kind": "int4", "group": 64}, "do not divide"),
        (torch.ones(4, 96), {"kind": "int4", "group": 48}, "one of 32, 64"),
        (torch.ones(4, 64), {"kind": "int8", "group": 64}, "for int4"),
        (torch.ones(4, 64), {"kind": "fp8", "zero_points": True}, "for int4"),
        (torch.ones(4, 64).int(), {"kind": "int8"}, "fp32, fp16 or bf16"),
        (torch.ones(64), {"kind": "int8"}, "matrix"),
        (torch.ones(0, 64), {"kind": "int8"}, "matrix"),
        (torch.full((4, 64), math.nan), {"kind": "int8"}, "not a number"),
        (torch.full((4, 64), math.inf), {"kind": "fp8"}, "infinite"),
        (torch.ones(4, 64), {"kind": "int3"}, "int3"),
    ],
)
def test_what_cannot_be_quantized_is_said(weight, how, says):
    with pytest.raises(ValueError, match=says):
        quantize(weight, **how)


@pytest.mark.parametrize(
    ("x", "bias", "says"),
    [
        (torch.ones(1, 63), None, "does not fit"),
        (torch.ones(1, 64).double(), None, "fp32, fp16 or bf16"),
        (torch.ones(1, 64), torch.ones(3), "bias"),
        (torch.ones(1, 64), torch.ones(8)[::2], "bias"),
        (torch.ones(1, 64, device="meta"), None, "one device"),
    ],
)
def test_what_cannot_be_multiplied_is_said(x, bias, says):
    stored = quantize(weight(4, 64), Kind.INT8)
    if bias is not None:  # each second number of a tensor, moved, is a tensor without gaps
        bias = torch.ones(8, device=DEVICE)[::2] if bias.stride() == (2,) else bias.to(DEVICE)
    with pytest.raises(ValueError, match=says):
        kernels.linear(x if x.is_meta else x.to(DEVICE), pack(stored), bias)
