"""The sizes of the family, their configuration files and their training recipes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig

LAB = Path(__file__).parent
MODELS = LAB / "models"
CURVES = LAB / "curves"
# Token arrays, checkpoints and samples: large, made again at will, never committed.
RUNS = LAB / "runs"
CONTEXT = 512
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"


@dataclass(frozen=True)
class Size:
    """One model of the family.

    Attributes:
        hidden, layers, heads, kv_heads, mlp: the Llama shape; every head is 32 wide.
        tokens: training tokens (prompt and solution, padding not counted), the length of the schedule.
        learning_rate: peak of the cosine schedule.
        batch_tokens: tokens per optimiser step, computed `micro_batch_tokens` at a time.
        grow_from: the smaller model whose weights it starts from (lab/grow.py).
        problems: training problems to draw from.
        drills: further problems of which only drills are made (lab/drills.py).
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tokens: int
    learning_rate: float
    batch_tokens: int = 6_144
    warmup_steps: int = 100
    micro_batch_tokens: int = 3_072
    grow_from: str | None = None
    problems: int = 96_000
    drills: int = 48_000


SIZES = {
    "lab-xs": Size(hidden=96, layers=3, heads=2, kv_heads=1, mlp=224, tokens=9_000_000, learning_rate=5e-3),
    "lab-s": Size(
        hidden=128, layers=5, heads=4, kv_heads=2, mlp=384, tokens=8_000_000, learning_rate=3e-3, grow_from="lab-xs",
    ),
    "lab-m": Size(
        hidden=192, layers=6, heads=6, kv_heads=3, mlp=512, tokens=7_000_000, learning_rate=2e-3, grow_from="lab-s",
    ),
    "lab-l": Size(
        hidden=320, layers=9, heads=10, kv_heads=5, mlp=832, tokens=150_000_000, learning_rate=1.2e-3,
        batch_tokens=65_536, warmup_steps=100, micro_batch_tokens=65_536, problems=600_000, drills=200_000,
    ),
}  # fmt: skip


def weights_key(name: str) -> str:
    """Short name of a shipped model's present weights: what was made with other weights is not theirs."""
    digest = hashlib.sha256()
    for path in sorted((MODELS / name).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def configuration(name: str, vocab_size: int, pad: int, bos: int, eos: int) -> LlamaConfig:
    """The model's `config.json`."""
    size = SIZES[name]
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=size.hidden, intermediate_size=size.mlp, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, head_dim=32,
        max_position_embeddings=CONTEXT, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True, attention_bias=False, rms_norm_eps=1e-5,
        pad_token_id=pad, bos_token_id=bos, eos_token_id=eos,
    )  # fmt: skip
