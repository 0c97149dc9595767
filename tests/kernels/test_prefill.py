import pytest
import torch

from kernels.prefill import reference
from kernels.prefill.triton import prefill, tiles
from tests.kernels.paged import DEVICE, DTYPES, LIMIT, Paged, error, features

HEADS = 8
COUNTS, LENGTHS = (5, 40, 1, 17), (5, 90, 33, 40)  # whole prompts, a piece behind others, one token


def check(paged, counts, limit, *, heads=HEADS, dim=64, dtype=torch.float32, rows=32, width=32, **how):
    q = torch.randn(sum(counts), heads, dim, generator=torch.Generator().manual_seed(9)).to(DEVICE, dtype)
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    given = (q, paged.keys, paged.values, paged.tables, paged.lengths, starts)
    expected, expected_lse = reference.prefill(*given, scale=0.2, **how)
    cut = tuple(torch.from_numpy(a).to(DEVICE) for a in tiles(counts, heads // paged.keys.shape[1], rows))
    found, lse = prefill(*given, cut, scale=0.2, rows=rows, width=width, **how)
    assert error(found, expected) < limit
    assert ((lse.double() - expected_lse).abs() / expected_lse.abs().clamp(min=1)).max() < 3e-6


@pytest.mark.parametrize(("rows", "width"), [(16, 16), (32, 32), (64, 16)])
@pytest.mark.parametrize("feature", features(HEADS))
def test_every_feature_in_any_tile(feature, rows, width):
    check(Paged(LENGTHS), COUNTS, LIMIT[torch.float32], rows=rows, width=width, **features(HEADS)[feature])


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize(("dim", "value_dim"), [(32, 32), (80, 80), (48, 32)])
def test_every_width_and_group(heads, kv_heads, dim, value_dim):
    paged = Paged((20, 33), kv_heads=kv_heads, dim=dim, value_dim=value_dim)
    check(paged, (20, 9), LIMIT[torch.float32], heads=heads, dim=dim)


@pytest.mark.parametrize("name", DTYPES)
def test_half_precision_is_as_exact_as_pytorch(name):
    dtype = DTYPES[name]
    check(Paged(LENGTHS, dtype=dtype), COUNTS, LIMIT[dtype], dtype=dtype)
