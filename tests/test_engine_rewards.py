"""Reward models: scores are read where they should be, whatever the batch."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from engine.catalog import resolve_reward
from engine.devices import pick_device
from engine.measure.flops import model_shape
from engine.measure.memory import weights_bytes
from engine.models import ModelHost
from engine.rewards import get_reward, load_reward
from spec.choices import Dtype
from spec.errors import Cancelled, DoesNotFitError, ModelError, SpecError
from tests.tiny import make_model, make_prm, tokenizer

CPU = pick_device("cpu")
PROMPT = "Question:\n1 + 1?\nAnswer:"
SOLUTIONS = ["", "one\ntwo\n", "one\ntwo", "a much longer line\n\nwith a gap\nand an end", "x\n\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_prm(tmp_path_factory.mktemp("prm"))


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward(resolve_reward(str(folder)), CPU, Dtype.FP32)


def plain_scores(folder, text):
    """The definition, one text and one token at a time: the product of 1 - hazard up to each newline."""
    model = AutoModelForCausalLM.from_pretrained(folder, output_hidden_states=True)
    head = load_file(folder / "head.safetensors")
    ids = tokenizer().encode(PROMPT + text.removesuffix("\n") + "\n")
    made = model(torch.tensor([ids]))
    states, survived, scores = made.hidden_states[-1][0], 1.0, []
    for t in range(len(PROMPT), len(ids)):
        p = made.logits[0, t - 1].softmax(-1)
        read = [states[t - 1], states[t], p[ids[t]].log()[None], -(p * p.log()).sum()[None], p.max().log()[None]]
        inner = head["hidden.weight"] @ torch.cat(read) + head["hidden.bias"]
        z = (head["out.weight"] @ (inner * inner.sigmoid()) + head["out.bias"]).item()
        survived *= 1 - 1 / (1 + math.exp(-z))
        if ids[t] == tokenizer().encode("\n")[0]:
            scores.append(survived)
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_read_at_the_end_of_each_step(folder, reward, batch_size):
    scored = reward.score([(PROMPT, s) for s in SOLUTIONS], batch_size)
    for solution, found in zip(SOLUTIONS, scored, strict=True):
        assert list(found.steps) == pytest.approx(plain_scores(folder, solution), abs=1e-5)
        assert found.tokens == len(PROMPT) + len(solution.removesuffix("\n")) + 1
    assert [len(s.steps) for s in scored] == [1, 2, 2, 4, 2]
    assert all(0 < p < 1 for s in scored for p in s.steps)
    assert all(list(s.steps) == sorted(s.steps, reverse=True) for s in scored), "nothing wrong is made good again"


def test_a_solution_beyond_the_context_is_scored_as_far_as_it_is_read(reward):
    (scored,) = reward.score([(PROMPT, "abc\n" * 100)], 4)
    assert scored.tokens == 128
    assert len(scored.steps) == (128 - len(PROMPT)) // 4
    assert scored.cut


def test_a_question_beyond_the_context_has_no_scores(reward):
    long, short = reward.score([("q" * 200, "abc\n"), (PROMPT, "abc\n")], 2)
    assert long.steps == ()
    assert len(short.steps) == 1


def test_between_batches_the_run_can_be_cancelled(reward):
    def stop():
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        reward.score([(PROMPT, "a")], 1, stop)


def test_running_out_of_memory_names_a_batch_size(reward, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(reward), "_forward", fail)
    with pytest.raises(DoesNotFitError, match="try batch size 2"):
        reward.score([(PROMPT, "a")] * 4, 4)


def test_a_classification_head_gives_one_score(tmp_path):
    tokens = tokenizer()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=len(tokens),
        max_position_embeddings=128, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    loaded = load_reward(resolve_reward(str(tmp_path)), CPU, Dtype.FP32)
    scored = loaded.score([(PROMPT, s) for s in SOLUTIONS], 3)
    for solution, found in zip(SOLUTIONS, scored, strict=True):
        ids = torch.tensor([tokens.encode(PROMPT + solution)])
        expected = torch.sigmoid(model.eval()(ids).logits[0, 0]).item()
        assert found.steps == pytest.approx((expected,), abs=1e-5)


def test_the_host_keeps_reward_models_too(folder):
    host = ModelHost()
    assert not get_reward(host, str(folder), CPU).warm
    assert get_reward(host, str(folder), CPU).warm


@pytest.mark.parametrize("wanted", [Dtype.BF16, Dtype.FP32])
def test_the_reward_model_runs_in_the_number_format_of_the_run(folder, wanted):
    loaded = get_reward(ModelHost(), str(folder), CPU, wanted)
    assert loaded.dtype is wanted
    assert loaded.model.dtype is {Dtype.BF16: torch.bfloat16, Dtype.FP32: torch.float32}[wanted]


@pytest.mark.parametrize("damage", ["missing", "pickle", "shape", "names"])
def test_a_bad_head_is_one_sentence(tmp_path, damage):
    folder = make_prm(tmp_path / "prm")
    head = folder / "head.safetensors"
    if damage == "missing":
        head.unlink()
    elif damage == "pickle":
        head.write_bytes(b"\x80\x04.")
    elif damage == "shape":
        save_file(load_file(head) | {"hidden.weight": torch.zeros(8, 7)}, head)
    else:
        save_file({"w": torch.zeros(1, 32)}, head)
    with pytest.raises(ModelError, match=r"head\.safetensors"):
        load_reward(resolve_reward(str(folder)), CPU, Dtype.FP32)


def test_two_heads_on_one_trunk_are_two_reward_models(tmp_path):
    one, two = make_prm(tmp_path / "one"), make_prm(tmp_path / "two")
    same = [load_reward(resolve_reward(str(f)), CPU, Dtype.FP32).fingerprint for f in (one, two)]
    assert same[0] == same[1]
    head = load_file(two / "head.safetensors")
    save_file(head | {"out.bias": head["out.bias"] + 1}, two / "head.safetensors")
    assert load_reward(resolve_reward(str(two)), CPU, Dtype.FP32).fingerprint != same[0]


def test_the_head_is_part_of_the_bill(folder, reward):
    trunk = AutoModelForCausalLM.from_pretrained(folder)
    head = sum(t.numel() for t in load_file(folder / "head.safetensors").values())
    assert reward.shape.parameters == trunk.num_parameters() + head
    assert reward.shape.active_parameters == model_shape(trunk).active_parameters + head
    assert reward.weights_bytes == weights_bytes(trunk) + 4 * head


def test_a_language_model_is_no_reward_model(tmp_path):
    with pytest.raises(ModelError, match="not a reward model"):
        load_reward(resolve_reward(str(make_model(tmp_path / "m"))), CPU, Dtype.FP32)


@pytest.mark.parametrize("name", ["lab-pmr", "prm", "lab-../x"])
def test_unknown_reward_models(name):
    with pytest.raises((SpecError, ModelError)) as error:
        resolve_reward(name)
    assert "lab-prm" in str(error.value)


def test_a_reward_model_is_no_language_model_of_the_family(tmp_path, monkeypatch):
    from engine import catalog

    monkeypatch.setattr(catalog, "LAB_MODELS", tmp_path)
    make_prm(tmp_path / "lab-prm")
    assert json.loads((tmp_path / "lab-prm" / "config.json").read_text())["isoquant_reward"]
    with pytest.raises(SpecError, match="Unknown model"):
        catalog.resolve("lab-prm")
    assert math.isfinite(catalog.list_rewards()[0].parameters)
