"""Static, left-padded batches: what back ends have in common that fill a batch once and run it until its last row ends.

Samples of one problem repeat its prompt, nothing is shared, so all three accountings of compute agree on the prompt:
``flops_total`` equals ``flops_no_reuse``.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from transformers import LogitsProcessorList

from engine.backends.rows import Grown, OnStep, Row
from engine.backends.stopping import Endings
from engine.backends.watch import Watch
from engine.decoding.requests import Extension
from engine.devices import available_bytes, does_not_fit, is_out_of_memory, release
from engine.measure.time import now
from engine.models import LoadedModel
from engine.sampling import CounterSampler, uniforms

MEMORY_CHECK_STEPS = 16
RESERVE_BYTES = 400_000_000


class StaticBatches(ABC):
    """Executes batches of one loaded model; see Backend. A subclass generates, and scores what may come next."""

    goes_on = False

    def __init__(self, loaded: LoadedModel, batch_size: int, kv_cache: bool = True) -> None:
        self.loaded = loaded
        self.kv_bytes_peak: int | None = None
        self._batch_size = batch_size
        self._kv_cache = kv_cache
        self._endings = Endings(loaded.tokenizer)
        self._waiting: list[tuple[tuple[int, ...], int, Row]] = []
        self._count = itertools.count()

    @property
    @abstractmethod
    def attention(self) -> str:
        """See Backend."""

    @property
    def wanting(self) -> bool:
        """See Backend."""
        return len(self._waiting) < self._batch_size

    @property
    def busy(self) -> bool:
        """See Backend."""
        return bool(self._waiting)

    def forget(self) -> None:
        """See Backend."""
        self.kv_bytes_peak = None

    def close(self) -> None:  # noqa: B027  nothing is held that the model's own end does not give back
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

    @abstractmethod
    def _generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        """What becomes of rows with the same sampling, in one batch."""

    @abstractmethod
    def _scores(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] of the token behind the last column of ``ids`` [rows, width]."""

    def _reach(self) -> int | None:
        """Columns that a batch must not grow beyond; None where nothing limits it."""
        return None

    def _inside(self) -> AbstractContextManager[None]:
        """What a group of rows runs in."""
        return contextlib.nullcontext()

    def _explained(self, error: Exception) -> Exception | None:
        """An error of the group's in words; None for one that is raised as it is."""
        return None

    def _extend(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        """Rows that cannot share a batch (``_alike``) run one group after the other."""
        grown: list[Grown | None] = [None] * len(rows)
        for indices in _alike(rows, self._reach()):
            group = [rows[i] for i in indices]
            try:
                with self._inside():
                    results = self._generate(group, on_step) if not group[0].peek else self._peek(group, on_step)
            except Exception as error:
                if is_out_of_memory(error):
                    raise self._too_large(len(group)) from None
                if (said := self._explained(error)) is not None:
                    raise said from None
                raise
            for index, result in zip(indices, results, strict=True):
                grown[index] = result
        return [g for g in grown if g is not None]

    @torch.inference_mode()
    def _peek(self, rows: Sequence[Row], on_step: OnStep) -> list[Grown]:
        started_s = now()
        ids, mask = pad_left([r.context for r in rows], self.loaded.tokenizer.pad_id, self.loaded.device)
        scores = self._scores(ids, mask).float().log_softmax(-1)
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

    def _watched(self, rows: Sequence[Row], prompt_width: int, on_step: OnStep) -> Watch:
        """A watch over a batch that begins; ``on_step`` is called through it."""
        watch = Watch(rows, prompt_width, self._endings)
        watch.on_step = self._guarded(on_step, watch, rows)
        return watch

    def _sampler(self, rows: Sequence[Row], prompt_width: int, watch: Watch) -> LogitsProcessorList:
        """What turns the model's scores into those whose largest is the next token."""
        chain = LogitsProcessorList([watch.listener()] if any(r.logprobs for r in rows) else [])
        sampling = rows[0].sampling
        if sampling is not None:
            numbers = uniforms([r.key for r in rows], [r.start for r in rows], max(r.limit for r in rows))
            numbers = self._filled(torch.from_numpy(numbers)).numpy()
            chain.append(CounterSampler(sampling, numbers, prompt_width, self.loaded.device))
        return chain

    def _filled(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` [n, width] as many as a batch has."""
        return rows

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

    def _note_cache(self, held: int | None) -> None:
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


def _alike(rows: Sequence[Row], context: int | None) -> list[list[int]]:
    """Indices of rows that may run in one batch: the same sampling, and with a ``context``, none pushed past it.

    ``context`` is given for a model that takes no positions from outside, and for a cache of a fixed size: rows that
    are cramped there run apart.
    """
    longest = max(r.limit for r in rows)
    groups: dict[tuple[object, int, bool], list[int]] = {}
    for index, row in enumerate(rows):
        cramped = context is not None and len(row.context) + longest > context
        groups.setdefault((row.sampling, row.limit if cramped else 0, row.peek > 0), []).append(index)
    return list(groups.values())
