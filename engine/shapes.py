"""Public architectures that can be run with random weights: true speed, memory and energy, no accuracy.

Each entry is the configuration its makers publish (config.json of the named model), with the parameter count that
follows from it. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """One architecture: ``config`` are the keyword arguments of its transformers configuration class."""

    name: str
    title: str
    model_type: str
    parameters: int
    config: dict[str, Any]


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _rope(theta: float, **more: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def _config(hidden: int, inner: int, layers: int, heads: int, vocab: int, context: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **more,
    }


SHAPES: dict[str, Shape] = {
    s.name: s
    for s in (
        Shape(
            "llama-3.2-1b",
            "Llama 3.2 1B",
            "llama",
            1_235_814_400,
            _config(
                *(2048, 8192, 16, 32, 128_256, 131_072),
                num_key_value_heads=8,
                head_dim=64,
                tie_word_embeddings=True,
                rms_norm_eps=1e-5,
                rope_parameters=_llama3_rope(32.0),
            ),
        ),
        Shape(
            "llama-3.1-8b",
            "Llama 3.1 8B",
            "llama",
            8_030_261_248,
            _config(
                *(4096, 14_336, 32, 32, 128_256, 131_072),
                num_key_value_heads=8,
                tie_word_embeddings=False,
                rms_norm_eps=1e-5,
                rope_parameters=_llama3_rope(8.0),
            ),
        ),
        Shape(
            "qwen2.5-0.5b",
            "Qwen2.5 0.5B",
            "qwen2",
            494_032_768,
            _config(
                *(896, 4864, 24, 14, 151_936, 32_768),
                num_key_value_heads=2,
                tie_word_embeddings=True,
                rms_norm_eps=1e-6,
                rope_parameters=_rope(1_000_000.0),
            ),
        ),
        Shape(
            "qwen2.5-7b",
            "Qwen2.5 7B",
            "qwen2",
            7_615_616_512,
            _config(
                *(3584, 18_944, 28, 28, 152_064, 131_072),
                num_key_value_heads=4,
                tie_word_embeddings=False,
                rms_norm_eps=1e-6,
                rope_parameters=_rope(1_000_000.0),
            ),
        ),
        Shape(
            "mistral-7b",
            "Mistral 7B v0.3",
            "mistral",
            7_248_023_552,
            _config(
                *(4096, 14_336, 32, 32, 32_768, 32_768),
                num_key_value_heads=8,
                tie_word_embeddings=False,
                rms_norm_eps=1e-5,
                sliding_window=None,
                rope_parameters=_rope(1_000_000.0),
            ),
        ),
        Shape(
            "pythia-410m",
            "Pythia 410M",
            "gpt_neox",
            405_334_016,
            _config(
                *(1024, 4096, 24, 16, 50_304, 2048),
                tie_word_embeddings=False,
                layer_norm_eps=1e-5,
                rope_parameters=_rope(10_000.0, partial_rotary_factor=0.25),
            ),
        ),
    )
}
