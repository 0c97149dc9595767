"""The baseline back end: transformers' own ``generate`` on static, left-padded batches.

A batch runs until its last sequence ends. Samples of one problem repeat its prompt, nothing is shared, so all three
accountings of compute agree on the prompt: ``flops_total`` equals ``flops_no_reuse``.
"""

from __future__ import annotations

import contextlib
import heapq
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from engine.backends.compiling import Compiled
from engine.backends.pinning import PINNED, is_refused, pinned
from engine.backends.rows import Grown, OnStep, Row
from engine.backends.stopping import Endings
from engine.backends.watch import Watch
from engine.decoding.requests import Extension
from engine.devices import available_bytes, does_not_fit, is_out_of_memory, release
from engine.measure.time import now, synchronise
from engine.models import LoadedModel
from engine.sampling import CounterSampler, uniforms
from spec.choices import Attention
from spec.errors import SpecError

MEMORY_CHECK_STEPS = 16
RESERVE_BYTES = 400_000_000


class TransformersBackend:
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
        self.loaded = loaded
        self._pinned = attention if attention in PINNED else None
        self._compiled = compiled
        self.kv_bytes_peak: int | None = None
        self._batch_size = batch_size
        self._kv_cache = kv_cache
        self._endings = Endings(loaded.tokenizer)
        self._takes_positions = "position_ids" in inspect.signature(loaded.model.forward).parameters
        self._waiting: list[tuple[tuple[int, ...], int, Row]] = []
        self._count = itertools.count()

    @property
    def wanting(self) -> bool:
        """See Backend."""
        return len(self._waiting) < self._batch_size

    @property
    def busy(self) -> bool:
        """See Backend."""
        return bool(self._waiting)

    @property
    def attention(self) -> str:
        """See Backend."""
        parts = [self.loaded.attention, "" if self._pinned is None else self._pinned.removeprefix("sdpa-")]
        return ", ".join(p for p in (*parts, "compiled" if self._compiled else "") if p)

    def forget(self) -> None:
        """See Backend."""
        self.kv_bytes_peak = None

    def close(self) -> None:
        """See Backend."""

    def submit(self, rows: Sequence[Row]) -> None:
        """See Backend."""
        for row in rows:
            heapq.heappush(self._waiting, (row.order, next(self._count), row))

    def step(self, on_step: OnStep) -> list[tuple[Row, Grown]]:
        """See Backend: one batch, from beginning to end."""
        size = min(self._batch_size, len(self._waiting))
        batch = [heapq.heappop(self._waiting)[2] for _ in range(size)]
        growing = [r for r in batch if r.limit > 0 or r.peek]
        grown = dict(zip(growing, self._extend(growing, on_step), strict=True)) if growing else {}
        return [(r, grown.get(r) or Grown(Extension("", (), "length"), now(), ())) for r in batch]

    def _extend(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        """Rows that cannot share a ``generate`` call (``_alike``) run one group after the other."""
        grown: list[Grown | None] = [None] * len(rows)
        for indices in _alike(rows, self._reach()):
            group = [rows[i] for i in indices]
            try:
                with pinned(self._pinned):
                    results = self._generate(group, on_step) if not group[0].peek else self._peek(group, on_step)
            except Exception as error:
                if is_out_of_memory(error):
                    raise self._too_large(len(group)) from None
                if self._pinned is not None and is_refused(error):
                    raise self._refused() from None
                raise
            for index, result in zip(indices, results, strict=True):
                grown[index] = result
        return [g for g in grown if g is not None]

    def _reach(self) -> int | None:
        """Columns that a batch must not grow beyond; None where nothing limits it."""
        limits = [] if self._takes_positions else [self.loaded.context]
        limits += [] if self._compiled is None else [self._compiled.longest]
        return min((n for n in limits if n is not None), default=None)

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        loaded = self.loaded
        started_s = now()
        ids, mask = pad_left([r.context for r in rows], loaded.tokenizer.pad_id, loaded.device)
        watch = Watch(rows, ids.shape[1], self._endings)
        watch.on_step = self._guarded(on_step, watch, rows)
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
        self._note_cache(output.past_key_values)
        return [self._grown(row, i, watch, started_s) for i, row in enumerate(rows)]

    def _sampler(self, rows: Sequence[Row], prompt_width: int, watch: Watch) -> LogitsProcessorList:
        chain = LogitsProcessorList([watch.listener()] if any(r.logprobs for r in rows) else [])
        sampling = rows[0].sampling
        if sampling is None:
            return chain
        numbers = uniforms([r.key for r in rows], [r.start for r in rows], max(r.limit for r in rows))
        if self._compiled is not None:
            numbers = self._compiled.padded(torch.from_numpy(numbers)).numpy()
        chain.append(CounterSampler(sampling, numbers, prompt_width, self.loaded.device))
        return chain

    def _grown(self, row: Row, index: int, watch: Watch, started_s: float) -> Grown:
        ids, times = watch.ids[index], watch.step_s
        extension = self._endings.extension(
            row,
            ids,
            watch.finish[index],
            logprobs=watch.logprobs(index) if row.logprobs else (),
            seconds=times[len(ids) - 1] - started_s,
        )
        # The last token is written and never read; without a cache each step reads everything again.
        read = len(row.context) + len(ids) - 1
        again = [(0, n) for n in range(len(row.context), read + 1)] if not self._kv_cache else [(0, read)]
        return Grown(extension, started_s, times[: len(ids)], again)

    @torch.inference_mode()
    def _peek(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        started_s = now()
        ids, mask = pad_left([r.context for r in rows], self.loaded.tokenizer.pad_id, self.loaded.device)
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self._takes_positions else {}
        output = self.loaded.model(input_ids=ids, attention_mask=mask, use_cache=False, **positions)
        scores = output.logits[:, -1].float().log_softmax(-1)
        found = scores.topk(min(max(r.peek for r in rows), scores.shape[-1]))
        tokens, values = found.indices.tolist(), found.values.tolist()
        on_step(len(rows))
        return [
            Grown(
                Extension("", (), "length"),
                started_s,
                (now(),),  # the work of one token, which the strategy chooses
                [(0, len(row.context))],
                choices=tuple(zip(tokens[i][: row.peek], values[i][: row.peek], strict=True)),
            )
            for i, row in enumerate(rows)
        ]

    def _refused(self) -> SpecError:
        return SpecError(
            f"PyTorch's {self._pinned} kernel does not take what {self.loaded.name} asks for on {self.loaded.device} "
            "(number format, head size or the mask of a padded batch); choose sdpa, which takes one that does.",
            field="runtime.attention",
        )

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

    ``context`` is given for a model that takes no positions from outside (see ``_positions_within``) and for a cache of
    a fixed size: rows that are cramped there run apart.
    """
    longest = max(r.limit for r in rows)
    groups: dict[tuple[object, int, bool], list[int]] = {}
    for index, row in enumerate(rows):
        cramped = context is not None and len(row.context) + longest > context
        groups.setdefault((row.sampling, row.limit if cramped else 0, row.peek > 0), []).append(index)
    return list(groups.values())
