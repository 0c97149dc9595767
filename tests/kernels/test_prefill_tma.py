"""Whole prompts by descriptors: the Triton kernel in the interpreter, the Gluon kernel acted out, and both on a GPU."""

import math
import random
import threading
import types

import pytest
import torch

from kernels.attention import LOG2E
from kernels.decode import reference as paged
from kernels.prefill import gluon, reference, tma
from kernels.prefill.triton import tiles
from tests.kernels.paged import DEVICE, DTYPES, INTERPRETED, LIMIT, error, features

if DEVICE.type == "cuda" and tma.reason(DEVICE, torch.bfloat16, 64):
    pytest.skip(tma.reason(DEVICE, torch.bfloat16, 64), allow_module_level=True)

HEADS = 4
COUNTS = (5, 1, 0, 35, 16)  # with a sequence of one token, one of none, and ends within a tile and on its edge
BEHIND = 7  # rows that belong to no sequence


def prompts(counts, *, heads=HEADS, kv_heads=2, dim=64, dtype=torch.float32, seed=9):
    """q, k and v as one product would give them, with NaN behind the last sequence, and where sequences start."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(counts) + BEHIND, heads + 2 * kv_heads, dim, generator=g)
    x[sum(counts) :] = math.nan
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    return *x.to(DEVICE, dtype).split((heads, kv_heads, kv_heads), 1), starts


def expected(q, k, v, starts, *, causal=True, **how):
    """The paged references over pages of one token; without causality each query is a sequence's newest token."""
    lengths, n = starts.diff(), int(starts[-1])
    tables = (starts[:-1, None] + torch.arange(int(lengths.max()), device=q.device)).clamp(max=n - 1).int()
    cache = k[:n, :, None], v[:n, :, None]
    if causal:
        keep = lengths > 0
        return reference.prefill(
            q, *cache, tables[keep], lengths[keep], starts[torch.cat([keep, keep[:1] | True])], **how
        )
    whose = torch.repeat_interleave(torch.arange(len(lengths), device=q.device), lengths)
    out, lse = paged.decode(q[:n, None], *cache, tables[whose], lengths[whose], **how)
    return out[:, 0], lse[:, 0]


def cut(counts, rows):
    return tuple(torch.from_numpy(a).to(DEVICE) for a in tiles(counts, 1, rows))


def agree(found, right, limit):
    (out, lse), (right_out, right_lse) = found, right
    n = len(right_out)
    assert error(out[:n], right_out) < limit
    assert ((lse[:n].double() - right_lse).abs() / right_lse.abs().clamp(min=1)).max() < 3e-6
    assert out[n:].isnan().all(), "rows of no sequence are written"
    assert lse[n:].isnan().all(), "rows of no sequence are written"


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What a kernel allocates holds NaN until it is written."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: empty(*a, **kw).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **kw: empty_like(*a, **kw).fill_(math.nan))


def check(counts, limit, *, rows=32, width=32, heads=HEADS, kv_heads=2, dim=64, dtype=torch.float32, **how):
    q, k, v, starts = prompts(counts, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)
    found = tma.prefill(
        q, k, v, starts, cut(counts, rows or tma.shape_for(dim)[0]), scale=0.2, rows=rows, width=width, **how
    )
    agree(found, expected(q, k, v, starts, scale=0.2, **how), limit)


@pytest.mark.parametrize(("rows", "width"), [(32, 16), (16, 64)])
@pytest.mark.parametrize("feature", features(HEADS))
def test_every_feature_in_any_tile(feature, rows, width):
    check(COUNTS, LIMIT[torch.float32], rows=rows, width=width, **features(HEADS)[feature])


@pytest.mark.parametrize("window", [1, 16, 30])
def test_windows_that_end_within_a_tile_and_on_its_edge(window):
    check((50,), LIMIT[torch.float32], rows=16, width=16, heads=2, kv_heads=1, window=window)


