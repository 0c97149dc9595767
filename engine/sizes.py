"""How large a model is, read from its config and the headers of its safetensors files. No torch.

A safetensors file starts with the length of a JSON header (8 bytes, little endian) that names every tensor's type and
shape, so counting parameters reads a few kilobytes of a file of any size.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.measure.flops import EXPERTS, EXPERTS_PER_TOKEN
from engine.shapes import Shape
from spec.errors import ModelError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SAVED = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
CONFIG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
MAX_HEADER = 100_000_000

_INPUT_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
_POSITIONS = re.compile(r"(wpe|embed_positions|position_embeddings)\.weight$")
_EXPERT = re.compile(r"\bexperts\b")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes that follow from a model's architecture.

    ``active``: parameters that take part in one token's forward pass (embedding look-up excluded, of the experts only
    those a token visits), None where that cannot be told. ``attention_width``: query heads x head size. ``kv_width``:
    key plus value numbers that one token leaves in the cache, over all layers. ``context``: most positions, None where
    the architecture has no limit.
    """

    parameters: int
    active: int | None
    layers: int
    attention_width: int
    kv_width: int
    vocab: int
    context: int | None

    def weights_bytes(self, dtype: str) -> int:
        """Bytes of the weights in ``dtype`` (fp32, bf16 or fp16)."""
        return self.parameters * BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes that one token of one sequence adds to the KV cache."""
        return self.kv_width * BYTES[dtype]


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {"dtype", "shape", "data_offsets"} of a safetensors file; ModelError where it is not one."""
    problem = f"{path.name} is not a complete safetensors file; download or save it again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ModelError(problem)
            header = json.loads(file.read(length))
        tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
        if size < 8 + length + end or not all(isinstance(t["shape"], list) for t in tensors.values()):
            raise ModelError(problem)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror}); check the file's permissions.") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(problem) from None
    return tensors


def saved_dtype(config: dict[str, Any], files: Iterable[Path]) -> str | None:
    """The number format most weights were saved in; the config's word where the files hold none of ours."""
    count: Counter[str] = Counter()
    for file in files:
        for tensor in read_header(file).values():
            count[tensor["dtype"]] += math.prod(tensor["shape"])
    for name, _ in count.most_common(1):
        if name in SAVED:
            return SAVED[name]
    return CONFIG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."))


def sizes_of_files(config: dict[str, Any], files: Iterable[Path]) -> ModelSizes:
    """Sizes of a saved model: exact parameter counts from the headers, widths from the config."""
    total = lookup = positions = experts = 0
    has_head = False
    for file in files:
        for name, tensor in read_header(file).items():
            numbers = math.prod(tensor["shape"])
            total += numbers
            lookup += numbers if _INPUT_EMBEDDING.search(name) else 0
            positions += numbers if _POSITIONS.search(name) else 0
            experts += numbers if _EXPERT.search(name) else 0
            has_head |= name.endswith(("lm_head.weight", "embed_out.weight"))
    share = active_expert_share(config) if experts else 1.0
    active = total - (lookup if has_head else 0) - positions
    return _sizes(config, total, None if share is None else active - experts + int(experts * share))


def sizes_of_shape(shape: Shape) -> ModelSizes:
    """Sizes of a random-weight shape."""
    c = shape.config
    lookup = 0 if c["tie_word_embeddings"] else c["vocab_size"] * c["hidden_size"]
    return _sizes(c, shape.parameters, shape.parameters - lookup)


def active_expert_share(config: dict[str, Any]) -> float | None:
    """Share of the expert weights that one token visits; None where the config does not say."""
    config = text_config(config)
    experts, visited = first(config, *EXPERTS), first(config, *EXPERTS_PER_TOKEN)
    return visited / experts if experts and visited else None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language part of a config that nests it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def first(config: dict[str, Any], *names: str, default: int = 0) -> int:
    """The first of ``names`` that the config holds as a whole number."""
    for name in names:
        if isinstance(value := config.get(name), int) and not isinstance(value, bool):
            return value
    return default


def context_of(config: dict[str, Any]) -> int | None:
    """Most positions the model was built for, or None."""
    return first(text_config(config), "max_position_embeddings", "n_positions", "n_ctx", "seq_length") or None


def _sizes(config: dict[str, Any], parameters: int, active: int | None) -> ModelSizes:
    c = text_config(config)
    layers = first(c, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = first(c, "num_attention_heads", "n_head", "n_heads")
    hidden = first(c, "hidden_size", "n_embd", "d_model")
    head_size = first(c, "head_dim") or (hidden // heads if heads else 0)
    kv_heads = 1 if c.get("multi_query") is True else first(c, "num_key_value_heads", "num_kv_heads", default=heads)
    return ModelSizes(
        parameters=parameters,
        active=active,
        layers=layers,
        attention_width=heads * head_size,
        kv_width=2 * layers * kv_heads * head_size,
        vocab=first(c, "vocab_size"),
        context=context_of(config),
    )
