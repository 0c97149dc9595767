"""Runs any model of transformers that goes through AttentionInterface, as it is, over our paged cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from engine.devices import on
from engine.recording import first_line
from engine.runtime.attention import NAME, PagedCache, Step
from engine.runtime.batch import Batch, Ragged
from engine.runtime.blocks import BLOCK
from engine.runtime.forest import Forest
from engine.runtime.fusion import Fused
from engine.runtime.graphs import Decoding, Graphs, is_refused
from engine.runtime.kv_cache import KvCache, KvShape, block_bytes
from engine.runtime.vectors import Chosen
from engine.runtime.way import Way
from spec.choices import Attention, Fusion
from spec.choices import Graphs as Recording

NAMES = {
    Attention.PLAIN: "gathered",
    Attention.NATIVE: "native kernel",
    Attention.TRITON: "Triton",
    Attention.CASCADE: "Triton, prefixes read once",
}


MOST_ROWS = 64  # of a tile: new tokens times the query heads that share a key/value head; half where numbers are large


class ModuleRunner:
    """See Runner. ``model`` is set to our attention until ``close``.

    ``way``: its attention is one of ours and serves the model, see ``support``. ``fixed``: decoding steps are padded to
    a few sizes in arrays that stay where they are, which CUDA graphs need; on a GPU unless the way says otherwise.
    ``instead_of``: how a way that is tried before this one failed, for the record.
    """

    def __init__(
        self,
        model: Any,
        shapes: Sequence[KvShape],
        dtype: torch.dtype,
        device: torch.device,
        way: Way,
        fixed: bool = False,
    ) -> None:
        self._model = model
        self._shapes = tuple(shapes)
        self.dtype = dtype
        self._kv_type = way.cache_type(dtype)
        self._device = device
        self._way = way
        self._before = model.config._attn_implementation
        self._native = way.attention is Attention.NATIVE
        self._triton = way.attention in (Attention.TRITON, Attention.CASCADE)
        self.pads = way.attention is Attention.PLAIN
        self.samples = way.fusion is Fusion.KERNELS
        self._fixed = fixed or (device.type == "cuda" and way.graphs is not Recording.OFF)
        self._graphs: Graphs | None = None
        self._kv: KvCache | None = None
        self._forests: dict[int, Forest] = {}  # of steps that are not recorded, by how many sequences write
        self._unshared: str | None = None  # ``_refusal`` as far as it was found without these graphs
        self.instead_of: str | None = None
        parameters = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in parameters
        self.block_bytes = block_bytes(self._shapes, self._kv_type)
        self.vocab = int(model.config.get_text_config().vocab_size)
        model.set_attn_implementation(NAME)
        # Not every architecture hands keywords on to its attention function, so the step's cache waits at the modules.
        self._step = Step()
        self._attended = [m for m in model.modules() if hasattr(m, "layer_idx")]
        for module in self._attended:
            module.isoquant_step = self._step
        # Some models look for padding in each step's tokens, for which a GPU is waited for. Here there is none.
        self._warning = [m for m in model.modules() if hasattr(m, "warn_if_padding_and_no_attention_mask")]
        for module in self._warning:
            module.warn_if_padding_and_no_attention_mask = _silent
        self._fused: Fused | None = None
        self._vectors: Chosen | None = None
        try:
            if way.fusion is Fusion.KERNELS:
                self._fused = Fused(model, self._step)
                self._vectors = self._fused.choose(device) if device.type == "cuda" else None
        except BaseException:  # out of memory: the model may serve another run
            self.close()
            raise

    @property
    def name(self) -> str:
        """See Runner."""
        parts = ["paged", NAMES[self._way.attention]]
        if self._fused is not None:
            parts.append("fused kernels")
            if self._fused.is_sparse:
                parts.append("sparse tensor cores")
            if self._vectors is not None and self._vectors.ours:
                parts.append(str(self._vectors))
        if self._kv_type != self.dtype:
            parts.append(f"{self._way.kv_cache} cache")
        if self._fixed and self._device.type == "cuda":
            reason = self._graphs.reason if self._graphs is not None else None
            parts.append("CUDA graphs" if reason is None else f"no CUDA graphs: {reason}")
        if self._refusal is not None:
            parts.append(f"prefixes read by each after all: {self._refusal}")
        if self.instead_of is not None:
            parts.append(f"for a faster way failed: {self.instead_of}")
        return ", ".join(parts)

    def allocate(self, count: int, batch_size: int = 1, longest: int | None = None, new: int = 1) -> None:
        """See Runner."""
        reason = self._graphs.reason if self._graphs is not None else None
        self._unshared = self._refusal
        self._kv = self._graphs = None
        self._step.clear()
        self._forests.clear()
        self._kv = KvCache(self._shapes, count + self._fixed, self._kv_type, self._device, rowwise=self._triton)
        if self._fixed:
            width = -(-longest // BLOCK) if self._triton and longest is not None else None
            must = self._way.graphs is Recording.ON
            plant = self._forest if self._shares else None
            self._graphs = Graphs(self._decode, count, self._device, width, must, plant, self._most_new(new))
            self._graphs.reason = reason
            with torch.inference_mode():
                self._graphs.prepare(batch_size)

    def _most_new(self, new: int) -> int:
        """``new`` tokens of a sequence where they are rows of one tile of the decoding kernel, else 1."""
        heads = int(self._model.config.get_text_config().num_attention_heads)
        group = max(heads // s.heads for s in self._shapes)
        is_large = self.dtype == torch.float32 or max(max(s.key_dim, s.value_dim) for s in self._shapes) > 128
        return new if new * group <= MOST_ROWS // (2 if is_large else 1) else 1

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        assert self._kv is not None
        self._kv.copy(pairs)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """See Runner."""
        if self._graphs is not None and self._graphs.serves(batch):
            scores = self._graphs.logits(batch)
            if scores is not None:
                return scores
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

    @property
    def _refusal(self) -> str | None:
        """Why this GPU does not run the kernel that reads keys together; None where it was not found to refuse it."""
        return self._graphs.unshared if self._graphs is not None and self._graphs.unshared else self._unshared

    @property
    def _shares(self) -> bool:
        """Whether keys may be read together: it was asked for, and nothing is known against it."""
        return self._way.attention is Attention.CASCADE and self._refusal is None

    def _forest(self, n: int) -> Forest:
        heads = int(self._model.config.get_text_config().num_attention_heads)
        kinds = dict.fromkeys((heads, s.heads, max(s.key_dim, s.value_dim)) for s in self._shapes)
        return Forest(n, list(kinds), self.dtype, self._device)

    def _run(self, model: Any, batch: Batch, **more: Any) -> Any:
        ragged = batch.on(self._device)
        if self._shares and (n := ragged.singles) > 1:
            if n not in self._forests:
                self._forests[n] = self._forest(n)
            if self._forests[n].update(batch.tables[batch.slots[:n]], batch.positions[:n] + 1):
                ragged.forest = self._forests[n]
        tokens = torch.from_numpy(batch.tokens.astype("int64")).to(self._device)
        given = batch if self._native else None
        try:
            return self._forward(model, tokens, ragged, given, **more)
        except Exception as error:
            if ragged.forest is None or not is_refused(error):
                raise
            self._unshared = first_line(error)
        return self._forward(model, tokens, batch.on(self._device), given, **more)

    def _decode(self, step: Decoding) -> torch.Tensor:
        step.begin()
        logits: torch.Tensor = self._forward(self._model, step.tokens, step, None).logits[0]
        return logits

    def _forward(
        self, model: Any, tokens: torch.Tensor, ragged: Ragged | Decoding, batch: Batch | None, **more: Any
    ) -> Any:
        assert self._kv is not None, "allocate() comes first"
        paged = self._step.paged = PagedCache(self._kv, ragged, batch, self._triton)
        with on(self._device):
            return model(
                input_ids=tokens[None],
                position_ids=ragged.positions[None],
                past_key_values=paged,
                use_cache=True,
                **more,
            )

    def close(self) -> None:
        """See Runner."""
        self._kv = self._graphs = None
        self._step.clear()
        if self._fused is not None:
            self._fused.close()
        self._forests.clear()
        for module in self._attended:
            del module.isoquant_step
        for module in self._warning:
            del module.warn_if_padding_and_no_attention_mask
        self._model.set_attn_implementation(self._before)


def _silent(*_: Any) -> None:
    """What models of transformers call to warn of padding."""
