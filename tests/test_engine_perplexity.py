"""Perplexity by a sliding window, against plain computations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import resolve
from engine.devices import pick_device
from engine.models import load
from engine.perplexity import TextScorer, spans
from spec.choices import Dtype
from spec.errors import Cancelled, DoesNotFitError, InputError
from tests.tiny import make_model

TEXT = "It was the best of times, it was the worst of times. "


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(resolve(str(make_model(tmp_path_factory.mktemp("m")))), pick_device("cpu"), Dtype.FP32)


def nothing(passes, tokens):
    """No progress to tell."""


def plain(loaded, ids):
    """-log p of each token but the first, all read in one pass."""
    with torch.inference_mode():
        log_p = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-log_p[i, t].item() for i, t in enumerate(ids[1:])]


def test_a_short_text_is_scored_exactly(loaded):
    score = TextScorer(loaded, TEXT, 4).score(nothing)
    ids = loaded.tokenizer.encode(TEXT)
    assert score.nll_nats == pytest.approx(sum(plain(loaded, ids)), rel=1e-6)
    assert score.tokens_scored == len(ids) - 1
    assert score.bytes_scored == len(TEXT.encode()) - 1
    assert list(score.windows) == [len(ids)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_long_text_by_windows_is_the_sum_of_its_passes(loaded, batch_size):
    text = TEXT * 6
    ids = loaded.tokenizer.encode(text)
    score = TextScorer(loaded, text, batch_size, window=40).score(nothing)
    expected, scored = 0.0, 1
    for start in range(0, len(ids), 20):
        part = plain(loaded, ids[start : start + 40])
        end = min(start + 40, len(ids))
        if end > scored:
            expected += sum(part[scored - start - 1 :])
            scored = end
    assert score.nll_nats == pytest.approx(expected, rel=1e-6)
    assert score.tokens_scored == len(ids) - 1


@given(st.integers(2, 200), st.integers(2, 50), st.data())
def test_every_token_but_the_first_is_scored_once_with_context(tokens, window, data):
    stride = data.draw(st.integers(1, window - 1))
    found = spans(tokens, window, stride)
    scored = [t for s in found for t in range(s.first, s.end)]
    assert scored == list(range(1, tokens))
    for s in found:
        assert s.end - s.start <= window
        assert s.start < s.first
        assert s.start == 0 or s.first - s.start >= window - stride


def test_bytes_are_bytes_not_characters(loaded):
    score = TextScorer(loaded, "aé日", 1).score(nothing)
    assert score.bytes_scored == len("é日".encode())


def test_a_text_too_short_to_score(loaded):
    for text in ("", "a"):
        with pytest.raises(InputError, match="too short"):
            TextScorer(loaded, text, 1)


def test_it_can_be_cancelled_between_batches(loaded):
    told = []

    def stop(passes, tokens):
        told.append((passes, tokens))
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        TextScorer(loaded, TEXT * 4, 1, window=20).score(stop)
    assert told == [(1, 19)]


def test_out_of_memory_is_a_result(loaded, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.perplexity._nll", fail)
    with pytest.raises(DoesNotFitError, match="smaller batch size"):
        TextScorer(loaded, TEXT, 1).score(nothing)
