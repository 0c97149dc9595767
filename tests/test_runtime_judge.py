"""Reward models on the runtime: the scores of each solution read whole, with what is shared read once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from engine.catalog import resolve_reward
from engine.devices import pick_device
from engine.rewards import load_reward
from engine.runtime.judge import RuntimeJudge
from spec.choices import Dtype
from spec.errors import Cancelled, DoesNotFitError, ModelError
from tests.tiny import make_model, make_prm, tokenizer

CPU = pick_device("cpu")
PROMPT = "Question:\n1 + 1?\nAnswer:\n"
OTHER = "Question:\n2 + 5?\nAnswer:\n"
ITEMS = [
    *((PROMPT, s) for s in ("one\ntwo\n", "one\nthree", "one\ntwo\nfour\n", "", "one\ntwo\n")),
    *((OTHER, s) for s in ("one\ntwo\n", "a longer line that fills more than a block of the cache\nand ends")),
]


def load(folder):
    return load_reward(resolve_reward(str(folder)), CPU, Dtype.FP32)


def judge(reward, budget=512, share=True, batch_size=8):
    return RuntimeJudge(reward, batch_size, 128, budget, share)


def mark(folder, **how):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"isoquant_reward": how}))
    return folder


def make_separator(folder, linear):
    """A trunk with a head of two classes beside it, as Qwen2.5-Math-PRM is saved."""
    make_model(folder, "llama", seed=3)
    weights = load_file(folder / "model.safetensors")
    g = torch.Generator().manual_seed(5)
    two = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (2, 32), "2.bias": (2,)}
    shapes = {"weight": (2, 32), "bias": (2,)} if linear else two
    weights |= {f"score.{name}": torch.randn(shape, generator=g) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return mark(folder, kind="separator", token="#")


def make_classifier(folder):
    tokens = tokenizer()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tokens),
        max_position_embeddings=128, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


KINDS = {
    "hazard": make_prm,
    "tag": lambda folder: mark(make_model(folder, "llama"), kind="tag", word="!", good="+", bad="-"),
    "separator": lambda folder: make_separator(folder, linear=False),
    "separator, linear": lambda folder: make_separator(folder, linear=True),
    "whole": make_classifier,
}


@pytest.fixture(scope="module", params=list(KINDS))
def reward(request, tmp_path_factory):
    return load(KINDS[request.param](tmp_path_factory.mktemp("reward")))


def same(found, expected):
    assert [len(f.steps) for f in found] == [len(e.steps) for e in expected]
    for f, e in zip(found, expected, strict=True):
        assert f.steps == pytest.approx(e.steps, abs=1e-5)
        assert f.cut == e.cut


@pytest.mark.parametrize(("budget", "share"), [(512, True), (20, True), (512, False)])
def test_scores_are_those_of_every_solution_read_whole(reward, budget, share):
    mine = judge(reward, budget, share)
    same(mine.score(ITEMS, lambda n: None), reward.score(ITEMS, 3))
    same(mine.score(ITEMS[::-1], lambda n: None), reward.score(ITEMS[::-1], 3))
    mine.close()


def test_a_solution_that_grows_is_read_from_where_it_ended(reward):
    mine, text, read = judge(reward), "", []
    for line in ("one\n", "two = 2\n", "and so three\n", "four"):
        text += line
        (found,) = mine.score([(PROMPT, text)], lambda n: None)
        same([found], reward.score([(PROMPT, text)], 1))
        read.append(sum(end - first for first, end in found.spans))
    assert read[1] < read[0]
    assert sum(read[1:]) < 2 * len(text) + 20, "each step is read about once"
    mine.close()


def test_what_is_charged_is_what_was_read(reward, monkeypatch):
    mine, real = judge(reward), []
    plain = mine._runner.states
    monkeypatch.setattr(mine._runner, "states", lambda batch: (real.append(batch.m), plain(batch))[1])
    for items in (ITEMS, ITEMS, [(PROMPT, "one\ntwo\nfour\nfive")]):
        found = mine.score(items, lambda n: None)
        assert sum(end - first for f in found for first, end in f.spans) == sum(real)
        real.clear()
    mine.close()


def test_prompts_are_read_once_and_scores_remembered_until_told_to_forget(reward):
    mine = judge(reward)
    first = mine.score(ITEMS[:3], lambda n: None)
    whole = sum(f.tokens for f in first)
    assert sum(end - start for f in first for start, end in f.spans) < whole - len(PROMPT)
    assert all(f.spans == () for f in mine.score(ITEMS[:3], lambda n: None))
    mine.forget()
    again = mine.score(ITEMS[:3], lambda n: None)
    assert [f.spans for f in again] == [f.spans for f in first]
    assert mine._pool.in_use == 0
    mine.close()


def test_a_cache_too_small_for_all_reads_them_one_after_the_other(reward, monkeypatch):
    mine = judge(reward)
    mine.close()
    monkeypatch.setattr("engine.runtime.judge.available_bytes", lambda d: 5 * 9 * mine._runner.block_bytes)
    small = judge(reward)
    assert small._pool.count == 9
    same(small.score(ITEMS, lambda n: None), reward.score(ITEMS, 3))
    small.close()
    monkeypatch.setattr("engine.runtime.judge.available_bytes", lambda d: 0)
    with pytest.raises(DoesNotFitError, match="KV cache of one solution"):
        judge(reward)


def test_between_passes_the_run_can_be_cancelled(reward):
    def stop(tokens):
        raise Cancelled("stop")

    mine = judge(reward)
    with pytest.raises(Cancelled):
        mine.score(ITEMS, stop)
    mine.close()


def test_tags_are_read_by_the_words_the_model_may_say(tmp_path):
    folder = KINDS["tag"](tmp_path)
    (found,) = load(folder).score([(PROMPT, "one\n\ntwo")], 1)
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), tokenizer()
    ids = tokens.encode(PROMPT + "one !\ntwo !\n")
    logits = model(torch.tensor([ids])).logits[0]
    plus, minus, tag = (tokens.encode(c)[0] for c in "+-!")
    places = [i for i, t in enumerate(ids) if t == tag and i >= len(PROMPT)]
    expected = [logits[i, [plus, minus]].softmax(-1)[0].item() for i in places]
    assert len(places) == 2
    assert found.steps == pytest.approx(expected, abs=1e-5)


def test_separators_are_read_by_a_head_of_two_classes(tmp_path):
    folder = make_separator(tmp_path, linear=False)
    (found,) = load(folder).score([(PROMPT, "one\ntwo")], 1)
    trunk, w = AutoModel.from_pretrained(folder), load_file(folder / "model.safetensors")
    ids = tokenizer().encode(PROMPT + "one#two#")
    states = trunk(torch.tensor([ids])).last_hidden_state[0]
    inner = (states @ w["score.0.weight"].T + w["score.0.bias"]).relu()
    right = (inner @ w["score.2.weight"].T + w["score.2.bias"]).softmax(-1)[:, 1]
    assert found.steps == pytest.approx([right[len(PROMPT) + 3].item(), right[-1].item()], abs=1e-5)


@pytest.mark.parametrize(
    ("how", "words"), [({"kind": "magic"}, "hazard, tag, separator"), ("tag", "must be an object")]
)
def test_a_config_that_says_nonsense_is_refused(tmp_path, how, words):
    folder = make_model(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"isoquant_reward": how}))
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_a_separator_model_without_its_head_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no head named score"):
        load(mark(make_model(tmp_path), kind="separator", token="#"))


def test_a_solution_longer_than_the_cache_is_refused_in_words(reward, monkeypatch):
    mine = judge(reward)
    mine.close()
    monkeypatch.setattr("engine.runtime.judge.available_bytes", lambda d: 5 * 9 * mine._runner.block_bytes)
    small = judge(reward)
    small._pool.count = 0
    small._pool._free.clear()
    with pytest.raises(DoesNotFitError, match="KV cache of a solution of"):
        small.score(ITEMS[:1], lambda n: None)
    small.close()


def test_memory_that_runs_out_is_said_in_words(reward, monkeypatch):
    mine = judge(reward)

    def full(batch):
        raise MemoryError

    monkeypatch.setattr(mine._runner, "states", full)
    with pytest.raises(DoesNotFitError, match="at once"):
        mine.score(ITEMS, lambda n: None)
    mine.close()
