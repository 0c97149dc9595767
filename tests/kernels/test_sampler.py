"""The sampler against ``engine.sampling``, whose tokens it promises, and against fp64.

The interpreter takes some 20 ms for each program, so there the rows are few; on a GPU they are thousands.
"""

import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.sampling import Sampling, draw, uniforms
from kernels.sampler import reference
from kernels.sampler.triton import CHUNK, sample
from tests.kernels.paged import DEVICE, DTYPES, INTERPRETED

BORDER = 1e-6  # of the whole mass: what fp32 rounding of the probabilities may move a border by
BELOW_ONE = 1.0 - 2.0**-48
KINDS = {
    "plain": Sampling(temperature=0.75),
    "top_k": Sampling(temperature=1.5, top_k=20),
    "top_p": Sampling(temperature=1.0, top_p=0.875),
    "min_p": Sampling(temperature=2.0, min_p=0.0625),
    "top_k and top_p": Sampling(temperature=0.5, top_k=40, top_p=0.75),
    "all": Sampling(temperature=1.25, top_k=100, top_p=0.9375, min_p=0.03125),
}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Buffers begin with rubbish."""
    empty = torch.empty

    def poisoned(*shape, **how):
        made = empty(*shape, **how)
        return made.fill_(math.nan if made.dtype.is_floating_point else torch.iinfo(made.dtype).max // 3)

    monkeypatch.setattr(torch, "empty", poisoned)


def normal(rows, vocabulary, dtype=torch.float32, seed=0, spread=3.0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=g) * spread).to(dtype).to(DEVICE)


def numbers(rows, seed=0):
    """The product's own stream of uniform numbers."""
    return torch.from_numpy(uniforms(range(seed, seed + rows), [0] * rows, 1)[:, 0]).to(DEVICE)


def column(value, rows, dtype=torch.float32):
    return torch.full((rows,), value, dtype=dtype, device=DEVICE)


def limits(way, rows):
    """The filters of a way of sampling, those that it does not use left out."""
    found = {}
    if way.top_k:
        found["top_k"] = column(way.top_k, rows, torch.int32)
    if way.top_p < 1.0:
        found["top_p"] = column(way.top_p, rows)
    if way.min_p:
        found["min_p"] = column(way.min_p, rows)
    return found


def of_engine(logits, uniform, way):
    """Its tokens with a stable sort: which of the equal logits top-p keeps is otherwise left to PyTorch's build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "sort", functools.partial(torch.sort, stable=True))
        scores = way.filters()(None, logits.cpu().float())
    return draw(scores, uniform.cpu())


def on_a_border(row, u, token, way):
    """Whether a change of the filters or the number by ``BORDER`` makes ``token`` the one that is drawn."""
    for p in (way.top_p - BORDER, way.top_p, way.top_p + BORDER):
        for m in (way.min_p * (1 - BORDER), way.min_p, way.min_p * (1 + BORDER)):
            weights = reference.distribution(row.double().cpu(), way.temperature, way.top_k, p, m)
            end = float(weights[: token + 1].sum())
            if weights[token] > 0 and end - float(weights[token]) - BORDER <= u <= end + BORDER:
                return True
    return False


def check(logits, way, seed=0, uniform=None):
    """Tokens of the engine but for borders, which are rare."""
    rows = len(logits)
    uniform = numbers(rows, seed) if uniform is None else uniform
    tokens, _ = sample(logits, uniform, column(way.temperature, rows), **limits(way, rows))
    other = (tokens.cpu() != of_engine(logits, uniform, way)).nonzero()[:, 0].tolist()
    assert len(other) <= rows // 100
    for r in other:
        assert on_a_border(logits[r], float(uniform[r]), int(tokens[r]), way), f"row {r}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DTYPES)
def test_the_tokens_are_those_of_the_engine(name, kind):
    """Half types have many equal logits: what top-k and top-p keep of them decides."""
    rows = 4000 if not INTERPRETED else 40 if kind == "plain" else 4
    check(normal(rows, CHUNK + 300, DTYPES[name], seed=3), KINDS[kind], seed=17)


@pytest.mark.parametrize("vocabulary", [1, 2, 1000, 50257])
def test_vocabularies_of_any_size(vocabulary):
    rows = 1 if vocabulary > 1000 else 3
    check(normal(rows, vocabulary, torch.bfloat16, seed=1), KINDS["top_k and top_p"])
    check(normal(rows + 1, vocabulary, torch.float32, seed=2), KINDS["plain"])


@pytest.mark.parametrize("name", DTYPES)
def test_log_probabilities_are_as_exact_as_pytorch(name):
    """Of the model's own distribution, whatever the temperature and the filters."""
    rows = 24 if INTERPRETED else 1000
    logits = normal(rows, 1500, DTYPES[name], seed=5, spread=6.0) + 15
    temperature = column(0.5, rows)
    temperature[::2] = 1.0
    tokens, found = sample(logits, numbers(rows), temperature, min_p=column(0.01, rows))
    exact = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    plain = logits.gather(1, tokens[:, None])[:, 0].float() - logits.float().logsumexp(-1)
    assert found.dtype == torch.float32
    assert (found - exact).norm() <= 2 * (plain - exact).norm()