@pytest.mark.parametrize(("rows", "width"), [(16, 32), (32, 16)])
@pytest.mark.parametrize("feature", ["plain", "sinks"])
def test_without_causality(feature, rows, width):
    check(COUNTS, LIMIT[torch.float32], rows=rows, width=width, causal=False, **features(HEADS)[feature])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 16), (4, 4, 80), (6, 2, 48), (7, 1, 32)])
def test_every_width_and_group(heads, kv_heads, dim):
    check((20, 33), LIMIT[torch.float32], heads=heads, kv_heads=kv_heads, dim=dim)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_is_as_exact_as_pytorch(name, dim):
    check((5, 140), LIMIT[DTYPES[name]], rows=0, width=0, heads=2, kv_heads=1, dim=dim, dtype=DTYPES[name])


@pytest.mark.parametrize("causal", [True, False])
def test_a_sequence_does_not_feel_its_neighbours(causal):
    q, k, v, starts = prompts((21, 10, 30))
    given = starts, cut((21, 10, 30), 16)
    alone = tma.prefill(q, k, v, *given, scale=0.2, causal=causal, rows=16, width=16)
    for x in (q, k, v):
        x[21:31] = math.nan
    beside = tma.prefill(q, k, v, *given, scale=0.2, causal=causal, rows=16, width=16)
    for a, b in zip(alone, beside, strict=True):
        assert torch.equal(a[:21], b[:21])
        assert torch.equal(a[31:61], b[31:61])
        assert b[21:31].isnan().all()


def test_what_does_not_fit_is_refused():
    q, k, v, starts = prompts((5,))
    given = starts, cut((5,), 16)
    with pytest.raises(ValueError, match="causal=True"):
        tma.prefill(q, k, v, *given, scale=1.0, causal=False, window=4)
    with pytest.raises(ValueError, match="do not fit together"):
        tma.prefill(q[:, :3], k, v, *given, scale=1.0)
    with pytest.raises(ValueError, match="16 bytes"):
        tma.prefill(q[..., :6], k[..., 1:7], v[..., :6], *given, scale=1.0)
    with pytest.raises(ValueError, match="64 or 128 wide"):
        gluon.prefill(q[..., :16], k[..., :16], v[..., :16], *given, scale=1.0)
    assert tma.prefill(q, k, v, starts, cut((), 16), scale=1.0)[0].isnan().all()


class Barrier:
    """Of shared memory: a turn ends with the arrivals that it was given and the bytes that were announced."""

    def init(self, count):
        self.count = self.left = count
        self.bytes = self.turn = 0

    def arrive(self, count=0, arrived_bytes=0):
        self.left -= count
        self.bytes -= arrived_bytes
        assert self.left >= 0
        if self.left == 0 and self.bytes == 0:
            self.turn, self.left = self.turn + 1, self.count

    def index(self, _):
        return self


class Shared:
    """A piece of shared memory."""

    def __init__(self, data):
        self.data, self.shape, self.dtype = data, data.shape, data.dtype

    def index(self, i):
        return Shared(self.data[i])

    def permute(self, order):
        return Shared(self.data.permute(order))

    def store(self, x):
        self.data.copy_(x)

    def load(self, layout):
        return self.data.clone()


class Pointer:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def __add__(self, by):
        return Pointer(self.data, self.at + by)

    def store(self, x, mask):
        at, x, mask = torch.broadcast_tensors(self.at, x, mask)
        self.data[at[mask]] = x[mask].to(self.data.dtype)


