"""The baseline back end: transformers' own ``generate`` on static, left-padded batches."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import StoppingCriteriaList

from engine.backends.batches import StaticBatches, pad_left
from engine.backends.compiling import Compiled
from engine.backends.pinning import PINNED, is_refused, pinned
from engine.backends.rows import Grown, OnStep, Row
from engine.measure.time import now, synchronise
from engine.models import LoadedModel
from spec.choices import Attention
from spec.errors import SpecError


class TransformersBackend(StaticBatches):
    """Executes batches of one loaded model; see Backend."""

    name = "transformers"

    def __init__(
        self,
        loaded: LoadedModel,
        batch_size: int,
        kv_cache: bool = True,
        attention: Attention = Attention.AUTO,
        compiled: Compiled | None = None,
    ) -> None:
        super().__init__(loaded, batch_size, kv_cache)
        self._pinned = attention if attention in PINNED else None
        self._compiled = compiled
        self._takes_positions = "position_ids" in inspect.signature(loaded.model.forward).parameters

    @property
    def attention(self) -> str:
        """See Backend."""
        parts = [self.loaded.attention, "" if self._pinned is None else self._pinned.removeprefix("sdpa-")]
        return ", ".join(p for p in (*parts, "compiled" if self._compiled else "") if p)

    def _reach(self) -> int | None:
        limits = [] if self._takes_positions else [self.loaded.context]
        limits += [] if self._compiled is None else [self._compiled.longest]
        return min((n for n in limits if n is not None), default=None)

    def _inside(self) -> AbstractContextManager[None]:
        return pinned(self._pinned)

    def _explained(self, error: Exception) -> Exception | None:
        return self._refused() if self._pinned is not None and is_refused(error) else None

    def _filled(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._compiled is None else self._compiled.padded(rows)

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        loaded = self.loaded
        started_s = now()
        ids, mask = pad_left([r.context for r in rows], loaded.tokenizer.pad_id, loaded.device)
        watch = self._watched(rows, ids.shape[1], on_step)
        longest = max(r.limit for r in rows)
        more: dict[str, Any] = {}
        if self._compiled is not None:
            ids, mask = self._compiled.padded(ids), self._compiled.padded(mask)
            more = self._compiled.arguments()
        with _positions_within(loaded.model, loaded.context, max(len(r.context) for r in rows) + longest):
            output = loaded.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=longest,
                do_sample=False,
                use_cache=self._kv_cache,
                logits_processor=self._sampler(rows, ids.shape[1], watch),
                stopping_criteria=StoppingCriteriaList([watch]),
                return_dict_in_generate=True,
                **more,
            )
        synchronise(str(loaded.device))
        self._note_cache(cache_bytes(output.past_key_values))
        return [self._grown(row, i, watch, started_s) for i, row in enumerate(rows)]

    def _scores(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self._takes_positions else {}
        output = self.loaded.model(input_ids=ids, attention_mask=mask, use_cache=False, **positions)
        found: torch.Tensor = output.logits[:, -1]
        return found

    def _refused(self) -> SpecError:
        return SpecError(
            f"PyTorch's {self._pinned} kernel does not take what {self.loaded.name} asks for on {self.loaded.device} "
            "(number format, head size or the mask of a padded batch); choose sdpa, which takes one that does.",
            field="runtime.attention",
        )


def cache_bytes(cache: Any) -> int | None:
    """Bytes of all tensors that a transformers cache holds; None where the model keeps its state elsewhere."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        return None
    tensors = (v for layer in layers for v in vars(layer).values() if isinstance(v, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)


@contextlib.contextmanager
def _positions_within(model: Any, context: int | None, reach: int) -> Iterator[None]:
    """Keep the positions that ``model`` reads inside its context, where a batch would ``reach`` beyond it.

    ``generate`` goes on until its longest row ends and feeds padding to those that ended before. A row that ended
    because the context was full would so be pushed to positions that the model does not have (an index error with a
    table of positions, another scaling of all rows with some rotary ones). What such a row reads has no meaning any
    more, so its position is held at the last valid one. A row that still grows is inside its context, and unchanged.
    """
    if context is None or reach <= context:
        yield
        return

    def hold(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions = kwargs.get("position_ids")
        return args, kwargs if positions is None else kwargs | {"position_ids": positions.clamp(max=context - 1)}

    handle = model.register_forward_pre_hook(hold, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
