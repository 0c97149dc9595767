"""The small fused operations."""

import pytest
import torch

from kernels.norm import reference as norm_reference
from kernels.norm.triton import add_rms_norm
from kernels.rope import reference as rope_reference
from kernels.rope.triton import rotate_and_store
from kernels.swiglu import reference as swiglu_reference
from kernels.swiglu.triton import gated
from tests.kernels.paged import DEVICE, DTYPES, LIMIT, error


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 64, 200])
@pytest.mark.parametrize(("offset", "wide"), [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("summed", [False, True])
def test_norms(name, n, offset, wide, summed):
    dtype = DTYPES[name]
    x, weight = drawn(5, 2 * n, dtype=dtype)[:, :n], drawn(n, dtype=dtype, seed=2)
    residual = drawn(5, n, dtype=dtype, seed=1) if summed else None
    found, total = add_rms_norm(x, weight, 1e-6, residual, offset, wide)
    expected, expected_total = norm_reference.add_rms_norm(x, weight, 1e-6, residual, offset)
    assert error(found, expected) < LIMIT[dtype]
    assert error(total, expected_total.double()) < LIMIT[dtype]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_of_any_size(name, activation):
    dtype = DTYPES[name]
    both = (drawn(3, 2 * 1500) * 30).to(dtype)  # beyond what exp() of fp32 can hold
    gate, up = both[:, :1500], both[:, 1500:]
    assert error(gated(gate, up, activation), swiglu_reference.gated(gate, up, activation)) < LIMIT[dtype]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("dim", "turning", "normed"), [(32, 32, False), (40, 20, False), (64, 64, True)])
@pytest.mark.parametrize("cache", [None, torch.int8, torch.float8_e4m3fn])
def test_rotation_and_write(name, dim, turning, normed, cache):
    dtype, tokens, heads, kv_heads, page = DTYPES[name], 5, 6, 2, 16
    packed = drawn(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    parts = packed.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
    q, k, v = (p.view(tokens, -1, dim) for p in parts)
    angle = drawn(tokens, turning // 2).abs().repeat(1, 2)
    blocks, places = torch.tensor([[0, 3, 3, 1, 2], [0, 4, 5, 15, 7]], device=DEVICE)
    norms = {"q_norm": drawn(dim, dtype=dtype, seed=4), "k_norm": drawn(dim, dtype=dtype, seed=5)} if normed else {}
    shape = (4, kv_heads, page, dim)
    expected_k, expected_v = (torch.full(shape, torch.nan, dtype=torch.float64, device=DEVICE) for _ in range(2))
    given = (q, k, v, angle.cos(), angle.sin(), blocks, places)
    expected = rope_reference.rotate_and_store(*given, expected_k, expected_v, **norms)
    written = ~expected_k.isnan()
    if cache is None:
        keys, values = (torch.full(shape, torch.nan, device=DEVICE).to(dtype) for _ in range(2))
        found = rotate_and_store(*given, keys, values, **norms)
        assert torch.equal(~keys.isnan(), written)
        limit = LIMIT[dtype]
    else:
        one, two = (torch.zeros(shape, device=DEVICE).to(cache) for _ in range(2))
        scales = [torch.full(shape[:3], torch.nan, device=DEVICE) for _ in range(2)]
        found = rotate_and_store(*given, one, two, **norms, key_scales=scales[0], value_scales=scales[1])
        keys, values = (x.float() * s[..., None] for x, s in zip((one, two), scales, strict=True))
        assert torch.equal(~keys.isnan(), written)  # a scale for each token that was written, and for no other
        limit = {torch.int8: 1.5e-2, torch.float8_e4m3fn: 7e-2}[cache]
    # With norms transformers' module rounds twice before it rotates.
    assert error(found, expected) < (2 if normed else 1) * LIMIT[dtype]
    assert error(keys[written], expected_k[written]) < (2 if normed else 1) * limit
    assert error(values[written], expected_v[written]) < limit