def test_many_draws_follow_the_distribution():
    """Pearson's chi-square with 9 degrees of freedom; above 33.7 in one of ten thousand."""
    draws = 250 if INTERPRETED else 100_000
    row = torch.tensor([1.0, -math.inf, 0.5, 2.0, 0.0, 1.5, -0.5, 1.0, 1.0, 0.25, 3.0], device=DEVICE)
    tokens, _ = sample(row.expand(draws, -1), numbers(draws, 11), column(1.25, draws))
    expected = (row / 1.25).softmax(0).cpu().double() * draws
    seen = torch.bincount(tokens.cpu(), minlength=11).double()
    assert seen[1] == 0
    possible = expected > 0
    assert ((seen - expected)[possible].square() / expected[possible]).sum() < 33.7


@pytest.mark.parametrize("name", DTYPES)
def test_each_row_has_parameters_of_its_own_between_poisoned_neighbours(name):
    logits = torch.full((7, 1100), math.nan, device=DEVICE, dtype=DTYPES[name])[:, 5:1006]
    logits.copy_(normal(7, 1001, DTYPES[name], seed=8))
    ways = [
        Sampling(0.0, 3, 0.5, 0.5),
        Sampling(1.0),
        Sampling(0.5, 7),
        Sampling(0.0),
        Sampling(2.0, 0, 0.5),
        Sampling(1.5, 900, 0.9375, 0.125),
        Sampling(1.0, 2000, 0.0),
    ]
    uniform = numbers(7, 5)
    given = {
        "top_k": torch.tensor([w.top_k for w in ways], device=DEVICE),
        "top_p": torch.tensor([w.top_p for w in ways], device=DEVICE),
        "min_p": torch.tensor([w.min_p for w in ways], device=DEVICE),
    }
    temperature = torch.tensor([w.temperature for w in ways], device=DEVICE)
    tokens, logprobs = sample(logits, uniform, temperature, **given)
    again, exact = reference.sample(logits, uniform, temperature, **given)
    assert torch.equal(tokens, again)
    assert (logprobs - exact).abs().max() < 2e-6
    for r, way in enumerate(ways):
        one = slice(r, r + 1)
        if way.temperature:
            assert tokens[r] == of_engine(logits[one], uniform[one], way)[0]
        else:
            assert tokens[r] == logits[r].cpu().argmax()
        alone = sample(logits[one], uniform[one], temperature[one], **{n: x[one] for n, x in given.items()})
        assert torch.equal(alone[0], tokens[one]), "a token depends on its neighbours"
        assert torch.equal(alone[1], logprobs[one])


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_ONE])
@pytest.mark.parametrize(
    "way",
    [
        Sampling(1.0, 3),
        Sampling(1.0, 0, 0.5),
        Sampling(1.0, min_p=1.0),
        Sampling(1.0, 6, 0.5625),
        Sampling(1.0, 6, 0.9),
    ],
)
def test_ties_at_every_edge(name, u, way):
    """Weights are about 1, 1/2 and 1/4, far enough from every edge: no border excuses another token.

    Of the seven that top-k = 6 leaves, top-p = 0.5625 keeps four; of the seven and a half that there were, five.
    """
    step = math.log(2.0) if name == "fp32" else 0.6875
    levels = torch.tensor([-math.inf, -2, 0, -1, 0, -0.0, -1, 0, -2, -math.inf, -1, -1, 0, -math.inf], device=DEVICE)
    logits = (levels * step).to(DTYPES[name])[None]
    uniform = column(u, 1, torch.float64)
    tokens, _ = sample(logits, uniform, column(1.0, 1), **limits(way, 1))
    assert torch.equal(tokens.cpu(), of_engine(logits, uniform, way))


def test_ties_across_chunks():
    """Of equal logits top-p keeps the last, wherever a chunk ends; greedy takes the first."""
    width = 2 * CHUNK + 500
    logits = torch.full((4, width), -3.0, device=DEVICE, dtype=torch.bfloat16)
    logits[:, CHUNK - 50 : 2 * CHUNK + 60] = 2.0
    uniform = torch.tensor([0.0, 0.3, 0.9, BELOW_ONE], dtype=torch.float64, device=DEVICE)
    check(logits, Sampling(1.0, 0, 0.5), uniform=uniform)
    logits[:, :10] = 3.0  # then the last that top-k = 20 keeps are the largest of whole chunks
    check(logits, Sampling(1.0, 20, 0.5), uniform=uniform)
    logits[:, :10] = -3.0
    kept, _ = sample(logits[:1], uniform[:1], column(1.0, 1), top_p=column(0.0, 1))
    assert kept.item() == 2 * CHUNK + 59
    tokens, _ = sample(logits, uniform, column(0.0, 4))
    assert tokens.tolist() == [CHUNK - 50] * 4


