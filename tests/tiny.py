"""Tiny random models, reward models and tasks in temporary folders, for tests of the engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from engine.folders import HEAD_FILE
from tasks.problem import Problem

ALPHABET = "\n !\"#$%'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
EOS = "<|eos|>"
CONTEXT = 128

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": _SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt_neox": _SMALL | {"intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "mistral": _SMALL | {"intermediate_size": 64, "num_key_value_heads": 1, "sliding_window": 16},
    "mixtral": _SMALL
    | {"intermediate_size": 48, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, and an end token; unknown characters become ``?``."""
    vocabulary = {c: i for i, c in enumerate([EOS, *ALPHABET])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=EOS, padding_side="left")
    if chat:
        fast.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
    return fast


def make_model(
    folder: Path,
    architecture: str = "llama",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    chat: bool = False,
    **changes: int,
) -> Path:
    """A causal language model with random weights large enough that its outputs vary; returns its folder.

    ``changes``: entries of its config that are other than usual.
    """
    tokens = tokenizer(chat)
    values = ARCHITECTURES[architecture] | {"vocab_size": len(tokens), "eos_token_id": 0, "pad_token_id": 0} | changes
    config = AutoConfig.for_model(architecture, **values)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.35)
    model.to(dtype).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def make_prm(folder: Path, seed: int = 1) -> Path:
    """A step reward model: a random Llama trunk and a random head, whose hazards are around a tenth."""
    make_model(folder, "llama", seed=seed)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"isoquant_reward": {"kind": "hazard"}}))
    g = torch.Generator().manual_seed(seed)
    head = {
        "hidden.weight": torch.randn(8, 2 * 32 + 3, generator=g) / 8,
        "hidden.bias": torch.randn(8, generator=g),
        "out.weight": torch.randn(1, 8, generator=g),
        "out.bias": torch.tensor([-2.0]),
    }
    save_file(head, folder / HEAD_FILE)
    return folder


@dataclass
class LetterTask:
    """A task whose answers are any letters: the answer is the first letter of the text, so samples disagree often."""

    n: int = 6
    name: str = "letters"
    kind: str = "problems"
    default_max_new_tokens: int = 12
    stop: tuple[str, ...] = ()
    step: str = "\n"
    skipped: list[str] = field(default_factory=list)
    long_question: int | None = None

    def problems(self) -> list[Problem]:
        questions = [f"Question {i}{'?' * (i % 4)}" for i in range(self.n)]
        if self.long_question is not None:
            questions[self.long_question] = "x" * (CONTEXT + 10)
        return [Problem(f"p{i}", q, "abcdefgh"[i % 8], level=1 + i % 2) for i, q in enumerate(questions)]

    def content_hash(self) -> str:
        return hashlib.sha256(str(self.n).encode()).hexdigest()

    def prompt(self, problem: Problem, *, shots: int | None = None) -> str:
        return "Example: yes\n" * (shots or 0) + problem.question + "\nAnswer:"

    def extract(self, text: str) -> str | None:
        return next((c.lower() for c in text if c.isalpha()), None)

    def equivalent(self, a: str, b: str) -> bool:
        return a.lower() == b.lower()


@dataclass
class TextTask:
    """A task that scores a given text."""

    content: str
    name: str = "perplexity"
    kind: str = "text"

    def text(self) -> str:
        return self.content

    def content_hash(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()
