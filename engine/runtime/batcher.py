"""Continuous batching for one model: what each step processes, and what becomes of it.

Each step is one ragged batch: one token of every sequence that writes, and pieces of prompts as far as the step's
budget goes. When blocks run out, the sequence that came last is put back; what it computed stays findable as long as
there is room, and the rest is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from engine.backends.rows import Grown, OnStep, Row
from engine.backends.stopping import Endings
from engine.measure.time import now
from engine.runtime.admission import Admission, Started
from engine.runtime.batch import Batch
from engine.runtime.blocks import BlockPool, NoRoom, OutOfBlocks
from engine.runtime.drafting import Drafter, take_over
from engine.runtime.places import Work
from engine.runtime.plan import Plan
from engine.runtime.runner import ExitingRunner, Runner
from engine.runtime.running import Running
from engine.runtime.sampler import Chosen, choose
from engine.runtime.sequence import Sequence
from engine.runtime.steady import Steady

Ended = list[tuple[Row, Grown]]
AHEAD = 8  # steps


class Batcher:
    """Runs rows of one model. ``pool`` and the runner's cache have the same blocks."""

    def __init__(
        self, runner: Runner, pool: BlockPool, endings: Endings, plan: Plan, drafter: Drafter | None = None
    ) -> None:
        self.pool = pool
        self._runner = runner
        self._endings = endings
        self._plan = plan
        self._drafter = drafter
        self._running = Running(pool, plan.batch_size, plan.kv_cache)
        self._admission = Admission(pool, self._running, plan, self._new)
        self._steady: Steady | None = None
        self._ended: Ended = []
        self._written = 0

    # ---- the face

    @property
    def open(self) -> int:
        """How many more rows could be in the batch."""
        return self._running.open

    @property
    def wanting(self) -> bool:
        """Whether it could start more rows at once than it holds."""
        full = self._plan.static and bool(self._running)  # what came now would wait for the whole batch
        return not full and self._admission.queue.rows < self._running.open

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running) or bool(self._admission.queue)

    def submit(self, rows: Iterable[Row]) -> None:
        """Take rows over."""
        self._admission.submit(rows)

    def step(self, on_step: OnStep) -> Ended:
        """One forward pass; the rows that ended with it. Raises NoRoom and what ``on_step`` raises."""
        self._ended, self._written = [], 0
        for started in self._admission.admit():
            self._begin(started)
        running = self._running.sequences
        if self._drafter is not None:
            self._drafter.propose([s for s in running if s.row.draft is not None and s.decoding])
        if self._steady is not None and self._steady.lasts:
            self._write_all(self._steady)
        elif all(s.writing for s in running):
            self._write_first()
        else:
            for work in self._lay_out():
                self._process(work)
        on_step(self._written)
        return self._ended

    # ---- steps in which every sequence only writes its next token

    def _write_first(self) -> None:
        """The first step of a stretch of them."""
        running = self._running
        # Blocks for some steps, where there are plenty: of 32 sequences two need a new one at each step.
        ahead = AHEAD if self.pool.available > 2 * len(running.sequences) else 1
        for sequence in list(running.sequences):
            end = min(sequence.computed + ahead, sequence.most)
            if not running.fits(sequence, end) and sequence.slot >= 0:
                self._make_room(sequence, end)
        if running:
            self._copy()
            self._steady = Steady(list(running.sequences), running.places)
            self._write_all(self._steady)

    def _write_all(self, steady: Steady) -> None:
        """One step of a stretch in which nothing else happens, or its last one."""
        if steady.greedy:
            chosen = Chosen(self._runner.greedy(steady.batch), None)
        else:
            chosen = choose(self._runner.logits(steady.batch), steady.sequences, self._runner.samples)
        for sequence in steady.sequences:
            sequence.computed += 1
        self._extend(steady.sequences, chosen)
        if self._plan.kv_cache:
            steady.advance(chosen.tokens)
        else:
            self._steady = None

    # ---- all other steps

    def _lay_out(self) -> list[list[Work]]:
        """What the step processes, with blocks for all of it: writers first, then prompts as far as the budget goes.

        Single tokens stand before guesses and pieces of prompts, for some kernels attend them apart. Each list is a
        forward pass: those that may leave the model early go by themselves, and where the runner pads to the longest
        piece, those that write go before the others.
        """
        budget, work = self._plan.budget, list[Work]()
        for sequence in sorted(self._running.sequences, key=_left):
            if sequence.slot < 0 or budget <= 0:  # it was put back for one before it
                continue
            n = min(_piece(sequence), budget)
            tokens = sequence.tokens[sequence.computed : sequence.computed + n]
            end = sequence.computed + n == len(sequence.tokens)
            if end and sequence.proposed:
                tokens = tokens + sequence.proposed
            if self._make_room(sequence, sequence.computed + len(tokens)):
                exits = sequence.row.exit is not None and sequence.computed >= len(sequence.row.context)
                work.append(Work(sequence, tokens, end, exits))
                budget -= len(tokens)
        work = sorted((w for w in work if w.sequence.slot >= 0), key=lambda w: len(w.tokens) > 1)
        early, rest = [w for w in work if w.exits], [w for w in work if not w.exits]
        if self._runner.pads:
            parts = [[w for w in rest if len(w.tokens) == 1], [w for w in rest if len(w.tokens) > 1], early]
        else:
            parts = [rest, early]
        return [part for part in parts if part]

    def _process(self, work: list[Work]) -> None:
        self._copy()
        batch = self._running.places.batch(work)
        logits = self._exit(work, batch) if work[0].exits else self._runner.logits(batch)
        at, plain, rows = 0, list[Sequence](), list[int]()
        greedy = any(w.end and w.sequence.proposed and w.sequence.row.sampling is None for w in work)
        own = logits.argmax(-1).tolist() if greedy else []  # of all at once: each reading waits for a GPU
        for item in work:
            sequence, n = item.sequence, item.wanted
            sequence.computed += len(item.tokens) - len(sequence.proposed if item.end else ())
            if item.end and not (sequence.row.peek or sequence.row.replay or sequence.proposed):
                if sequence.row.exit is not None and not item.exits:
                    sequence.exits.append(self._exiting.layers)
                plain.append(sequence)
                rows.append(at)
            elif n:
                self._answer(item, logits[at : at + n], own[at : at + n])
            at += n
        if plain:
            self._go_on(plain, logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)])

    def _exit(self, work: list[Work], batch: Batch) -> torch.Tensor:
        rules = [w.sequence.row.exit for w in work]
        thresholds = np.array([r.threshold for r in rules if r is not None])
        first = rules[0]
        assert first is not None
        logits, layers = self._exiting.exiting(batch, thresholds, first.margin, first.first)
        for item, depth in zip(work, layers, strict=True):
            if item.end:  # else it is read again, and left where it did before
                item.sequence.exits.append(depth)
        return logits[torch.from_numpy(batch.wanted)]

    @property
    def _exiting(self) -> ExitingRunner:
        """The runner; only a run whose runner can leave a model early has rows that do."""
        return self._runner  # type: ignore[return-value]

    def _go_on(self, plain: list[Sequence], logits: torch.Tensor) -> None:
        """Sequences whose last token is computed, with the scores behind it; contexts among them are shared now."""
        waited = []
        for i, sequence in enumerate(plain):
            shares = self._admission.shares(sequence)
            if shares or len(sequence.tokens) == len(sequence.row.context):
                self._running.publish(sequence)
            if shares:
                self._admission.share(sequence)
                waited.append((sequence, logits[i].clone()))  # they outlive the buffer they lie in
        self._extend(plain, choose(logits, plain, self._runner.samples))
        for sequence, scores in waited:
            for started in self._admission.join(sequence, scores):
                self._begin(started)

    def _answer(self, work: Work, logits: torch.Tensor, own: list[int]) -> None:
        """What a row gets that is not simply extended by a token. ``own``: the likeliest tokens, if any is greedy."""
        sequence, row = work.sequence, work.sequence.row
        if row.peek:
            top = logits[0].float().log_softmax(-1).topk(min(row.peek, logits.shape[-1]))
            choices = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            self._running.publish(sequence)
            sequence.token_s.append(now())  # the work of one token, which the strategy chooses
            self._written += 1
            self._end(sequence, "length", choices=choices)
        elif row.replay:
            sequence.replayed += logits.argmax(-1).tolist()
            if work.end:
                self._end(sequence, "length", replayed=tuple(sequence.replayed))
        else:
            proposed, sequence.proposed = sequence.proposed, []
            assert self._drafter is not None
            self._written += take_over(sequence, proposed, logits, self._drafter, self._is_last, own or None)
            if sequence.finish:
                self._end(sequence, sequence.finish)

    # ---- blocks

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Blocks of its own for a sequence's next tokens, for which others are put back; False where it was itself."""
        while not self._running.fits(sequence, end):
            try:
                self._running.grow(sequence, end)
            except OutOfBlocks:
                last = self._running.last
                if len(self._running.sequences) > 1:
                    self._put_back(last)
                    if last is sequence:
                        return False
                elif not self._admission.queue.let_go(self.pool):
                    raise NoRoom from None
        return True

    def _put_back(self, sequence: Sequence) -> None:
        self._running.leave(sequence)
        sequence.proposed = []
        sequence.replayed = []  # its scores are read again from the first on
        if self._drafter is not None:
            self._drafter.forget(sequence)
        self._admission.queue.push(sequence)

    def _copy(self) -> None:
        places = self._running.places
        copies, places.copies = places.copies, []
        if copies:
            self._runner.copy(copies)

    # ---- beginning, writing and ending

    def _new(self, row: Row) -> Sequence:
        return Sequence(row, list(row.context), now(), len(row.context) + row.limit, self._endings.harmless(row))

    def _begin(self, started: Started) -> None:
        """The first token of sequences behind a context that another one computed."""
        sequences, logits = started
        for sequence in sequences:
            if sequence.row.exit is not None:
                sequence.exits.append(self._exiting.layers)
        self._extend(sequences, choose(logits, sequences, self._runner.samples))

    def _extend(self, sequences: list[Sequence], chosen: Chosen) -> None:
        """One more token for each of them."""
        if chosen.logprobs is not None:
            for sequence, logprob in zip(sequences, chosen.logprobs, strict=True):
                if sequence.row.logprobs:
                    sequence.logprobs.append(logprob)
        at, kept = now(), self._plan.kv_cache
        if self._drafter is not None:
            for sequence in sequences:
                sequence.passes += sequence.row.draft is not None
        self._written += len(sequences)
        for sequence, token in zip(sequences, chosen.tokens, strict=True):
            # This loop runs for every token of a run: what most of them need stands here, without a call.
            tokens = sequence.tokens
            tokens.append(token)
            sequence.token_s.append(at)
            goes_on = len(tokens) < sequence.most and token in sequence.harmless
            if not goes_on and self._is_last(sequence):
                self._end(sequence, sequence.finish or "length")
            elif not kept:
                sequence.restart()

    def _is_last(self, sequence: Sequence) -> bool:
        """Whether a sequence ends with its last token, and how (``finish``)."""
        sequence.finish = self._endings.of(sequence.row, sequence.tokens, len(sequence.row.context))
        return sequence.finish is not None

    def _end(self, sequence: Sequence, finish: str, **more: Any) -> None:
        row, ids = sequence.row, sequence.generated
        self._running.leave(sequence)
        if self._drafter is not None:
            self._drafter.forget(sequence)
        extension = self._endings.extension(
            row,
            ids,
            finish,
            logprobs=sequence.logprobs,
            seconds=sequence.token_s[-1] - sequence.started_s if sequence.token_s else 0.0,
            exits=sequence.exits,
        )
        self._ended.append((row, sequence.grown(extension, **more)))


def _left(sequence: Sequence) -> int:
    """Tokens of a sequence that are not computed: those that write have one and go first."""
    return len(sequence.tokens) - sequence.computed


def _piece(sequence: Sequence) -> int:
    """How many of them one pass may process: all, but one by one those behind the context that may leave early."""
    left, context = _left(sequence), len(sequence.row.context) - sequence.computed
    return left if sequence.row.exit is None else min(left, max(1, context))
