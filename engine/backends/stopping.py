"""When a sequence ends, and the clock of its tokens, inside transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import StoppingCriteria

from engine.backends.rows import OnStep, Row
from engine.measure.time import now
from engine.tokenizers import Tokenizer


class StopStrings:
    """Finds stop strings in text that grows token by token, wherever the tokens' borders are.

    Decoding every row at every step would cost as much as a small model's step, so only a token whose own text holds
    the last character of a stop string (or is part of a multi-byte character) has its surroundings decoded.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        self.strings = tuple(s for s in strings if s)
        self._tokenizer = tokenizer
        self._lasts = {s[-1] for s in self.strings}
        self._reach = max((len(s.encode()) for s in self.strings), default=0) + 4
        self._may_end: dict[int, bool] = {}

    def met(self, ids: Sequence[int]) -> bool:
        """Whether the last token of ``ids`` completes a stop string."""
        if not self.strings or not self._can_end(ids[-1]):
            return False
        tail = self._tokenizer.decode(ids[-self._reach :])
        return any(s in tail for s in self.strings)

    def cut(self, text: str) -> str:
        """``text`` before its first stop string; all of it where there is none."""
        return text[: min((text.find(s) for s in self.strings if s in text), default=len(text))]

    def _can_end(self, token: int) -> bool:
        if token not in self._may_end:
            text = self._tokenizer.decode([token])
            # A tokenizer may drop a space at the start of a text, so a last space cannot be looked for this way.
            spaced = any(c == " " for c in self._lasts)
            self._may_end[token] = spaced or "�" in text or any(c in text for c in self._lasts)
        return self._may_end[token]


class Watch(StoppingCriteria):
    """Ends each row at its own end, notes when each token came, and lets the engine speak between steps."""

    # Its presence makes generate() write padding behind a finished row; the ids themselves are judged here.
    eos_token_id = None

    def __init__(
        self, rows: Sequence[Row], prompt_width: int, tokenizer: Tokenizer, stops: dict[tuple[str, ...], StopStrings]
    ) -> None:
        self._rows = rows
        self._prompt_width = prompt_width
        self._stop_ids = tokenizer.stop_ids
        self._stops = [stops[r.stop] for r in rows]
        self._live = list(range(len(rows)))
        self.ids: list[list[int]] = [[] for _ in rows]
        self.finish = ["length"] * len(rows)
        self.step_s: list[float] = []
        self.on_step: OnStep = lambda tokens: None

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: object) -> torch.BoolTensor:
        """``input_ids`` [rows, length] with the step's tokens last; returns which rows have ended."""
        tokens = input_ids[:, -1].tolist()
        self.step_s.append(now())
        added = len(self._live)
        self._live = [row for row in self._live if not self._ends(row, tokens[row])]
        self.on_step(added)
        ended = torch.ones(len(self._rows), dtype=torch.bool)
        ended[self._live] = False
        return ended.to(input_ids.device)

    def _ends(self, row: int, token: int) -> bool:
        ids = self.ids[row]
        ids.append(token)
        if token in self._stop_ids or self._stops[row].met(ids):
            self.finish[row] = "stop"
            return True
        return len(ids) >= self._rows[row].limit
