"""The back end of edge devices: a model's ONNX graph in ONNX Runtime, on static, left-padded batches.

Scores come from the session; what is drawn from them, when a row ends and when its tokens came is the same code as for
transformers' ``generate``. Each step hands the last one's cache back, so a token costs one pass however long the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.backends.batches import StaticBatches, pad_left
from engine.backends.rows import Grown, OnStep, Row
from engine.measure.time import now
from engine.onnx.session import OnnxModel


class OnnxBackend(StaticBatches):
    """Executes batches of one open session; see Backend."""

    name = "onnxruntime"

    @property
    def attention(self) -> str:
        """See Backend."""
        return self.loaded.attention

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        model: OnnxModel = self.loaded.model
        started_s = now()
        pad = self.loaded.tokenizer.pad_id
        ids, mask = pad_left([r.context for r in rows], pad, torch.device("cpu"))
        watch = self._watched(rows, ids.shape[1], on_step)
        chain = self._sampler(rows, ids.shape[1], watch)
        read, positions, cache = ids, _positions(mask), model.empty(len(rows))
        ended = torch.zeros(len(rows), dtype=torch.bool)
        while True:
            found, cache = model.step(read, mask, positions, [read.shape[1] - 1], cache)
            scores = chain(ids, found[:, 0])
            tokens = scores.argmax(-1).masked_fill(ended, pad)
            ids = torch.cat([ids, tokens[:, None]], 1)
            ended = watch(ids, scores)
            if ended.all():
                break
            read, mask = tokens[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            # A row that ended goes on with padding; its position is held inside the context, as with transformers.
            positions = (positions[:, -1:] + 1).clamp(max=(self.loaded.context or 1 << 62) - 1)
        self._note_cache(cache.bytes)
        return [self._grown(row, i, watch, started_s) for i, row in enumerate(rows)]

    def _scores(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        model: OnnxModel = self.loaded.model
        return model.step(ids, mask, _positions(mask), [ids.shape[1] - 1], model.empty(len(ids)))[0][:, 0]


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)
