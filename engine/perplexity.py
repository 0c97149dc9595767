"""How well a model predicts a text: negative log-likelihood over a sliding window.

Each forward pass reads ``window`` tokens, and only those are scored that no earlier pass has scored, so every token but
the first window's has at least ``window - stride`` tokens of context. A text that fits in one window is scored
exactly as by one plain forward pass. A text without a begin token leaves its first token unscored, for nothing
predicts it, and that token's bytes are left out too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.devices import available_bytes, does_not_fit, is_out_of_memory, release
from engine.measure.summary import TextScore
from engine.models import LoadedModel
from spec.errors import InputError

WINDOW = 1024
LOGITS_BYTES = 512_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """One forward pass: tokens ``start .. end - 1`` are read, those from ``first`` on are scored."""

    start: int
    first: int
    end: int


def spans(tokens: int, window: int, stride: int) -> list[Span]:
    """The passes over a text of ``tokens`` tokens; each token from the second on is scored exactly once.

    >>> spans(10, window=6, stride=3)
    [Span(start=0, first=1, end=6), Span(start=3, first=6, end=9), Span(start=6, first=9, end=10)]
    """
    found, scored, start = [], 1, 0
    while scored < tokens:
        end = min(start + window, tokens)
        found.append(Span(start, scored, end))
        scored, start = end, start + stride
    return found


class TextScorer:
    """Scores one text with one model. ``passes`` are known beforehand, so that progress has a total.

    Raises InputError for a text that is too short to score.
    """

    def __init__(self, loaded: LoadedModel, text: str, batch_size: int, window: int | None = None) -> None:
        self._loaded = loaded
        self._text = text
        self._ids = loaded.tokenizer.encode(text)
        if len(self._ids) < 2:
            raise InputError("The text is too short to score; it must have at least two tokens.")
        window = window or min(WINDOW, loaded.context or WINDOW)
        self.passes = spans(len(self._ids), window, max(1, window // 2))
        assert loaded.sizes is not None
        self._rows = max(1, min(batch_size, LOGITS_BYTES // (4 * window * max(1, loaded.sizes.vocab))))

    def score(self, on_batch: Callable[[int, int], None]) -> TextScore:
        """Score the text. ``on_batch(passes, tokens)`` is called after each batch and may raise Cancelled.

        Raises DoesNotFitError.
        """
        total = 0.0
        for at in range(0, len(self.passes), self._rows):
            batch = self.passes[at : at + self._rows]
            total += _guarded(self._loaded, self._ids, batch)
            on_batch(len(batch), sum(s.end - s.first for s in batch))
        lead = self._loaded.tokenizer.decode(self._ids[:1])  # empty for a begin token
        scored_bytes = len(self._text.encode()) - len(lead.encode())
        return TextScore(total, len(self._ids) - 1, scored_bytes, [s.end - s.start for s in self.passes])

    def warm_up(self) -> None:
        """One unmeasured batch of the first batch's shape."""
        _guarded(self._loaded, self._ids, self.passes[: self._rows])


def _guarded(loaded: LoadedModel, ids: Sequence[int], batch: Sequence[Span]) -> float:
    try:
        return _nll(loaded, ids, batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release(loaded.device)
        what, free = f"{len(batch)} windows of text in {loaded.name}", available_bytes(loaded.device)
        raise does_not_fit(what, None, free, loaded.device, "choose a smaller batch size or model.") from None


@torch.inference_mode()
def _nll(loaded: LoadedModel, ids: Sequence[int], batch: Sequence[Span]) -> float:
    """Summed negative log-likelihood, in nats, of the tokens that these passes score."""
    width = max(s.end - s.start for s in batch)
    rows = [list(ids[s.start : s.end]) for s in batch]
    read = torch.tensor([r + [loaded.tokenizer.pad_id] * (width - len(r)) for r in rows]).to(loaded.device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]).to(loaded.device)
    logits = loaded.model(input_ids=read, attention_mask=mask, use_cache=False).logits
    total = 0.0
    for row, span in zip(range(len(batch)), batch, strict=True):
        first, last = span.first - span.start, span.end - span.start
        log_p = logits[row, first - 1 : last - 1].float().log_softmax(-1)
        total -= log_p.gather(1, read[row, first:last, None]).sum(dtype=torch.float64).item()
    return total
