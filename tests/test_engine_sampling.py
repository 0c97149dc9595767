"""Drawing tokens: the filters are transformers' own, the distribution is right, a number depends on its key alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

from engine.sampling import CounterSampler, Sampling, draw, stream_key, uniforms
from tests.tiny import make_model

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(temperature=2.0, top_k=5),
    Sampling(temperature=0.7, top_p=0.8),
    Sampling(temperature=1.3, min_p=0.2),
    Sampling(temperature=0.8, top_k=7, top_p=0.7, min_p=0.1),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("sampling")))


@pytest.mark.parametrize("sampling", SETTINGS)
def test_filters_are_those_of_generate_in_the_same_order(model, sampling):
    values = {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p or None}
    config = GenerationConfig(do_sample=True, temperature=sampling.temperature, **values)
    model._prepare_special_tokens(config)
    theirs = model._get_logits_processor(config, input_ids_seq_length=1, logits_processor=LogitsProcessorList())
    assert [type(p) for p in sampling.filters()] == [type(p) for p in theirs]
    logits = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(sampling.filters()(None, logits.clone()), theirs(None, logits.clone()))


@pytest.mark.parametrize("sampling", SETTINGS)
def test_drawn_tokens_follow_the_filtered_distribution(sampling):
    """Chi-square over 40,000 draws; a filtered token is never drawn. The seed is fixed, so the test cannot flicker."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    scores = sampling.filters()(None, logits)
    p = scores.softmax(-1)[0].double().numpy()
    n = 40_000
    numbers = uniforms([stream_key(0, 0, "p", i) for i in range(n)], [0] * n, 1)[:, 0]
    tokens = draw(scores.expand(n, -1), torch.from_numpy(numbers))
    counts = np.bincount(tokens.numpy(), minlength=12)
    assert counts[p == 0].sum() == 0
    kept = p > 0
    statistic = ((counts[kept] - n * p[kept]) ** 2 / (n * p[kept])).sum()
    freedom = kept.sum() - 1
    # Wilson and Hilferty's approximation of the 99.99 % quantile of chi-square.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3 if freedom else 1e-9
    assert statistic <= limit


def test_successive_positions_of_a_stream_are_uncorrelated():
    numbers = uniforms([stream_key(0, 0, "p", i) for i in range(200)], [0] * 200, 200)
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02
    assert abs(numbers.mean() - 0.5) < 0.01


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000), st.integers(1, 50))
def test_a_number_depends_on_key_and_position_alone(key, start, steps):
    whole = uniforms([key], [0], start + steps)
    assert np.array_equal(uniforms([1, key], [5, start], steps)[1], whole[0, start:])
    assert ((whole >= 0) & (whole < 1)).all()


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=8),
    st.floats(0, 1, exclude_max=True).map(lambda u: min(u, 1 - 2**-48)),
)
def test_a_filtered_token_is_never_drawn(logits, u):
    scores = torch.tensor([[float("-inf"), *logits, float("-inf")]])
    token = draw(scores, torch.tensor([u], dtype=torch.float64)).item()
    assert 1 <= token <= len(logits)


def test_keys_differ_in_every_part():
    keys = {stream_key(s, r, p, i) for s in range(3) for r in range(3) for p in ("a", "b", "1") for i in range(12)}
    assert len(keys) == 3 * 3 * 3 * 12


def test_the_processor_leaves_one_token():
    numbers = uniforms([1, 2], [0, 0], 2)
    sampler = CounterSampler(Sampling(), numbers, prompt_width=3, device=torch.device("cpu"))
    scores = sampler(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 9))
    assert scores.isfinite().sum(-1).tolist() == [1, 1]
    assert scores.argmax(-1).tolist() == [int(u * 9) for u in numbers[:, 1]]
