import pytest
import torch

from kernels.decode import reference
from kernels.decode.triton import decode
from tests.kernels.paged import DEVICE, DTYPES, LIMIT, Paged, error, features, tree

HEADS = 8


def check(paged, q, splits, limit, **how):
    given = (paged.keys, paged.values, paged.tables, paged.lengths)
    expected, expected_lse = reference.decode(q, *given, scale=0.2, **how)
    found, lse = decode(q, *given, scale=0.2, splits=splits, **how)
    assert error(found, expected) < limit
    assert ((lse.double() - expected_lse).abs() / expected_lse.abs().clamp(min=1)).max() < 3e-6


def queries(n, new, heads, dim, dtype=torch.float32):
    return torch.randn(n, new, heads, dim, generator=torch.Generator().manual_seed(9)).to(DEVICE, dtype)


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("feature", features(HEADS))
@pytest.mark.parametrize("new", [1, 3])
def test_every_feature_with_any_split(feature, splits, new):
    paged = Paged((new, 17, 130))
    check(paged, queries(3, new, HEADS, 64), splits, LIMIT[torch.float32], **features(HEADS)[feature])


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1), (32, 2)])
@pytest.mark.parametrize(("dim", "value_dim"), [(32, 32), (80, 80), (256, 256), (48, 32)])
def test_every_width_and_group(heads, kv_heads, dim, value_dim):
    paged = Paged((1, 33), kv_heads=kv_heads, dim=dim, value_dim=value_dim)
    check(paged, queries(2, 1, heads, dim), 2, LIMIT[torch.float32])


@pytest.mark.parametrize("name", DTYPES)
def test_half_precision_is_as_exact_as_pytorch(name):
    dtype = DTYPES[name]
    paged = Paged((5, 70), dtype=dtype)
    check(paged, queries(2, 1, HEADS, 64, dtype), 2, LIMIT[dtype])


@pytest.mark.parametrize("page", [16, 64])
def test_pages_of_any_size(page):
    check(Paged((1, 64, 65), page=page), queries(3, 1, HEADS, 64), 2, LIMIT[torch.float32])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("splits", [1, 3])
def test_a_cache_of_one_byte_is_read_with_its_scales(dtype, splits):
    paged = Paged((4, 90))
    keys, values, key_scales, value_scales = paged.quantized(dtype)
    how = {"scale": 0.2, "key_scales": key_scales, "value_scales": value_scales}
    q = queries(2, 1, HEADS, 64)
    given = (keys, values, paged.tables, paged.lengths)
    expected = reference.decode(q, *given, **how)[0]
    assert error(decode(q, *given, splits=splits, **how)[0], expected) < 2e-6
    exact = reference.decode(q, paged.keys, paged.values, *given[2:], scale=0.2)[0]
    assert error(expected, exact) < {torch.int8: 2e-2, torch.float8_e4m3fn: 6e-2}[dtype]


@pytest.mark.parametrize("splits", [1, 3])
def test_a_draft_tree_sees_its_ancestors(splits):
    paged = Paged((6, 30, 100))
    masks = torch.tensor([tree([-1, 0, 0, 1, 2, 2]), tree([-1, 0, 1, 2, 3, 4]), tree([-1, -1, 0, 1, 3, 2])])
    check(paged, queries(3, 6, HEADS, 64), splits, LIMIT[torch.float32], tree=masks.to(DEVICE))


def test_a_prefix_read_once_and_its_endings_merge_to_the_whole():
    """What shared prefixes rest on: parts of the keys, put together by their log-sum-exp."""
    paged = Paged((96,), seed=3)
    q = queries(1, 1, HEADS, 64)
    whole = decode(q, paged.keys, paged.values, paged.tables, paged.lengths, scale=0.2)[0]
    parts = [
        decode(q, paged.keys, paged.values, paged.tables[:, a:], torch.full_like(paged.lengths, n), scale=0.2)
        for a, n in ((0, 64), (4, 32))
    ]
    weight = torch.stack([lse for _, lse in parts]).mul(0.6931471805599453).softmax(0)
    merged = sum(w[..., None] * out for w, (out, _) in zip(weight, parts, strict=True))
    assert error(merged, whole.double()) < 1e-6
