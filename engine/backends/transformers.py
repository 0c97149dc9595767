"""The baseline back end: transformers' own ``generate`` on static, left-padded batches.

A batch runs until its last sequence ends. Samples of one problem repeat its prompt, nothing is shared, so all three
accountings of compute agree on the prompt: ``flops_total`` equals ``flops_no_reuse``.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from engine.backends.rows import Grown, OnStep, Row
from engine.backends.stopping import StopStrings, Watch
from engine.decoding.requests import Extension
from engine.devices import available_bytes, does_not_fit, is_out_of_memory, release
from engine.measure.time import now, synchronise
from engine.models import LoadedModel
from engine.sampling import CounterSampler, uniforms

MEMORY_CHECK_STEPS = 16
RESERVE_BYTES = 400_000_000


class TransformersBackend:
    """Executes batches of one loaded model."""

    name = "transformers"

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.kv_bytes_peak: int | None = None
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self._takes_positions = "position_ids" in inspect.signature(loaded.model.forward).parameters

    def extend(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        """See Backend. Rows that cannot share a ``generate`` call (``_alike``) run one group after the other."""
        grown: list[Grown | None] = [None] * len(rows)
        for indices in _alike(rows, None if self._takes_positions else self.loaded.context):
            group = [rows[i] for i in indices]
            try:
                results = self._generate(group, on_step)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise self._too_large(len(group)) from None
            for index, result in zip(indices, results, strict=True):
                grown[index] = result
        return [g for g in grown if g is not None]

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        loaded = self.loaded
        for stop in {r.stop for r in rows}:
            self._stops.setdefault(stop, StopStrings(loaded.tokenizer, stop))
        started_s = now()
        ids, mask = pad_left([r.context for r in rows], loaded.tokenizer.pad_id, loaded.device)
        watch = Watch(rows, ids.shape[1], loaded.tokenizer, self._stops)
        watch.on_step = self._guarded(on_step, watch, rows)
        longest = max(r.limit for r in rows)
        with _positions_within(loaded.model, loaded.context, max(len(r.context) for r in rows) + longest):
            output = loaded.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=longest,
                do_sample=False,
                logits_processor=self._sampler(rows, ids.shape[1]),
                stopping_criteria=StoppingCriteriaList([watch]),
                return_dict_in_generate=True,
            )
        synchronise(str(loaded.device))
        self._note_cache(output.past_key_values)
        return [self._grown(row, i, watch, started_s) for i, row in enumerate(rows)]

    def _sampler(self, rows: Sequence[Row], prompt_width: int) -> LogitsProcessorList:
        sampling = rows[0].sampling
        if sampling is None:
            return LogitsProcessorList()
        numbers = uniforms([r.key for r in rows], [r.start for r in rows], max(r.limit for r in rows))
        return LogitsProcessorList([CounterSampler(sampling, numbers, prompt_width, self.loaded.device)])

    def _grown(self, row: Row, index: int, watch: Watch, started_s: float) -> Grown:
        ids = watch.ids[index]
        shown = ids[:-1] if ids[-1] in self.loaded.tokenizer.stop_ids else ids
        text = self._stops[row.stop].cut(self.loaded.tokenizer.decode(shown))
        return Grown(Extension(text, tuple(ids), watch.finish[index]), started_s, watch.step_s[: len(ids)])

    def _note_cache(self, cache: Any) -> None:
        held = cache_bytes(cache)
        if held is not None:
            self.kv_bytes_peak = max(self.kv_bytes_peak or 0, held)

    def _guarded(self, on_step: OnStep, watch: Watch, rows: Sequence[Row]) -> OnStep:
        """``on_step`` that also stops a batch which is about to eat the last main memory.

        A GPU's allocator raises when memory runs out; the operating system kills the process instead.
        """
        if self.loaded.device.type != "cpu":
            return on_step

        def check(tokens: int) -> None:
            on_step(tokens)
            if len(watch.step_s) % MEMORY_CHECK_STEPS == 0 and available_bytes(self.loaded.device) < RESERVE_BYTES:
                raise self._too_large(len(rows))

        return check

    def _too_large(self, batch_size: int) -> Exception:
        release(self.loaded.device)
        smaller = batch_size // 2
        advice = f"try batch size {smaller}." if smaller else "choose a smaller model, a smaller number format or task."
        what = f"{batch_size} sequences of {self.loaded.name} at once"
        return does_not_fit(what, None, available_bytes(self.loaded.device), self.loaded.device, advice)


def pad_left(contexts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both int64 [rows, longest]: contexts end in the last column, ``mask`` is 0 on padding."""
    width = max(len(c) for c in contexts)
    ids = torch.tensor([[pad_id] * (width - len(c)) + list(c) for c in contexts], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], dtype=torch.long)
    return ids.to(device), mask.to(device)


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


def _alike(rows: Sequence[Row], context: int | None) -> list[list[int]]:
    """Indices of rows that may run in one call: the same sampling, and with a ``context``, none pushed past it.

    ``context`` is given for a model that takes no positions from outside (see ``_positions_within``): its cramped
    rows run apart.
    """
    longest = max(r.limit for r in rows)
    groups: dict[tuple[object, int], list[int]] = {}
    for index, row in enumerate(rows):
        cramped = context is not None and len(row.context) + longest > context
        groups.setdefault((row.sampling, row.limit if cramped else 0), []).append(index)
    return list(groups.values())
