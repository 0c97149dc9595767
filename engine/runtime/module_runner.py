"""Runs any model of transformers that goes through AttentionInterface, as it is, over our paged cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from engine.runtime.attention import NAME, PagedCache, Step
from engine.runtime.batch import Batch
from engine.runtime.kv_cache import KvCache, KvShape, block_bytes
from kernels.native import build


class ModuleRunner:
    """See Runner. ``model`` is set to our attention until ``close``."""

    def __init__(self, model: Any, shapes: Sequence[KvShape], dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._shapes = tuple(shapes)
        self.dtype = self._dtype = dtype
        self._device = device
        self._before = model.config._attn_implementation
        # The kernel reads two dimensions of a key at a time.
        fits = all(s.key_dim == s.value_dim and s.key_dim % 2 == 0 for s in self._shapes)
        self._native = device.type == "cpu" and build.reason() is None and fits
        self._kv: KvCache | None = None
        parameters = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in parameters
        self.name = "paged, native kernel" if self._native else "paged, gathered"
        self.block_bytes = block_bytes(self._shapes, dtype)
        self.vocab = int(model.config.get_text_config().vocab_size)
        model.set_attn_implementation(NAME)
        # Not every architecture hands keywords on to its attention function, so the step's cache waits at the modules.
        self._step = Step()
        self._attended = [m for m in model.modules() if hasattr(m, "layer_idx")]
        for module in self._attended:
            module.isoquant_step = self._step

    def allocate(self, count: int) -> None:
        """See Runner."""
        self._kv = None
        self._kv = KvCache(self._shapes, count, self._dtype, self._device)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        assert self._kv is not None
        self._kv.copy(pairs)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """See Runner."""
        wanted = torch.from_numpy(batch.wanted.astype("int64")).to(self._device)
        keep = {"logits_to_keep": wanted} if self._keeps else {}
        logits = self._run(self._model, batch, **keep).logits[0]
        return logits if self._keeps else logits[wanted]

    def greedy(self, batch: Batch) -> list[int]:
        """See Runner."""
        return list(self.logits(batch).argmax(-1).tolist())

    @torch.inference_mode()
    def states(self, batch: Batch) -> torch.Tensor:
        """See Runner."""
        wanted = torch.from_numpy(batch.wanted.astype("int64")).to(self._device)
        states: torch.Tensor = self._run(self._model.base_model, batch).last_hidden_state[0]
        return states[wanted]

    def _run(self, model: Any, batch: Batch, **more: Any) -> Any:
        assert self._kv is not None, "allocate() comes first"
        ragged = batch.on(self._device)
        paged = self._step.paged = PagedCache(self._kv, ragged, self._native)
        tokens = torch.from_numpy(batch.tokens.astype("int64")).to(self._device)
        return model(
            input_ids=tokens[None],
            position_ids=ragged.positions[None],
            past_key_values=paged,
            use_cache=True,
            **more,
        )

    def close(self) -> None:
        """See Runner."""
        self._kv = None
        for module in self._attended:
            del module.isoquant_step
        self._model.set_attn_implementation(self._before)
