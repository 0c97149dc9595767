"""Matrices of every format in C++ against sums in double precision, at odd shapes and over poisoned memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.linear.weight import GROUPS, NF4, Kind, QuantizedWeight, dequantize, quantize, with_codes
from kernels.native import build, matrix

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no native kernels: {build.reason()}")
TYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [(t, -1, False) for t in TYPES] + [(Kind.INT8, -1, False), (Kind.FP8, -1, False)]
FORMATS += [(Kind.NF4, g, False) for g in GROUPS] + [(Kind.INT4, g, z) for g in GROUPS for z in (False, True)]
SHAPES = [(1, 128), (33, 256), (70, 384), (160, 128)]
ODD = [(1, 1), (5, 7), (33, 65), (70, 131), (257, 90)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight_of(kind, group, zeros, n, k, seed=0):
    """A weight in a format, and its numbers in fp64."""
    numbers = torch.randn(n, k, generator=generator(seed)) + 0.3 * zeros
    if isinstance(kind, torch.dtype):
        return numbers.to(kind), numbers.to(kind).double()
    weight = quantize(numbers, kind, group=group, zero_points=zeros)
    return weight, dequantize(weight, torch.float64)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What is not written beforehand is NaN."""
    empty = torch.empty

    def filled(*size, **more):
        found = empty(*size, **more)
        return found.fill_(float("nan")) if found.is_floating_point() else found.fill_(77)

    monkeypatch.setattr(torch, "empty", filled)


def check(x, packed, exact_weight, bias=None):
    """At most twice the error of plain fp32 on the same numbers, which is given the room of an odd last bit.

    Codes and zero points are summed apart: the bit is one of the larger sums.
    """
    reach = exact_weight.abs()
    if packed.zeros is not None:
        weight = matrix.unpack(packed)
        offsets = (weight.zeros.double() * weight.scales.double()).abs()
        reach = reach + offsets.repeat_interleave(reach.shape[1] // offsets.shape[1], 1)
    exact, plain = x.double() @ exact_weight.T, x @ exact_weight.float().T
    if bias is not None:
        exact, plain = exact + bias.double(), plain + bias
    found = matrix.linear(x, packed, bias)
    room = 2**-23 * float((x.double().abs() @ reach.T).max())
    assert found.shape == exact.shape
    assert float((found - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + room
    return found


@pytest.mark.parametrize(("kind", "group", "zeros"), FORMATS)
@pytest.mark.parametrize("m", [*range(1, 21), 49, 100])
def test_products_of_every_format_at_every_number_of_rows(kind, group, zeros, m):
    for n, k in SHAPES:
        weight, exact = weight_of(kind, group, zeros, n, k, seed=m)
        packed, x = matrix.pack(weight), torch.randn(m, k, generator=generator(1000 + m))
        bias = torch.randn(n, generator=generator(n)) if m % 2 else None
        found = check(x, packed, exact, bias)
        for r in {0, m // 2, m - 1}:
            assert torch.equal(matrix.linear(x[r : r + 1], packed, bias)[0], found[r]), "bit for bit"


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 80),
    k=st.integers(1, 300),
    kind=st.sampled_from([*TYPES, *Kind]),
    zeros=st.booleans(),
)
def test_odd_shapes(m, n, k, kind, zeros):
    weight, exact = weight_of(kind, -1, zeros and kind == Kind.INT4, n, k)
    check(torch.randn(m, k, generator=generator(1000 + k)), matrix.pack(weight), exact)


@pytest.mark.parametrize(("kind", "group", "zeros"), FORMATS)
@pytest.mark.parametrize("activation", [None, "dynamic", 0.05])
def test_unpacking_gives_the_canonical_form_back_to_the_bit(kind, group, zeros, activation):
    if activation is not None and kind != Kind.INT8:
        pytest.skip("int8 alone")
    for n, k in SHAPES + (ODD if group == -1 else []):
        weight, _ = weight_of(kind, group, zeros, n, k)
        found = matrix.unpack(matrix.pack(weight, activation))
        if isinstance(weight, torch.Tensor):
            assert torch.equal(found, weight)
            assert found.is_contiguous()
            continue
        assert (found.kind, found.group, found.shape) == (weight.kind, weight.group, weight.shape)
        assert found.tensors.keys() == weight.tensors.keys()
        for name, tensor in weight.tensors.items():
            assert found.tensors[name].dtype == tensor.dtype
            assert torch.equal(found.tensors[name].view(torch.uint8), tensor.view(torch.uint8))
            assert found.tensors[name].is_contiguous()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", list(Kind))
def test_every_code_of_a_kind_is_the_number_it_stands_for(kind, rows):
    """Through an identity: no sum, no rounding, subnormal fp8 and the offset of int4 included."""
    if kind == Kind.FP8:
        codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
        codes = codes[~codes.float().isnan()]
    else:
        codes = torch.arange(-128, 128) if kind == Kind.INT8 else torch.arange(16) - 8 * (kind == Kind.INT4)
    codes = (codes if kind == Kind.FP8 else codes.to(torch.int8)).reshape(-1, 1)
    weight = with_codes(codes, kind, torch.ones(len(codes), 1), None, -1)
    found = matrix.linear(torch.ones(rows, 1), matrix.pack(weight))
    expected = torch.tensor(NF4) if kind == Kind.NF4 else codes[:, 0].float()
    assert torch.equal(found, expected.expand(rows, -1))


def by_hand(x, weight, activation):
    """Integer sums in int64 and what they stand for in fp64."""
    if activation == "dynamic":
        largest = x.abs().amax(-1, keepdim=True)
        scale, inverse = largest / 127, torch.where(largest > 0, 127 / largest, 0.0)
    else:
        scale = torch.full((len(x), 1), activation)
        inverse = 1 / scale
    codes = (x * inverse).round().clamp(-127, 127).long()
    sums = codes @ weight.codes.long().T
    return sums, sums.double() * scale.double() * weight.scales[:, 0].double()


@pytest.mark.parametrize("activation", ["dynamic", 0.01])
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 20, 100])
def test_integer_dot_products_are_exact(activation, m):
    """Codes are random over all of int8; sums stay where fp32 holds each integer or are rounded once."""
    for n, k in SHAPES + ODD:
        g = generator(m)
        codes = torch.randint(-128, 128, (n, k), generator=g).to(torch.int8)
        weight = QuantizedWeight(Kind.INT8, codes, torch.rand(n, 1, generator=g) + 0.1, None, -1, (n, k))
        x = torch.randn(m, k, generator=g)
        x[0] = 0
        sums, expected = by_hand(x, weight, activation)
        found = matrix.linear(x, matrix.pack(weight, activation)).double()
        assert float((found - expected).abs().max()) <= 4 * 2**-24 * float(expected.abs().max())
        ones = QuantizedWeight(Kind.INT8, codes, torch.ones(n, 1), None, -1, (n, k))
        scale = 2.0**-5  # so that nothing but the integers is left
        sums = by_hand(x, ones, scale)[0]
        assert torch.equal(matrix.linear(x, matrix.pack(ones, scale)), sums.float() * scale)


