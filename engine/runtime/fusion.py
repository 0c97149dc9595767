"""The layers of the Llama family by our fused kernels, put into a model of transformers and taken out again.

A layer of transformers' modules launches some forty operations; here it is ten: four matrix products (queries, keys and
values in one, gate and up in one), rotary positions with the write to the cache, attention and the sum over its parts,
the gate, and two norms that each take the sum before them along. The second one is the next layer's first: what it
normed waits in ``_Carry`` until that layer is called with the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.runtime import triton_attention
from engine.runtime.attention import Step
from engine.runtime.family import is_family, turns, window
from engine.runtime.products import Product
from engine.runtime.vectors import Chosen, choose


def is_fusable(model: Any) -> bool:
    """Whether ``Fused`` can run a model: the Llama family, its matrices plain, quantized or low-rank pairs."""
    return is_family(model)


class _Carry:
    """The last layer's sum, and the same normed for whoever is called with it next."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.normed: torch.Tensor | None = None

    def take(self, x: torch.Tensor) -> torch.Tensor | None:
        """What was normed, if ``x`` is the sum it was made of."""
        found = self.normed if x is self.total else None
        self.total = self.normed = None
        return found


class Fused:
    """A model whose layers run by our kernels until ``close``. ``step``: where they find the cache of the step.

    The matrices that are multiplied as one lie one above the other in one tensor, and nothing is kept twice: see
    ``Product``. Transformers' own modules go on working where they are plain; quantized ones have their weights again
    after ``close``.
    """

    def __init__(self, model: Any, step: Step) -> None:
        inner, carry = model.base_model, _Carry()
        norms = [layer.input_layernorm for layer in inner.layers[1:]] + [inner.norm]
        self._changed: list[nn.Module] = []
        self._products: list[Product] = []
        try:
            for layer, following in zip(inner.layers, norms, strict=True):
                self._change(layer, _Layer(model, layer, following, step, carry, self._product))
        except BaseException:  # out of memory while weights are put in order
            self.close()
            raise
        self._change(inner.norm, _LastNorm(inner.norm, carry))

    @property
    def is_sparse(self) -> bool:
        """Whether sparse tensor cores multiply with some of the matrices."""
        return any(product.is_sparse for product in self._products)

    def choose(self, device: torch.device) -> Chosen:
        """Take for single rows what is the fastest on this GPU; see ``engine.runtime.vectors``."""
        return choose([part for product in self._products for part in product.plain], device)

    def _product(self, *modules: nn.Module) -> Product:
        self._products.append(Product(modules))
        return self._products[-1]

    def _change(self, module: nn.Module, forward: Any) -> None:
        module.forward = forward
        self._changed.append(module)

    def close(self) -> None:
        """Transformers' own forward passes stand again."""
        for module in self._changed:
            del module.forward
        self._changed.clear()
        while self._products:
            self._products.pop().close()


class _Layer:
    """The forward pass of one decoder layer."""

    def __init__(
        self, model: Any, layer: Any, following: Any, step: Step, carry: _Carry, product: Callable[..., Product]
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._step, self._carry = step, carry
        self._index = int(attention.layer_idx)
        self._dim = int(attention.head_dim)
        self._heads, self._kv_heads = (m.out_features // self._dim for m in (attention.q_proj, attention.k_proj))
        self._scale, self._window = float(attention.scaling), window(model, attention)
        self._turns = turns(attention)
        self._qkv = product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = product(mlp.gate_proj, mlp.up_proj)
        self._out, self._down, self._width = (
            product(attention.o_proj),
            product(mlp.down_proj),
            mlp.down_proj.in_features,
        )
        self._norm_in, self._norm_mlp, self._following = (
            layer.input_layernorm,
            layer.post_attention_layernorm,
            following,
        )
        self._norms: dict[str, Any] = {}
        if hasattr(attention, "q_norm"):
            q_norm, k_norm = attention.q_norm, attention.k_norm
            self._norms = {"q_norm": q_norm.weight, "k_norm": k_norm.weight, "eps": q_norm.variance_epsilon}

    def __call__(
        self, hidden_states: torch.Tensor, *_: Any, position_embeddings: tuple[torch.Tensor, torch.Tensor], **__: Any
    ) -> torch.Tensor:
        """``hidden_states`` [1, tokens, hidden], as transformers calls a layer."""
        from kernels.swiglu.triton import gated

        x, normed = hidden_states[0], self._carry.take(hidden_states)
        if normed is None:
            normed, _ = _norm(self._norm_in, x)
        attended = self._attend(self._qkv(normed), *(t[0] for t in position_embeddings))
        normed, x = _norm(self._norm_mlp, self._out(attended), x)
        both = self._gate_up(normed)
        mixed = self._down(gated(both[:, : self._width], both[:, self._width :]))
        normed, x = _norm(self._following, mixed, x)
        self._carry.total, self._carry.normed = x[None], normed
        return self._carry.total

    def _attend(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        from kernels.rope.triton import rotate_and_store

        paged = self._step.paged
        kv, ragged, layer = paged.kv, paged.ragged, self._index
        sizes = [n * self._dim for n in (self._heads, self._kv_heads, self._kv_heads)]
        q, k, v = (part.unflatten(1, (-1, self._dim)) for part in qkv.split(sizes, 1))
        if not self._turns:
            cos, sin = cos[:, :0], sin[:, :0]
        scales = {"key_scales": kv.key_scales[layer], "value_scales": kv.value_scales[layer]} if kv.is_quantized else {}
        q = rotate_and_store(
            *(q, k, v, cos.contiguous(), sin.contiguous(), ragged.blocks, ragged.places),
            *(kv.keys[layer], kv.values[layer]),
            **self._norms,
            **scales,
        )
        out = triton_attention.attend(q, kv, layer, ragged, self._scale, self._window, 0.0, None)
        return out.flatten(1)


class _LastNorm:
    """The norm behind the last layer, which that layer has done already."""

    def __init__(self, norm: Any, carry: _Carry) -> None:
        self._norm, self._carry = norm, carry

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = self._carry.take(hidden_states)
        return _norm(self._norm, hidden_states[0])[0][None] if normed is None else normed[None]


def _norm(module: Any, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    from kernels.norm.triton import add_rms_norm

    return add_rms_norm(x, module.weight, module.variance_epsilon, residual)
