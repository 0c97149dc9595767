"""Watches transformers' ``generate`` from inside: when each row ends, when its tokens came, how likely they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria

from engine.backends.rows import OnStep, Row
from engine.backends.stopping import Endings
from engine.measure.time import now


class Watch(StoppingCriteria):
    """Ends each row at its own end, notes when each token came, and lets the engine speak between steps."""

    # Its presence makes generate() write padding behind a finished row; the ids themselves are judged here.
    eos_token_id = None

    def __init__(self, rows: Sequence[Row], prompt_width: int, endings: Endings) -> None:
        self._rows = rows
        self._prompt_width = prompt_width
        self._endings = endings
        self._live = list(range(len(rows)))
        self.ids: list[list[int]] = [[] for _ in rows]
        self.finish = ["length"] * len(rows)
        self.step_s: list[float] = []
        self.on_step: OnStep = lambda tokens: None
        self._listener: _Listener | None = None
        self._logprobs: list[list[float]] = []

    def listener(self) -> LogitsProcessor:
        """Put before all other processors it hears the model's own distribution, for ``logprobs``."""
        self._listener = _Listener()
        return self._listener

    def logprobs(self, row: int) -> list[float]:
        """Log-probability of each token of a row; needs the ``listener``."""
        return [step[row] for step in self._logprobs[: len(self.ids[row])]]

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: object) -> torch.BoolTensor:
        """``input_ids`` [rows, length] with the step's tokens last; returns which rows have ended."""
        tokens = input_ids[:, -1].tolist()
        self.step_s.append(now())
        if self._listener is not None:
            self._logprobs.append(self._listener.heard.gather(1, input_ids[:, -1:])[:, 0].tolist())
        added = len(self._live)
        self._live = [row for row in self._live if not self._ends(row, tokens[row])]
        self.on_step(added)
        ended = torch.ones(len(input_ids), dtype=torch.bool)  # rows that only fill up the batch end at once
        ended[self._live] = False
        return ended.to(input_ids.device)

    def _ends(self, row: int, token: int) -> bool:
        self.ids[row].append(token)
        finish = self._endings.of(self._rows[row], self.ids[row])
        if finish is not None:
            self.finish[row] = finish
        return finish is not None


class _Listener(LogitsProcessor):
    """Keeps the log-probabilities [rows, vocabulary] of the step at hand."""

    heard: torch.Tensor

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.heard = scores.float().log_softmax(-1)
        return scores
