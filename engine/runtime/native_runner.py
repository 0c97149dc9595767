"""Runs the Llama family on a processor through our own C++ forward pass: no Python between the layers.

The weights are those of the loaded model, packed once into the order the kernels read, each matrix in the format it
has: plain numbers, codes of eight or four bits, or a low-rank pair. Activations and sums are fp32 whatever the weights
are, but where inputs become int8. Each row's sums run in one fixed order, so a token's scores do not depend, to the
last bit, on which other rows share its batch or on how its prompt was cut into chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.compress.linears import QuantizedEmbedding
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.family import is_family, turns, window
from engine.runtime.kv_cache import KvCache, KvShape, block_bytes
from engine.runtime.native_weights import Weights
from engine.runtime.way import CACHE_NAMES
from kernels.native import build, ops
from kernels.native.matrix import KINDS


def serves(model: Any, device: torch.device) -> bool:
    """Whether ``NativeRunner`` can run a model: its family, its parts, its number format, a compiler at hand."""
    if device.type != "cpu" or model.dtype not in ops.CODES:
        return False
    return is_family(model) and model.base_model.layers[0].self_attn.head_dim % 2 == 0 and build.reason() is None


class NativeRunner:
    """See Runner and ExitingRunner.

    ``sole``: nobody else runs the model until ``close``, so the matrices of its layers, and all that are quantized, are
    kept once: the model gives each up as it is packed, and gets it back at the end. ``cache``: the number format of the
    KV cache; None is that of the weights.
    """

    pads = False
    samples = False

    def __init__(self, model: Any, dtype: torch.dtype, sole: bool = False, cache: torch.dtype | None = None) -> None:
        self._model = model
        self.dtype = dtype
        self._cache = cache or dtype
        inner, config = model.base_model, model.config
        self.layers = len(inner.layers)
        self.vocab, self.hidden = int(config.vocab_size), int(config.hidden_size)
        self._dim = int(inner.layers[0].self_attn.head_dim)
        self._kv: KvCache | None = None
        self._scratch = ops.Scratch()
        self._weights = Weights(sole)
        try:
            self._layers = (ops.Layer * self.layers)(*(self._layer(m) for m in inner.layers))
            self._native = self._describe()
        except BaseException:
            self._weights.close()
            raise
        self._shapes = [KvShape(layer.kv, self._dim, self._dim) for layer in self._layers]
        self.block_bytes = block_bytes(self._shapes, self._cache)
        self._x = self._work = self._out = self._states = torch.empty(0)
        self._embed, self._run, self._head, self._by_reference = ops.forward_of(self._native)

    @property
    def name(self) -> str:
        """See Runner. Formats other than plain numbers are named."""
        formats = self._weights.formats
        parts = ["paged, native forward", *([f"{' and '.join(formats)} weights"] if formats else [])]
        if self._cache != self.dtype:
            parts.append(f"{CACHE_NAMES[self._cache]} cache")
        return ", ".join(parts)

    # ---- the model as forward.cpp reads it

    def _describe(self) -> ops.Model:
        inner, head, weights = self._model.base_model, self._model.get_output_embeddings(), self._weights
        found = ops.Model(
            layers=self.layers,
            hidden=self.hidden,
            vocab=self.vocab,
            dim=self._dim,
            cache=ops.CACHE_CODES[self._cache],
            eps=float(inner.norm.variance_epsilon),
            scale=float(inner.layers[0].self_attn.scaling),
            norm=weights.fp32(inner.norm.weight),
        )
        if head is not None:  # a reward model's trunk has none
            found.head = weights.matrices([head], lasting=True)
        tokens = inner.embed_tokens
        if not isinstance(tokens, QuantizedEmbedding):
            found.table = KINDS[tokens.weight.dtype]
            found.embedding = weights.keep(tokens.weight.detach().contiguous())
        elif tokens.is_tied(head):
            found.lookup = found.head
        else:
            found.lookup = weights.embedding(tokens)
        found.layer = ctypes.cast(self._layers, ctypes.POINTER(ops.Layer))
        return found

    def _layer(self, layer: Any) -> ops.Layer:
        a, mlp, weights = layer.self_attn, layer.mlp, self._weights
        return ops.Layer(
            norm_in=weights.fp32(layer.input_layernorm.weight),
            norm_mlp=weights.fp32(layer.post_attention_layernorm.weight),
            qkv=weights.matrices([a.q_proj, a.k_proj, a.v_proj]),
            o=weights.matrices([a.o_proj]),
            gate_up=weights.matrices([mlp.gate_proj, mlp.up_proj]),
            down=weights.matrices([mlp.down_proj]),
            q_norm=weights.fp32(a.q_norm.weight if hasattr(a, "q_norm") else None),
            k_norm=weights.fp32(a.k_norm.weight if hasattr(a, "k_norm") else None),
            qkv_parts=3,
            gate_up_parts=2,
            query=a.q_proj.out_features // self._dim,
            kv=a.k_proj.out_features // self._dim,
            mlp=mlp.down_proj.in_features,
            window=window(self._model, a),
            rotary=int(turns(a)),
        )

    # ---- Runner

    def allocate(self, count: int, batch_size: int = 1, longest: int | None = None, new: int = 1) -> None:
        """See Runner."""
        self._kv = None
        self._kv = KvCache(self._shapes, count, self._cache, torch.device("cpu"))
        for i, layer in enumerate(self._layers):
            layer.cache = ops.Cache.of(*self._kv.tensors(i))
        with torch.inference_mode():
            positions = torch.arange(count * BLOCK)[None]
            limit = getattr(self._model.config, "max_position_embeddings", None)
            positions = positions[:, :limit]
            tables = self._model.base_model.rotary_emb(torch.zeros(1), positions)
            self._cos, self._sin = (t[0].float().contiguous() for t in tables)
        self._native.cos, self._native.sin = self._cos.data_ptr(), self._sin.data_ptr()

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        assert self._kv is not None
        self._kv.copy(pairs)

    def logits(self, batch: Batch) -> torch.Tensor:
        """See Runner."""
        self._through(batch, 0, self.layers)
        return self._read(batch.wanted, self._x)

    def greedy(self, batch: Batch) -> list[int]:
        """See Runner."""
        self._through(batch, 0, self.layers)
        best = np.empty(len(batch.wanted), dtype=np.int32)
        self._read(batch.wanted, self._x, _at(best))
        return list(best.tolist())

    def states(self, batch: Batch) -> torch.Tensor:
        """See Runner."""
        self._through(batch, 0, self.layers)
        n = len(batch.wanted)
        self._room(n)
        x, work, states = _ptr(self._x), _ptr(self._work), _ptr(self._states)
        self._head(self._by_reference, n, _at(batch.wanted), x, work, states, None, None)
        return self._states[:n]

    def exiting(self, batch: Batch, thresholds: np.ndarray, margin: bool, first: int) -> tuple[torch.Tensor, list[int]]:
        """See ExitingRunner. Skipped layers get their keys and values from the state that left (Schuster et al. 2022,
        arXiv 2207.07061, section 3.3)."""
        m = batch.m
        logits, layers = torch.empty(m, self.vocab), np.full(m, self.layers)
        going = np.arange(m)
        for depth in range(self.layers):
            if not len(going):
                break
            self._go(batch, going, depth, fill=False)
            if depth + 1 == self.layers:
                logits[torch.from_numpy(going)] = self._read(going.astype(np.int32), self._x)
            elif depth + 1 >= first:
                scores = self._read(going.astype(np.int32), self._x)
                leaving = _confidence(scores, margin) >= thresholds[going]
                left = going[leaving]
                logits[torch.from_numpy(left)] = scores[torch.from_numpy(leaving)]
                layers[left] = depth + 1
                for deeper in range(depth + 1, self.layers):
                    self._go(batch, left, deeper, fill=True)
                going = going[~leaving]
        return logits, layers.tolist()

    def close(self) -> None:
        """See Runner."""
        self._kv = None
        self._weights.close()

    # ---- calls

    def _through(self, batch: Batch, start: int, end: int) -> None:
        assert int(batch.positions.max()) < len(self._cos), "a position beyond the model's context"
        self._grow(batch.m)
        self._embed(self._by_reference, batch.m, _at(batch.tokens), _ptr(self._x))
        rows = ops.Rows.of(batch.positions, batch.slots, batch.tables)
        self._layers_of(rows, start, end, self._x, fill=False)

    def _go(self, batch: Batch, some: np.ndarray, layer: int, fill: bool) -> None:
        """One layer for some of the rows; ``fill``: only their keys and values. The states of the others stay."""
        if not len(some):
            return
        if layer == 0:
            self._grow(batch.m)
            self._embed(self._by_reference, batch.m, _at(batch.tokens), _ptr(self._x))
        chosen = torch.from_numpy(some)
        part = self._x[chosen]
        positions, slots = batch.positions[some], batch.slots[some]
        rows = ops.Rows.of(positions, slots, batch.tables)
        self._layers_of(rows, layer, layer + 1, part, fill)
        if not fill:
            self._x[chosen] = part

    def _layers_of(self, rows: ops.Rows, start: int, end: int, x: torch.Tensor, fill: bool) -> None:
        scores, each = self._scratch.scores(rows.width)
        reference = ctypes.byref(rows)
        self._run(
            *(self._by_reference, start, end, reference, _ptr(x), _ptr(self._work), scores),
            ctypes.c_int64(each),
            int(fill),
        )

    def _read(self, wanted: np.ndarray, x: torch.Tensor, best: ctypes.c_void_p | None = None) -> torch.Tensor:
        n = len(wanted)
        self._room(n)
        states, out = _ptr(self._states), _ptr(self._out)
        self._head(self._by_reference, n, _at(wanted), _ptr(x), _ptr(self._work), states, out, best)
        return self._out[:n]

    def _grow(self, m: int) -> None:
        if len(self._x) < m:
            self._x = torch.empty(m, self.hidden)
            self._work = torch.empty(ops.work_of(self._native, m))

    def _room(self, n: int) -> None:
        if len(self._states) < n:
            self._states = torch.empty(n, self.hidden)
            self._out = torch.empty(n, self.vocab)


def _confidence(scores: torch.Tensor, margin: bool) -> np.ndarray:
    """The highest probability of each row, or its lead over the second."""
    top = scores.softmax(-1).topk(2, -1).values
    return np.asarray((top[:, 0] - top[:, 1] if margin else top[:, 0]).numpy())


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(ops.address(array))


def _ptr(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
