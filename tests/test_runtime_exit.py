"""Leaving a model early: scores of the layer where a token left, and keys and values for those it skipped."""

import numpy as np
import pytest
import torch

from engine.backends.isoquant import IsoquantBackend, Layout
from engine.catalog import resolve
from engine.decoding.requests import Exit
from engine.models import load
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.native_runner import NativeRunner
from engine.runtime.plan import Plan
from kernels.native import build
from spec.choices import Dtype
from spec.errors import SpecError
from tests.batches import CPU, UNFUSED, batcher, causal, drain, greedy, ids, row, run, text
from tests.tiny import make_model

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no native kernels: {build.reason()}")
LAYERS = 4
TEXTS = [text(20), text(9), text(33)]


@pytest.fixture(scope="module")
def model():
    return causal("llama", num_hidden_layers=LAYERS)


def int32(values):
    return np.array(values, dtype=np.int32)


class Prefilled:
    """A runner whose cache holds all of the texts but their last tokens, and the batch of those."""

    def __init__(self, model, texts=TEXTS):
        self.runner = NativeRunner(model, torch.float32)
        self.runner.allocate(3 * len(texts))
        self.tables = int32(np.arange(3 * len(texts)).reshape(len(texts), 3))
        fed = [(t, p, s) for s, words in enumerate(texts) for p, t in enumerate(words[:-1])]
        self.runner.logits(Batch(*(int32(c) for c in zip(*fed, strict=True)), self.tables, int32([0])))
        n = len(texts)
        ends = [t[-1] for t in texts], [len(t) - 1 for t in texts], range(n)
        self.last = Batch(*(int32(list(c)) for c in ends), self.tables, int32(range(n)))

    def exiting(self, thresholds, margin=False, first=1):
        return self.runner.exiting(self.last, np.array(thresholds), margin, first)

    def stored(self, layer, text_, place):
        """Key and value [heads, dim] of the last token of a text."""
        block = self.tables[text_, place // BLOCK]
        kv = self.runner._kv
        return kv.keys[layer][block, :, :, place % BLOCK], kv.values[layer][block, :, place % BLOCK]


@torch.no_grad()
def by_hand(model, words):
    """After each layer: scores [vocabulary] of the last token's state, and that state."""
    hidden = model(torch.tensor([words]), output_hidden_states=True).hidden_states
    states = [h[0, -1] for h in hidden]  # the last one is after the norm
    heads = [model.lm_head(model.model.norm(s)) for s in states[1:-1]] + [model.lm_head(states[-1])]
    return heads, states


def test_above_one_nothing_leaves_and_the_scores_are_the_plain_ones_to_the_bit(model):
    plain = Prefilled(model)
    expected = plain.runner.logits(plain.last).clone()
    other = Prefilled(model)
    logits, layers = other.exiting([1.5] * 3)
    assert layers == [LAYERS] * 3
    assert torch.equal(logits, expected)
    for layer in range(LAYERS):
        for i, words in enumerate(TEXTS):
            for a, b in zip(
                plain.stored(layer, i, len(words) - 1), other.stored(layer, i, len(words) - 1), strict=True
            ):
                assert torch.equal(a, b)


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("first", range(1, LAYERS + 1))
def test_at_zero_everything_leaves_at_the_first_layer_it_may(model, first, margin):
    logits, layers = Prefilled(model).exiting([0.0] * 3, margin, first)
    assert layers == [first] * 3
    for i, words in enumerate(TEXTS):
        assert torch.allclose(logits[i], by_hand(model, words)[0][first - 1], atol=1e-4)


@torch.no_grad()
def test_skipped_layers_store_what_the_state_that_left_projects_to(model):
    made = Prefilled(model)
    made.exiting([0.0] * 3, first=2)
    for i, words in enumerate(TEXTS):
        at, state = len(words) - 1, by_hand(model, words)[1][2]
        cos, sin = model.model.rotary_emb(state[None, None], torch.tensor([[at]]))
        for layer in range(2, LAYERS):
            module = model.model.layers[layer]
            normed, attention = module.input_layernorm(state), module.self_attn
            k = attention.k_proj(normed).view(-1, attention.head_dim)
            half = attention.head_dim // 2
            turned = k * cos[0, 0] + torch.cat([-k[:, half:], k[:, :half]], -1) * sin[0, 0]
            key, value = made.stored(layer, i, at)
            assert torch.allclose(key, turned, atol=1e-4)
            assert torch.allclose(value, attention.v_proj(normed).view(-1, attention.head_dim), atol=1e-4)


@pytest.mark.parametrize("margin", [False, True])
def test_each_token_leaves_where_its_own_confidence_first_suffices(model, margin):
    texts = [text(20, seed) for seed in range(12)]
    thresholds = [0.03 * (1 + i % 4) for i in range(12)]
    logits, layers = Prefilled(model, texts).exiting(thresholds, margin, 1)
    for i, words in enumerate(texts):
        scores = by_hand(model, words)[0]
        top = [s.softmax(-1).topk(2).values.tolist() for s in scores]
        sure = [a - b if margin else a for a, b in top]
        depth = next((d for d in range(1, LAYERS) if sure[d - 1] >= thresholds[i]), LAYERS)
        assert layers[i] == depth
        assert torch.allclose(logits[i], scores[depth - 1], atol=1e-4)
    assert len(set(layers)) > 1, "the thresholds tell nothing apart"


def test_a_row_leaves_and_scores_as_it_would_alone_to_the_bit(model):
    texts = [text(20, seed) for seed in range(6)]
    together = Prefilled(model, texts).exiting([0.06] * 6)
    for i, words in enumerate(texts):
        logits, layers = Prefilled(model, [words]).exiting([0.06])
        assert layers == together[1][i : i + 1]
        assert torch.equal(logits[0], together[0][i])


def leaving(threshold=0.06, limit=20, **more):
    return [row(words, limit, (i,), exit=Exit(threshold, **more)) for i, words in enumerate(TEXTS)]


WAYS = [{"batch_size": 1}, {"budget": 5}, {"blocks": 6}, {"share": False, "blocks": 6}, {"kv_cache": False}]


@pytest.mark.parametrize("how", WAYS)
def test_the_text_and_its_exits_are_the_same_however_it_is_laid_out(model, how):
    expected, found = run(model, leaving()), run(model, leaving(), **how)
    assert ids(found) == ids(expected)
    assert [g.extension.exits for g in found] == [g.extension.exits for g in expected]
    depths = {d for g in expected for d in g.extension.exits}
    assert len(depths) > 2
    assert all(g.extension.exits[0] == LAYERS for g in found), "a context is read at full depth"
    assert any(len(g.spans) > 1 for g in found) == ("blocks" in how or "kv_cache" in how)


def test_rows_that_leave_share_batches_with_rows_that_do_not(model):
    plain = [row(words, 20, (i,)) for i, words in enumerate(TEXTS)]
    mixed = run(model, [*leaving(), *plain], batch_size=6)
    assert ids(mixed) == ids(run(model, leaving())) + [greedy(model, words, 20) for words in TEXTS]


def test_never_leaving_is_the_plain_text(model):
    found = run(model, leaving(threshold=1.01))
    assert ids(found) == [greedy(model, words, 20) for words in TEXTS]
    assert {d for g in found for d in g.extension.exits} == {LAYERS}


def test_what_early_exits_wrote_is_found_by_nobody(model):
    made = batcher(model)
    (found,) = drain(made, [row(text(40), 20, exit=Exit(0.0))])
    after = text(40) + found.extension.ids
    (plain,) = drain(made, [row(after, 4)])
    assert plain.cached <= 40
    assert plain.extension.ids == greedy(model, after, 4)
    (replayed,) = drain(made, [row(after[:-1], 0, replay=20)])
    with torch.no_grad():
        wanted = model(torch.tensor([after])).logits[0, 39:59].argmax(-1)
    assert replayed.replayed == tuple(wanted.tolist())


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_only_a_model_on_our_own_forward_pass_can_be_left(tmp_path, architecture):
    loaded = load(resolve(str(make_model(tmp_path / "m", architecture))), CPU, Dtype.FP32)
    with pytest.raises(SpecError, match="before its last layer") as error:
        IsoquantBackend({None: loaded}, Layout(Plan(2, 64), 50, exits=True, way=UNFUSED))
    assert error.value.field == "strategy"
    assert loaded.model.config._attn_implementation == loaded.attention
    IsoquantBackend({None: loaded}, Layout(Plan(2, 64), 50, exits=architecture == "llama")).close()