@pytest.mark.parametrize("edge", [0, CHUNK - 1, CHUNK, 2 * CHUNK])
def test_only_what_is_likely_is_drawn(edge):
    """At both ends of the numbers, with one possible token between chunks of impossible ones."""
    logits = torch.full((2, 2 * CHUNK + 1), -math.inf, device=DEVICE)
    logits[:, edge] = -7.0
    uniform = torch.tensor([0.0, BELOW_ONE], dtype=torch.float64, device=DEVICE)
    tokens, logprobs = sample(logits, uniform, column(0.5, 2))
    assert tokens.tolist() == [edge] * 2
    assert logprobs.tolist() == [0.0, 0.0]
    filtered, _ = sample(logits[:1], uniform[1:], column(0.5, 1), top_k=column(3, 1, torch.int64))
    assert filtered.item() == edge


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_row_without_a_distribution_says_so(temperature):
    logits = normal(5, CHUNK + 9)
    logits[0, 3] = math.nan
    logits[1, CHUNK + 5] = math.inf
    logits[2] = -math.inf
    logits[3, 1:] = -math.inf
    filters = {} if temperature else {"top_k": column(5, 5, torch.int32), "top_p": column(0.5, 5)}
    for how in ({}, filters, {"min_p": column(0.1, 5)}):
        tokens, logprobs = sample(logits, numbers(5), column(temperature, 5), **how)
        expected, _ = reference.sample(logits, numbers(5), column(temperature, 5), **how)
        assert tokens.tolist() == expected.tolist()
        assert tokens[:4].tolist() == [-1, -1, -1, 0]
        assert logprobs.isnan().tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("temperature", [1e-40, 1e-4, 1e4, math.inf])
def test_extreme_temperatures(temperature):
    logits = normal(1, 500)
    logits[0, 0] = -math.inf
    tokens, _ = sample(logits, column(0.5, 1, torch.float64), column(temperature, 1))
    expected = {True: logits[0].argmax().item(), False: 250}[temperature < 1.0]
    assert abs(tokens.item() - expected) <= (temperature > 1.0)


@pytest.mark.parametrize(("filters", "u"), [((3, -1.0, 0.0), 0.5), ((0, 1.0, 2.0), 0.0), ((-1, 2.0, -1.0), BELOW_ONE)])
def test_parameters_out_of_range_mean_the_nearest_that_there_is(filters, u):
    logits = normal(1, 50)
    k, p, m = filters
    how = {"top_k": column(k, 1, torch.int32), "top_p": column(p, 1), "min_p": column(m, 1)}
    uniform = column(u, 1, torch.float64)
    tokens, _ = sample(logits, uniform, column(1.0, 1), **how)
    way = Sampling(1.0, max(k, 0), min(max(p, 0.0), 1.0), min(max(m, 0.0), 1.0))
    assert torch.equal(tokens.cpu(), of_engine(logits, uniform, way))


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_or_depends_on_the_numbers():
    logits = normal(1, 10, torch.float16)
    with _Seen() as seen:
        sample(logits, numbers(1), column(0.7, 1), min_p=column(0.5, 1))
    assert not {"_local_scalar_dense", "nonzero", "item", "equal"} & seen.names
    assert "empty" in seen.names


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CUDA graph needs a GPU")
def test_a_recorded_graph_draws_from_new_logits():
    size = 5_000 if INTERPRETED else 50_000
    logits, uniform, temperature = normal(8, size), numbers(8), column(0.75, 8)
    how = {"top_k": column(50, 8, torch.int32), "top_p": column(0.875, 8)}
    sample(logits, uniform, temperature, **how)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, logprobs = sample(logits, uniform, temperature, **how)
    for seed in (1, 2):
        logits.copy_(normal(8, size, seed=seed))
        uniform.copy_(numbers(8, seed))
        graph.replay()
        expected = sample(logits, uniform, temperature, **how)
        assert torch.equal(tokens, expected[0])
        assert torch.equal(logprobs, expected[1])


def test_what_does_not_fit_is_refused():
    logits, one = normal(2, 8), column(1.0, 2)
    with pytest.raises(ValueError, match="float64"):
        sample(logits, one, one)
    with pytest.raises(ValueError, match="strides"):
        sample(normal(8, 2).T, numbers(2), one)
    with pytest.raises(ValueError, match="2 rows"):
        sample(logits, numbers(2), column(1.0, 3))
    with pytest.raises(ValueError, match="fp32, fp16 or bf16"):
        sample(logits.double(), numbers(2), one)
    tokens, logprobs = sample(logits[:0], numbers(0), one[:0])
    assert tokens.shape == logprobs.shape == (0,)