class Copy:
    """A copy by a descriptor: whenever the schedule has it, and as the hardware finds addresses, modulo 2**64."""

    def __init__(self, descriptor, at, ready, place):
        self.given = descriptor, at, ready, place
        place.data.fill_(math.nan)

    def finish(self):
        descriptor, at, ready, place = self.given
        flat = torch.as_strided(descriptor.base, (descriptor.base.untyped_storage().nbytes() // 4,), (1,), 0)
        for row in range(len(place.data)):
            index = [*at[:3], at[3] + row]
            inside = all(0 <= i < n for i, n in zip(index, descriptor.shape[:4], strict=True))
            begin = sum(i * s for i, s in zip(index, descriptor.strides[:4], strict=True)) * 4 % 2**64 // 4
            begin += descriptor.base.storage_offset()
            place.data[row] = flat[begin : begin + place.data.shape[1]] if inside else 0.0
        ready.arrive(arrived_bytes=descriptor.block_type.nbytes)


class Acted:
    """A Gluon kernel acted out: a thread for each partition, one of them running at a time, in an order by chance.

    Products read shared memory as they are asked for and again as they are waited for, which must be the same: that is
    how a place shows that was filled too late or freed too early.
    """

    def __init__(self, program, seed):
        self.program, self.random = program, random.Random(seed)
        self.copies, self.wanted, self.turns, self.failed = [], {}, {}, []
        self.products = threading.local()
        names = {name: getattr(self, name) for name in ("warpgroup_mma", "warpgroup_mma_wait")}
        names["fence_async_shared"] = lambda: None
        names["tma"] = types.SimpleNamespace(async_copy_global_to_shared=lambda *a: self.copies.append(Copy(*a)))
        names["mbarrier"] = types.SimpleNamespace(
            MBarrierLayout=lambda: "barrier", init=Barrier.init, wait=self.wait, arrive=self.arrive,
            expect=lambda b, size: b.arrive(1, -size),
        )  # fmt: skip
        names["gl"] = types.SimpleNamespace(
            **{name: getattr(torch, name) for name in ("where", "maximum", "exp2", "log2", "int64", "float32")},
            NVMMASharedLayout=lambda *a: None, NVMMADistributedLayout=lambda *a: None, DotOperandLayout=lambda *a: None,
            SliceLayout=lambda *a: None, BlockedLayout=lambda *a: None, convert_layout=lambda x, layout: x,
            zeros=lambda shape, dtype, layout: torch.zeros(shape), arange=lambda a, b, layout: torch.arange(a, b),
            max=lambda x, axis: x.amax(axis), sum=torch.sum, minimum=min, cdiv=lambda a, b: -(-a // b),
            program_id=lambda axis: program[axis], num_programs=lambda axis: program[2],
            load=lambda p: int(p.data[p.at]), store=lambda p, x, mask: p.store(x, mask), static_range=range,
            static_assert=lambda x: None, thread_barrier=lambda: None, allocate_shared_memory=self.allocate,
            warp_specialize=self.specialize,
        )  # fmt: skip
        scope = vars(gluon) | names
        for name, value in vars(gluon).items():
            if hasattr(value, "is_gluon"):
                scope[name] = types.FunctionType(value.fn.__code__, scope)
        scope["gl"].maximum = lambda a, b: max(a, b) if isinstance(a, int) else torch.maximum(a, b)
        self.run = scope["_prefill"]

    def allocate(self, dtype, shape, layout):
        if layout != "barrier":
            return Shared(torch.full(shape, math.nan))
        return Barrier() if len(shape) == 1 else Places([Barrier() for _ in range(shape[0])])

    def specialize(self, parts, warps, registers):
        assert [len(parts) - 1] * 2 == [len(warps), len(registers)]
        self.turns = {i: threading.Semaphore(0) for i in range(len(parts))}
        self.wanted = {i: lambda: True for i in self.turns}
        threads = [threading.Thread(target=self.part, args=(i, *part)) for i, part in enumerate(parts)]
        for thread in threads:
            thread.start()
        self.next()
        for thread in threads:
            thread.join()
        assert not self.failed, self.failed

    def part(self, i, function, given):
        self.products.me, self.products.made = i, []
        self.turns[i].acquire()
        try:
            function(*given)
        except BaseException as why:
            self.failed.append(repr(why))
        del self.wanted[i]
        self.next()

    def next(self):
        """Let a copy finish, or one partition go on that does not wait."""
        while self.wanted:
            able = [i for i, ready in self.wanted.items() if self.failed or ready()]
            chosen = self.random.choice([*able, *self.copies]) if able or self.copies else None
            if isinstance(chosen, Copy):
                self.copies.remove(chosen)
                chosen.finish()
                continue
            if chosen is None:
                self.failed.append("all partitions wait")
                continue
            self.turns[chosen].release()
            return

    def pause(self, ready=lambda: True):
        self.wanted[self.products.me] = ready
        self.next()
        self.turns[self.products.me].acquire()
        assert not self.failed

    def wait(self, barrier, parity):
        self.pause(lambda: barrier.turn & 1 != parity)

    def arrive(self, barrier, count):
        barrier.arrive(count)
        self.pause()

    def warpgroup_mma(self, a, b, acc, use_acc=True, is_async=False):
        factors = [x.data if isinstance(x, Shared) else x for x in (a, b)]
        product = types.SimpleNamespace(
            acc=acc, use=use_acc, factors=factors, early=factors[0] @ factors[1], value=None
        )
        self.products.made.append(product)
        self.pause()
        return product

    def warpgroup_mma_wait(self, left, deps):
        self.pause()
        made = self.products.made
        for product in made[: len(made) - left]:
            late = product.factors[0] @ product.factors[1]
            assert torch.equal(late, product.early), "shared memory changed under a product, or was not filled"
            product.value = late + product.acc if product.use else late
        del made[: len(made) - left]
        values = tuple(x.value if isinstance(x, types.SimpleNamespace) else x for x in deps)
        return values[0] if len(values) == 1 else values


class Places(list):
    index = list.__getitem__


@pytest.mark.skipif(not INTERPRETED, reason="the kernel itself runs")
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_partitions_never_wait_forever_nor_overtake_each_other(causal, stages, seed):
    """With all of shared memory NaN before it is filled, and copies that take as long as they like."""
    counts, rows, width, dim = (5, 1, 0, 100, 16), 32, 16, 64
    q, k, v, starts = (x.cpu() for x in prompts(counts, dim=dim))  # threads of the processor act it out
    out, lse = torch.empty(q.shape), torch.empty(q.shape[:2])
    sequence, first = (x.cpu() for x in cut(counts, rows))
    descriptors = [tma.descriptor(x, n, dim) for x, n in ((q, rows // 2), (k, width), (v, width))]
    for x in descriptors:
        x.block_type, x.dtype = types.SimpleNamespace(nbytes=x.block_shape[3] * dim * 4), torch.float32
    pointers = [Pointer(x) for x in (starts, sequence, first, out.view(-1), lse.view(-1))]
    for x in range(len(sequence) * 2):
        for y in range(2):
            acted = Acted((x, y, 2), seed)
            acted.run(*descriptors, *pointers, 0.2 * LOG2E, 2, dim, rows, width, stages, causal)
    agree((out, lse), expected(q, k, v, starts, scale=0.2, causal=causal), LIMIT[torch.float32])


@pytest.mark.skipif(INTERPRETED or gluon.reason(DEVICE, torch.bfloat16, 64) is not None, reason="no Hopper GPU")
@pytest.mark.parametrize("counts", [(1,), (5, 1, 0, 300, 128), (127, 129, 2000), (4096,)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_specialised_warps_compute_the_same(name, dim, causal, counts):
    q, k, v, starts = prompts(counts, dim=dim, dtype=DTYPES[name])
    found = gluon.prefill(q, k, v, starts, cut(counts, gluon.ROWS), scale=0.2, causal=causal)
    right = tma.prefill(q, k, v, starts, cut(counts, tma.shape_for(dim)[0]), scale=0.2, causal=causal)
    n = sum(counts)
    if n <= 500:
        right = expected(q, k, v, starts, scale=0.2, causal=causal)
    agree(found, tuple(x[:n].double() for x in right), LIMIT[DTYPES[name]])
