import math

import numpy as np
import pytest
import torch

import kernels.forest.triton
from kernels.decode.triton import decode
from kernels.forest import reference
from kernels.forest.plan import COUNT, SPLIT, Size, plan
from kernels.forest.triton import forest, size_for
from tests.kernels.paged import DEVICE, DTYPES, INTERPRETED, LIMIT, Paged, error, features

HEADS = 4  # two to a key/value head


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Results and partial results begin as NaN: what is read was written."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: empty(*shape, **how).fill_(math.nan))


class Forest(Paged):
    """Sequences, of which some begin with blocks of others: ``shared`` names (sequence, other, how many blocks)."""

    def __init__(self, lengths, shared=(), **how):
        super().__init__(lengths, **how)
        for i, other, blocks in shared:
            assert blocks * self.page <= min(lengths[i], lengths[other])
            self.tables[i, :blocks] = self.tables[other, :blocks]
        unused = torch.ones(len(self.keys), dtype=torch.bool)
        for table, length in zip(self.tables, lengths, strict=True):
            unused[table[: -(-length // self.page)].long().cpu()] = False
        self.keys[unused.to(DEVICE)] = self.values[unused.to(DEVICE)] = math.nan

    @property
    def given(self):
        return self.keys, self.values, self.tables, self.lengths

    def plan(self, size, least_keys=16, least_sequences=2):
        tables, lengths = self.tables.cpu().numpy(), self.lengths.cpu().numpy()
        return plan(tables, lengths, size, block=self.page, least_keys=least_keys, least_sequences=least_sequences)


def random_forest(seed, n, longest, depth, **how):
    """Each sequence shares a beginning with an earlier one, ``depth`` times over."""
    rng = np.random.default_rng(seed)
    lengths = tuple(rng.integers(1, longest, n).tolist())
    shared = []
    for _ in range(depth):
        for i in range(1, n):
            other = int(rng.integers(i))
            shared.append((i, other, int(rng.integers(min(lengths[i], lengths[other]) // 16 + 1))))
    return Forest(lengths, shared, seed=seed, **how)


def queries(n, heads, dim, dtype=torch.float32):
    return torch.randn(n, heads, dim, generator=torch.Generator().manual_seed(9)).to(DEVICE, dtype)


def flat(made):
    return torch.from_numpy(made.flat).to(DEVICE)


def check(paged, q, size, limit=LIMIT[torch.float32], made=None, alone=False, **how):
    made = made or paged.plan(size)
    expected, expected_lse = reference.forest(q, *paged.given, scale=0.2, **how)
    found, lse = forest(q, *paged.given, flat(made), size, scale=0.2, **how)
    assert error(found, expected) < limit
    assert ((lse.double() - expected_lse).abs() / expected_lse.abs().clamp(min=1)).max() < 3e-6
    if alone:
        assert error(found, decode(q[:, None], *paged.given, scale=0.2, **how)[0][:, 0].double()) < 1e-5
    return made


BRANCHED = ((1, 0, 2), (2, 1, 4), (3, 0, 1), (4, 2, 4))  # for sequences of the lengths below: three deep, and ragged
LENGTHS = (50, 70, 103, 33, 64, 1)


@pytest.mark.parametrize("feature", features(HEADS))
@pytest.mark.parametrize("rows", [16, 32])
def test_every_feature(feature, rows):
    paged, how = Forest(LENGTHS, BRANCHED), features(HEADS)[feature]
    made = check(paged, queries(6, HEADS, 64), Size(6, 2, rows, 3), alone=rows == 16, **how)
    assert made.shares


@pytest.mark.parametrize("seed", range(8))
def test_forests_of_any_depth(seed, monkeypatch):
    """Some with more parts than are merged at a time."""
    n = 2 + seed
    monkeypatch.setattr(kernels.forest.triton, "MERGED", 2 if seed % 2 else 16)
    paged, size = random_forest(seed, n, 120, 1 + seed, dim=32), Size(n, 2, 16 + 16 * (seed % 2), 1 + seed % 4)
    check(paged, queries(n, HEADS, 32), size, alone=True)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"),
    [
        (1, 1, 32, 32),
        (4, 4, 80, 80),
        (6, 2, 48, 32),
        (7, 1, 80, 80),
        (20, 1, 32, 48),
        (2, 1, 256, 256),
        (3, 3, 256, 256),
        (12, 2, 192, 128),
    ],
)
def test_every_width_and_group(heads, kv_heads, dim, value_dim):
    paged = Forest((40, 33, 50), ((1, 0, 2), (2, 0, 2)), kv_heads=kv_heads, dim=dim, value_dim=value_dim)
    check(paged, queries(3, heads, dim), size_for(3, heads, kv_heads, 256, torch.float32, DEVICE))


@pytest.mark.parametrize(("name", "rows", "n"), [*((name, 64, 9) for name in DTYPES), ("bf16", 128, 17)])
def test_half_precision_in_tiles_of_many_rows_is_as_exact_as_pytorch(name, rows, n):
    """Eight rows for each sequence: tiles that are full, and one that is not."""
    if not INTERPRETED and name == "fp32":
        pytest.skip("fp32 has tiles of few rows on a GPU")
    paged = Forest((40,) * n, tuple((i, 0, 2) for i in range(1, n)), kv_heads=1, dtype=DTYPES[name])
    made = check(paged, queries(n, 8, 64, DTYPES[name]), Size(n, 8, rows, 2), LIMIT[DTYPES[name]])
    assert set(made.wide[:, COUNT].tolist()) == {0, rows // 8, n % (rows // 8)}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("q_type", [torch.float32, torch.float16])
def test_a_cache_of_one_byte_is_read_with_its_scales(dtype, q_type):
    paged = Forest(LENGTHS, BRANCHED)
    keys, values, key_scales, value_scales = paged.quantized(dtype)
    how = {"scale": 0.2, "key_scales": key_scales, "value_scales": value_scales}
    q, size = queries(6, HEADS, 64, q_type), Size(6, 2, 16, 3)
    given = (keys, values, paged.tables, paged.lengths)
    expected = reference.forest(q, *given, **how)[0]
    assert error(forest(q, *given, flat(paged.plan(size)), size, **how)[0], expected) < LIMIT[q_type]


def test_blocks_of_another_size():
    paged = Forest((200, 130, 129), ((1, 0, 2), (2, 0, 1)), page=64)
    assert check(paged, queries(3, HEADS, 64), Size(3, 2, 16, 3)).shares


@pytest.mark.parametrize("window", [0, 5, 300, 700])
def test_long_prefixes_are_split(window):
    """The shared 1,040 keys and one sequence's own 560 take several programs; a window may leave nothing of them."""
    lengths = (1600, 1041, 1050, 1100, 1040)
    paged = Forest(lengths, tuple((i, 0, 65) for i in range(1, 5)), kv_heads=1, dim=32)
    made = paged.plan(Size(5, 2, 16, 12), least_keys=256, least_sequences=4)
    assert made.wide[made.wide[:, COUNT] > 0][:, SPLIT].max() > 1
    assert made.narrow[:, SPLIT].max() > 0
    check(paged, queries(5, 2, 32), made.size, made=made, window=window)


@pytest.mark.parametrize(
    ("lengths", "shared"),
    [
        ((1,), ()),
        ((77,), ()),
        ((1, 1, 1), ()),
        ((50, 64, 16), ()),
        ((48, 48, 48), ((1, 0, 3), (2, 0, 3))),  # nothing of their own
        ((49, 63, 48), ((1, 0, 3), (2, 0, 3))),
        ((16, 17, 80), ((1, 0, 1), (2, 0, 1))),
    ],
)
def test_one_sequence_nothing_shared_and_everything_shared(lengths, shared):
    n = len(lengths)
    made = check(Forest(lengths, shared), queries(n, HEADS, 64), Size(n, 2, 16, 2))
    assert made.shares == bool(shared)


def test_rows_that_fill_up_do_not_matter():
    """Their tables name a spare block alone, whatever it holds."""
    paged = Forest((60, 70, 33, 1, 1, 1), ((1, 0, 3), (2, 1, 2)))
    spare = int(paged.tables[3, 0])
    paged.tables[3:] = spare
    paged.keys[spare] = paged.values[spare] = math.nan
    q, size = queries(6, HEADS, 64), Size(6, 2, 16, 2)
    found = forest(q, *paged.given, flat(paged.plan(size)), size, scale=0.2)[0]
    first = (paged.keys, paged.values, paged.tables[:3], paged.lengths[:3])
    assert error(found[:3], reference.forest(q[:3], *first, scale=0.2)[0]) < LIMIT[torch.float32]


@pytest.mark.parametrize("window", [0, 20])
def test_a_plan_is_kept_while_the_sequences_grow(window):
    """Planned when each was shorter by up to a block and more; nothing of what the new tokens need is in it."""
    paged = Forest((90, 99, 110, 64, 50), ((1, 0, 4), (2, 0, 4), (3, 0, 3), (4, 0, 2)))
    size = Size(5, 2, 16, 3)
    now = paged.lengths.clone()
    paged.lengths -= torch.tensor([25, 0, 1, 16, 17], dtype=torch.int32, device=DEVICE)
    made = paged.plan(size)
    paged.lengths = now
    assert made.shares
    check(paged, queries(5, HEADS, 64), size, made=made, window=window)


def test_queries_and_tables_with_strides():
    paged = Forest(LENGTHS, BRANCHED)
    paged.tables = torch.cat([paged.tables, paged.tables], 1)[:, : paged.tables.shape[1]]
    q = queries(6, 3 * HEADS, 64)[:, HEADS : 2 * HEADS]
    check(paged, q, Size(6, 2, 16, 3))


def test_a_plan_of_another_size_is_refused():
    paged, size = Forest(LENGTHS, BRANCHED), Size(6, 2, 16, 3)
    made = flat(paged.plan(size))
    for q, given, other in (
        (queries(5, HEADS, 64), made, size),
        (queries(6, 2, 64), made, size),
        (queries(6, HEADS, 64), made[:-1], size),
    ):
        with pytest.raises(ValueError, match="and a plan"):
            forest(q, *paged.given, given, other, scale=0.2)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")
def test_a_recorded_step_holds_for_other_plans():
    first = Forest(LENGTHS, BRANCHED, dtype=torch.bfloat16)
    second = Forest(LENGTHS, ((5, 0, 0), (2, 1, 4)), dtype=torch.bfloat16)
    q, size = queries(6, HEADS, 64, torch.bfloat16), Size(6, 2, 64, 3)
    given, work = [x.clone() for x in first.given], flat(first.plan(size))
    forest(q, *given, work, size, scale=0.2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, _ = forest(q, *given, work, size, scale=0.2)
    for paged in (second, first):
        for kept, new in zip([*given, work], [*paged.given, flat(paged.plan(size))], strict=True):
            kept.copy_(new)
        graph.replay()
        assert error(found, reference.forest(q, *paged.given, scale=0.2)[0]) < LIMIT[torch.bfloat16]
