"""The native kernels against plain PyTorch and against sums in double precision, on odd shapes and poisoned memory."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runtime.attention import gathered
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.kv_cache import KvCache, KvShape, quantize
from kernels.native import build, matrix, ops

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no native kernels: {build.reason()}")
TYPES = [torch.float32, torch.bfloat16, torch.float16]
CODES = [torch.int8, torch.float8_e4m3fn]
CPU = torch.device("cpu")


def int32(values):
    return np.ascontiguousarray(values, dtype=np.int32)


def stored(x, dtype):
    """What a cache of ``dtype`` keeps of ``x``, in double precision."""
    if dtype in TYPES:
        return x.double()
    codes, scale = quantize(x, dtype)
    return codes.double() * scale[..., None].double()


class Case:
    """A ragged batch over a paged cache that holds NaN wherever no token was written."""

    def __init__(self, seed, dtype, kv, group, dim, window=0, softcap=0.0, sinks=False, most=70):
        self.g = g = torch.Generator().manual_seed(seed)
        lengths = [int(torch.randint(1, most, (1,), generator=g)) for _ in range(4)]
        new = [min(n, int(torch.randint(1, 9, (1,), generator=g))) for n in lengths]
        width = -(-max(lengths) // BLOCK) + 1
        self.tables = int32(torch.randperm(4 * width, generator=g).view(4, width))
        self.cache = KvCache([KvShape(kv, dim, dim)], 4 * width, dtype, CPU)
        for tensor in self.cache.tensors(0):
            tensor.fill_(77 if tensor.dtype == torch.int8 else float("nan"))  # int8 has no NaN, its scales have
        self.texts = []
        for row, n in enumerate(lengths):
            k, v = (torch.randn(n, kv, dim, generator=g) for _ in range(2))
            at = torch.arange(n)
            blocks = torch.from_numpy(self.tables[row].astype(np.int64))[at // BLOCK]
            if dtype in TYPES:
                k, v = k.to(dtype), v.to(dtype)
            self.cache.write(0, k, v, blocks, at % BLOCK)
            self.texts.append((stored(k, dtype), stored(v, dtype)))
        self.slots = int32(np.repeat(range(4), new))
        self.positions = int32([p for n, m in zip(lengths, new, strict=True) for p in range(n - m, n)])
        self.q = torch.randn(len(self.slots), kv * group, dim, generator=g) * 2
        self.sinks = torch.randn(kv * group, generator=g) if sinks else None
        self.how = (dim**-0.5, window, softcap, self.sinks)
        self.group, self.kv, self.dim = group, kv, dim

    def native(self, rows=None):
        rows = np.arange(len(self.slots)) if rows is None else np.array(rows)
        positions, slots = int32(self.positions[rows]), int32(self.slots[rows])
        scale, window, softcap, sinks = self.how
        at = None if sinks is None else sinks.data_ptr()
        heads = ops.Heads(self.kv * self.group, self.kv, self.dim, scale, softcap, window, at)
        q, batch = self.q[rows].contiguous(), ops.Rows.of(positions, slots, self.tables)
        out = ops.attend(q, self.cache.dtype, ops.Cache.of(*self.cache.tensors(0)), batch, heads, ops.Scratch())
        return out.view(q.shape)

    def plain(self):
        m = len(self.slots)
        batch = Batch(int32(np.zeros(m)), self.positions, self.slots, self.tables, int32(range(m)))
        return gathered(self.q, self.cache, 0, batch.on(CPU), *self.how)

    def exact(self):
        """In double precision, one row and head at a time."""
        scale, window, softcap, sinks = self.how
        out = torch.empty(self.q.shape, dtype=torch.float64)
        for r, (slot, at) in enumerate(zip(self.slots, self.positions, strict=True)):
            first = max(0, at - window + 1) if window else 0
            k, v = (t[first : at + 1] for t in self.texts[slot])
            for h in range(self.q.shape[1]):
                scores = k[:, h // self.group] @ self.q[r, h].double() * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[h : h + 1].double()])
                out[r, h] = scores.softmax(0)[: len(v)] @ v[:, h // self.group]
        return out


def check(case):
    exact, plain, native = case.exact(), case.plain(), case.native()
    limit = 2 * float((plain.double() - exact).abs().max()) + 1e-6
    assert float((native.double() - exact).abs().max()) <= limit
    assert limit < 1e-4, "the plain reference is wrong"


@pytest.mark.parametrize("dtype", TYPES + CODES)
@pytest.mark.parametrize("group", range(1, 8))
def test_attention_of_query_heads_that_share_keys(dtype, group):
    check(Case(group, dtype, 2, group, 32))


@pytest.mark.parametrize("dtype", TYPES + CODES)
@pytest.mark.parametrize("dim", [2, 16, 18, 34, 64, 80, 96, 112, 128])
def test_attention_at_every_width_of_a_head(dtype, dim):
    check(Case(dim, dtype, 1, 3, dim))


@pytest.mark.parametrize("window", [1, 5, 16, 17, 33])
def test_attention_sees_as_far_as_its_window(window):
    check(Case(window, torch.float32, 2, 2, 16, window=window))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(TYPES + CODES),
    kv=st.integers(1, 3),
    group=st.integers(1, 7),
    dim=st.integers(1, 64).map(lambda n: 2 * n),
    window=st.sampled_from([0, 0, 3, 16, 40]),
    softcap=st.sampled_from([0.0, 0.0, 5.0, 30.0]),
    sinks=st.booleans(),
)
def test_attention_in_any_combination(seed, dtype, kv, group, dim, window, softcap, sinks):
    check(Case(seed, dtype, kv, group, dim, window, softcap, sinks))


def test_scores_that_lie_far_apart_do_not_overflow():
    case = Case(1, torch.float32, 2, 2, 16)
    case.q *= 1000
    assert torch.isfinite(case.native()).all()
    check_far = (case.native().double() - case.exact()).abs().max()
    assert float(check_far) < 1e-3


@pytest.mark.parametrize("dtype", TYPES + CODES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_attention_is_the_same_to_the_bit_in_any_batch(dtype, threads, monkeypatch):
    case = Case(7, dtype, 2, 5, 80, window=20, softcap=20.0, sinks=True)
    together = case.native()
    library = build.library()
    monkeypatch.setattr(library, "threads", threads)
    library.isoquant_threads(threads)
    try:
        assert torch.equal(case.native(), together)
        for r in range(len(case.slots)):
            assert torch.equal(case.native([r])[0], together[r])
    finally:
        library.isoquant_threads(torch.get_num_threads())


@pytest.mark.parametrize("dtype", TYPES)
def test_store_rounds_as_torch_does_and_writes_nowhere_else(dtype):
    case, g = Case(3, dtype, 3, 1, 10), torch.Generator().manual_seed(0)
    k, v = (torch.randn(len(case.slots), 3, 10, generator=g) * 100 for _ in range(2))
    bits = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}[dtype]
    k[0, 0, :4] = torch.tensor([1 + 2.0 ** -(bits + 1), 1 + 3 * 2.0 ** -(bits + 1), 1e-30, -1e-6])  # ties, and tiny
    expected = KvCache(case.cache.shapes, case.cache.count, dtype, CPU)
    for mine, theirs in ((expected.keys, case.cache.keys), (expected.values, case.cache.values)):
        mine[0].copy_(theirs[0])
    blocks = torch.from_numpy(case.tables[case.slots, case.positions // BLOCK].astype(np.int64))
    expected.write(0, k.to(dtype), v.to(dtype), blocks, torch.from_numpy(case.positions.astype(np.int64)) % BLOCK)
    rows = ops.Rows.of(case.positions, case.slots, case.tables)
    ops.store(k, v, dtype, ops.Cache.of(*case.cache.tensors(0)), rows)
    assert torch.equal(case.cache.keys[0].nan_to_num(7e4), expected.keys[0].nan_to_num(7e4))
    assert torch.equal(case.cache.values[0].nan_to_num(7e4), expected.values[0].nan_to_num(7e4))


@pytest.mark.parametrize("dtype", CODES)
def test_store_makes_codes_as_torch_does_and_writes_nowhere_else(dtype):
    case, g = Case(3, dtype, 3, 1, 10), torch.Generator().manual_seed(0)
    k, v = (torch.randn(len(case.slots), 3, 10, generator=g) * s for s in (100, 1e-3))
    k[0, 0], k[1, 1] = 0.0, torch.tensor([448, -448, 1.0, 2.0**-9, 2.0**-10, 3 * 2.0**-10, -(2.0**-6), 17, 19, -21])
    v[2, 2, 3] = float("nan")
    blocks = torch.from_numpy(case.tables[case.slots, case.positions // BLOCK].astype(np.int64))
    expected = KvCache(case.cache.shapes, case.cache.count, dtype, CPU)
    for mine, theirs in zip(expected.tensors(0), case.cache.tensors(0), strict=True):
        mine.copy_(theirs)
    expected.write(0, k, v, blocks, torch.from_numpy(case.positions.astype(np.int64)) % BLOCK)
    ops.store(k, v, dtype, ops.Cache.of(*case.cache.tensors(0)), ops.Rows.of(case.positions, case.slots, case.tables))
    found = case.cache.tensors(0)
    for mine, theirs in zip(found[2:], expected.tensors(0)[2:], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=0, equal_nan=True)
    assert bool(found[3].isnan().any()), "a number that is none must not become one"
    kinds = (found[0], expected.keys[0], found[2][:, :, None]), (found[1], expected.values[0], found[3][..., None])
    for mine, theirs, scale in kinds:
        mine, theirs = mine.float(), theirs.float()
        other = ~((mine == theirs) | (mine.isnan() & theirs.isnan()) | scale.isnan())
        # The quotient is rounded otherwise once in a while: then to the code beside it.
        assert float(other.double().mean()) < 0.0005
        assert not other.any() or float(((mine - theirs).abs() / theirs.abs().clamp(min=1))[other].max()) <= 1.0


SIZE = st.integers(1, 70)


@settings(max_examples=80)
@given(m=SIZE, n=SIZE, k=SIZE, dtype=st.sampled_from(TYPES), seed=st.integers(0, 2**31))
def test_linear_is_a_matrix_product_at_every_size(m, n, k, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g).to(dtype)
    packed = matrix.pack(weight)
    found, exact = matrix.linear(x, packed), x.double() @ weight.double().T
    plain = x @ weight.float().T
    assert found.shape == (m, n)
    assert float((found - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + 1e-5
    for r in {0, m // 2, m - 1}:
        assert torch.equal(matrix.linear(x[r : r + 1], packed)[0], found[r]), "bit for bit"


def test_a_weight_that_is_a_view_is_packed_as_it_reads():
    whole = torch.arange(12.0).view(3, 4)
    assert torch.equal(matrix.linear(torch.eye(3), matrix.pack(whole.T)), whole)


def test_loading_the_kernels_leaves_the_processes_arithmetic_alone():
    """GCC's start-up code for -ffast-math would round all tiny numbers of this process to zero."""
    build.library()
    assert sys.float_info.min / 2 > 0
    assert float(torch.tensor(1e-39) * torch.tensor(1.0)) > 0
    assert float((np.array([1e-39], np.float32) * np.float32(1))[0]) > 0
