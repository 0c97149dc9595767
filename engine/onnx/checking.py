"""Whether ONNX Runtime computes what the torch model did: scores of two texts of very different length, in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spec.errors import ModelError

if TYPE_CHECKING:
    from engine.onnx.session import OnnxModel

TEXTS = (31, 13)  # tokens of the two texts; the shorter one stands behind padding
PIECES = (24, 3, 1, 1, 2)  # columns read at a time
COLUMNS = 4096  # of the vocabulary that are compared, evenly spread
# Root mean square of the differences, as a share of the scores' spread, that rounding may make; what is computed
# wrongly comes to about 1 and more. The torch model's weights are rounded as the recipe does, so what a recipe adds is
# little: an activation that falls on the other side of a half, and goes on differently.
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1}
ROUNDING = {"int8-dynamic": 0.1}


@torch.inference_mode()
def reference(model: Any) -> dict[str, np.ndarray]:
    """Two random texts (``ids``, one behind the other) and the torch model's ``scores`` [tokens, ``columns``]."""
    generator = torch.Generator().manual_seed(0)
    vocab = int(model.config.get_text_config().vocab_size)
    texts = [torch.randint(0, vocab, (1, n), generator=generator) for n in TEXTS]
    columns = np.unique(np.linspace(0, vocab - 1, COLUMNS).astype(np.int64))
    scores = [model(input_ids=text).logits[0].float().numpy()[:, columns] for text in texts]
    return {"ids": torch.cat(texts, 1)[0].numpy(), "scores": np.concatenate(scores), "columns": columns}


def allowed(dtype: str, recipe: str) -> float:
    """How much the scores may differ in a number format, with a recipe."""
    name = recipe.rpartition("+")[2].partition(":")[0]
    return max(TOLERANCE[dtype], ROUNDING.get(name, 0.0))


def check(model: OnnxModel, known: Mapping[str, np.ndarray], dtype: str, recipe: str) -> float:
    """How much the session differs from the torch model; raises ModelError where rounding does not explain it."""
    error, limit = difference(model, known), allowed(dtype, recipe)
    if not error <= limit:  # NaN is no number that is small enough
        raise ModelError(
            f"ONNX Runtime does not compute what the model does: its scores differ by {error:.2g} of their spread, and "
            f"{recipe or dtype} explains {limit:g}; choose the back end transformers or isoquant."
        )
    return error


def difference(model: OnnxModel, known: Mapping[str, np.ndarray]) -> float:
    """Root mean square of the differences over both texts, as a share of the scores' spread."""
    width = max(TEXTS)
    ids = np.zeros((len(TEXTS), width), np.int64)
    mask = np.zeros_like(ids)
    ends = np.cumsum(TEXTS)
    for row, (end, length) in enumerate(zip(ends, TEXTS, strict=True)):
        ids[row, width - length :] = known["ids"][end - length : end]
        mask[row, width - length :] = 1
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    cache, found, at = model.empty(len(TEXTS)), [], 0
    for size in PIECES:
        upto = at + size
        read = (
            torch.from_numpy(np.ascontiguousarray(a)) for a in (ids[:, at:upto], mask[:, :upto], positions[:, at:upto])
        )
        scores, cache = model.step(*read, list(range(size)), cache)
        found.append(scores.numpy()[:, :, known["columns"]])
        at = upto
    whole = np.concatenate(found, 1)
    mine = np.concatenate([whole[row, width - length :] for row, length in enumerate(TEXTS)])
    spread = float(known["scores"].std()) or 1.0
    return float(np.sqrt(np.mean((mine - known["scores"]) ** 2))) / spread