def test_inputs_beyond_a_static_scale_are_clamped():
    weight = QuantizedWeight(Kind.INT8, torch.eye(4).to(torch.int8), torch.ones(4, 1), None, -1, (4, 4))
    x = torch.tensor([[100.0, -100.0, 1.0, 0.3]])
    assert torch.equal(matrix.linear(x, matrix.pack(weight, 0.5)), torch.tensor([[63.5, -63.5, 1.0, 0.5]]))


def test_int8_inputs_are_refused_where_there_are_none():
    for weight in (torch.eye(8), quantize(torch.eye(8), Kind.INT4), quantize(torch.eye(8), Kind.FP8)):
        with pytest.raises(ValueError, match="int8 weights"):
            matrix.pack(weight, "dynamic")
    with pytest.raises(ValueError, match="must be positive"):
        matrix.pack(quantize(torch.eye(8), Kind.INT8), 0.0)
    with pytest.raises(ValueError, match="at most"):
        matrix.pack(quantize(torch.ones(1, matrix.LONGEST + 1), Kind.INT8), "dynamic")


MIXED = [(Kind.INT4, 32, True), (Kind.INT8, -1, False), (torch.bfloat16, -1, False), (Kind.INT4, 64, True)]


@pytest.mark.parametrize("m", [1, 5, 50])
@pytest.mark.parametrize("first", range(len(MIXED)))
def test_parts_of_several_formats_write_their_own_columns(first, m):
    chosen = (MIXED * 2)[first : first + 3]
    made = [weight_of(*f, n, 128, seed=n) for f, n in zip(chosen, (33, 64, 7), strict=True)]
    packed = [matrix.pack(w) for w, _ in made]
    x = torch.randn(m, 128, generator=generator(1))
    found = matrix.multiply(x, [p.described() for p in packed])
    assert torch.equal(found, torch.cat([matrix.linear(x, p) for p in packed], 1))


@pytest.mark.parametrize("m", [1, 4, 50])
def test_low_rank_pairs_stand_beside_other_parts(m):
    kinds = [(Kind.INT4, 32, True), (torch.float32, -1, False), (Kind.INT8, -1, False)]
    x = torch.randn(m, 96, generator=generator(2))
    kept, parts, expected = [], [], []
    for kind in kinds:
        first, second = (matrix.pack(weight_of(*kind, *shape, seed=3)[0]) for shape in ((32, 96), (45, 32)))
        bias = torch.randn(45, generator=generator(4))
        following = second.described(bias)
        kept += [first, second, bias, following]
        parts.append(first.described(None, following))
        expected.append(matrix.linear(matrix.linear(x, first), second, bias))
    dense = matrix.pack(weight_of(*kinds[0], 40, 96)[0])
    found = matrix.multiply(x, [parts[0], dense.described(), parts[2]])
    assert torch.equal(found, torch.cat([expected[0], matrix.linear(x, dense), expected[2]], 1))
    assert torch.equal(matrix.multiply(x, parts), torch.cat(expected, 1))


def test_int8_inputs_of_parts_with_scales_of_their_own():
    weights = [weight_of(Kind.INT8, -1, False, 20, 50, seed=s)[0] for s in range(3)]
    x = torch.randn(3, 50, generator=generator(2))
    packed = [matrix.pack(w, a) for w, a in zip(weights, ("dynamic", 0.02, 0.04), strict=True)]
    found = matrix.multiply(x, [p.described() for p in packed])
    assert torch.equal(found, torch.cat([matrix.linear(x, p) for p in packed], 1))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(threads):
    packed = [matrix.pack(weight_of(*f, 161, 128)[0]) for f in FORMATS]
    x = torch.randn(100, 128, generator=generator(2))
    expected = [matrix.linear(x, p) for p in packed]
    library = build.library()
    library.isoquant_threads(threads)
    try:
        assert all(torch.equal(matrix.linear(x, p), e) for p, e in zip(packed, expected, strict=True))
    finally:
        library.isoquant_threads(torch.get_num_threads())


def test_sizes_are_those_of_the_codes():
    weight = quantize(torch.randn(64, 128, generator=generator()), Kind.INT4, group=32)
    assert matrix.pack(weight).size_bytes == weight.size_bytes == 64 * 128 // 2 + 64 * 4 * 2
    assert matrix.pack(torch.zeros(64, 128)).size_bytes == 64 * 128 * 4
