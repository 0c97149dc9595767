"""Tiny models that can be compressed, and what stands around a step, for the tests of ``engine.compress``."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.catalog import LAB_MODELS, resolve
from engine.compress.anatomy import layers_of
from engine.compress.checkpoint import Checkpoint
from engine.compress.steps import carry_out
from engine.compress.texts import Texts
from engine.compress.work import Work
from engine.models import load
from engine.tokenizers import load_tokenizer
from spec.choices import Dtype
from spec.compression.base import Calibrate
from spec.recipe import parse_recipe

CPU = torch.device("cpu")
LAB = LAB_MODELS / "lab-xs"
SAMPLES = Calibrate(samples=8, tokens=80)
FEW = "calibrate:samples=8,tokens=64+"  # in front of a recipe

_LLAMA = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "llama": _LLAMA,
    "tied": _LLAMA | {"model_type": "llama", "tie_word_embeddings": True},
    "whole": _LLAMA | {"model_type": "llama", "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "mistral": _LLAMA | {"sliding_window": 32},
    "qwen2": _LLAMA | {"tie_word_embeddings": True},
    "qwen3": _LLAMA | {"head_dim": 32},
    "gemma3": {
        "model_type": "gemma3_text", **_LLAMA, "head_dim": 32, "tie_word_embeddings": True, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "mixtral": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
LLAMAS = ("llama", "tied", "whole", "mistral", "qwen2", "qwen3")


@cache
def tokenizer():
    return load_tokenizer(str(LAB), None)


def config_of(name: str, **more):
    values = CONFIGS[name] | more
    vocab = len(tokenizer().inner)
    return AutoConfig.for_model(
        values.pop("model_type", name), **values, vocab_size=vocab, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )


def random_model(name: str = "llama", seed: int = 0, **more):
    """With random weights, biases among them, large enough that its outputs vary; its inputs are far from alike."""
    config = config_of(name, **more)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.mul_(1 + 0.5 * torch.randn_like(parameter)).add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def folder_of(model, folder: Path, dtype=torch.float32) -> Path:
    """The model in a folder, with the lab's tokenizer."""
    model.to(dtype).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(LAB / file, folder / file)
    return folder


def lab_model():
    return load(resolve("lab-xs"), CPU, Dtype.FP32).model


def work_for(model, folder: Path | None = None, data: Calibrate = SAMPLES, teacher=None, cancelled=lambda: False):
    """What a step works on. ``said``: what it has told."""
    said: list[str] = []
    work = Work(
        model=model,
        tokenizer=tokenizer(),
        texts=Texts(data, tokenizer(), 256, model.config.vocab_size),
        checkpoint=Checkpoint(folder),
        say=lambda words: (said.append(words), getattr(cancelled, "say", len)(words)),  # type: ignore[arg-type,func-returns-value]
        cancelled=cancelled,
        facts={"kept": list(range(len(layers_of(model))))},
        teachers=lambda name: SimpleNamespace(model=teacher, tokenizer=tokenizer()),
    )
    work.said = said  # type: ignore[attr-defined]
    return work


def done(model, step: str, **more):
    """The work after one step that is written as in a recipe."""
    work = work_for(model, **more)
    carry_out(work, parse_recipe(step).work[0] if not step.startswith("qat") else parse_recipe(f"{step}+int4").work[0])
    return work


@torch.no_grad()
def scores(model, ids=None):
    """Logits of some real tokens."""
    return model(input_ids=some_ids() if ids is None else ids, use_cache=False).logits.float()


@cache
def some_ids():
    texts = Texts(Calibrate(seed=7, tokens=48), tokenizer(), 256, 727).training(0, 4)
    width = min(len(t.ids) for t in texts)
    return torch.tensor([t.ids[:width] for t in texts])


def state_of(model):
    """Every tensor, copied."""
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one, other):
    """Whether two states are the same to the bit."""

    def bits(tensor):
        return tensor.reshape(-1).contiguous().view(torch.uint8)

    return one.keys() == other.keys() and all(
        t.dtype == other[n].dtype and t.shape == other[n].shape and torch.equal(bits(t), bits(other[n]))
        for n, t in one.items()
    )


class StopAt:
    """``cancelled`` that says yes once the work has said a thing; ``say`` takes what it says."""

    def __init__(self, words: str) -> None:
        self.words, self.said = words, False

    def say(self, sentence: str) -> None:
        self.said = self.said or self.words in sentence

    def __call__(self) -> bool:
        return self.said
