"""Continuous batching for one model: which sequences run, what each step processes, when one is put back.

Each step is one ragged batch: one token of every sequence that writes, and pieces of prompts as far as the step's
budget goes. A place that becomes free is filled at once (or, in static batches, when all are free). Rows with the same
context start as one: it is computed once, all draw their first token from its scores and share its blocks. When blocks
run out, the sequence that came last is put back; what it computed stays findable as long as there is room, and the
rest is computed again.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.backends.rows import Grown, OnStep, Row
from engine.backends.stopping import Endings
from engine.measure.time import now
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK, BlockPool, OutOfBlocks, Table
from engine.runtime.drafting import Drafter, verify
from engine.runtime.places import Places, Work
from engine.runtime.runner import ExitingRunner, Runner
from engine.runtime.sampler import Chosen, choose
from engine.runtime.sequence import Sequence
from engine.runtime.steady import Steady

Ended = list[tuple[Row, Grown]]
AHEAD = 8  # steps


class NoRoom(Exception):
    """One sequence alone needs more KV blocks than there are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How sequences are laid into batches.

    ``batch_size``: most at once. ``budget``: most tokens in a step, where a prompt can be cut. ``static``: a batch is
    filled once and runs until its last sequence ends. ``kv_cache`` False computes every sequence anew for each token.
    """

    batch_size: int
    budget: int
    static: bool = False
    kv_cache: bool = True


@dataclass(slots=True, eq=False)
class _Group:
    """Rows with one context. ``logits``: the scores behind it, and ``table`` its blocks, once they are computed.

    ``reserved``: places kept free for those of its rows that wait for that.
    """

    rows: list[Row]
    table: Table | None = None
    logits: torch.Tensor | None = None
    reserved: int = 0

    @property
    def order(self) -> tuple[int, ...]:
        """That of its first row."""
        return self.rows[0].order


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
        self._waiting: list[tuple[tuple[int, ...], int, _Group | Sequence]] = []
        self._rows_waiting = 0
        self._reserved = 0
        self._count = itertools.count()
        self._running: list[Sequence] = []
        self._places = Places(plan.batch_size)
        self._groups: dict[Sequence, _Group] = {}  # by the sequence that computes their context
        self._steady: Steady | None = None
        self._ended: Ended = []
        self._written = 0

    # ---- the face

    @property
    def wanting(self) -> bool:
        """Whether it could start more rows at once than it holds."""
        return self._rows_waiting < self._open

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    def submit(self, rows: Iterable[Row]) -> None:
        """Take rows over; neighbours with equal contexts become one group, where prefixes are shared."""
        for _, same in itertools.groupby(rows, key=lambda r: r.context):
            group: list[Row] = []
            for row in same:
                if row.peek or row.replay or not self.pool.shares:
                    self._wait(_Group([row]))
                else:
                    group.append(row)
            if group:
                self._wait(_Group(group))

    def step(self, on_step: OnStep) -> Ended:
        """One forward pass; the rows that ended with it. Raises NoRoom and what ``on_step`` raises."""
        self._ended, self._written = [], 0
        self._admit()
        if self._drafter is not None:
            self._drafter.propose([s for s in self._running if s.row.draft is not None and s.decoding])
        if self._steady is not None and self._steady.version == self._places.version and self._steady.left > 0:
            self._write_all(self._steady)
        else:
            self._settle()
            if all(s.writing for s in self._running):
                self._write_first()
            else:
                for work in self._lay_out():
                    self._process(work)
        on_step(self._written)
        return self._ended

    # ---- admission

    @property
    def _open(self) -> int:
        """Places that are neither taken nor kept for the rest of a group."""
        return self._places.free - self._reserved

    def _wait(self, what: _Group | Sequence) -> None:
        order = what.order if isinstance(what, _Group) else what.row.order
        heapq.heappush(self._waiting, (order, next(self._count), what))
        self._rows_waiting += _rows(what)

    def _admit(self) -> None:
        if self._plan.static and self._running:
            return
        while self._waiting and self._open > 0:
            what = self._waiting[0][2]
            if not self._has_room(what):  # it keeps its turn, and those behind it wait with it
                if self._running:
                    return
                if not self._let_go():
                    raise NoRoom
                continue
            heapq.heappop(self._waiting)
            self._rows_waiting -= _rows(what)
            if isinstance(what, Sequence):
                self._enter(what)
            elif what.logits is None:
                self._start(what)
            else:
                self._start_rest(what, self._open)

    def _has_room(self, what: _Group | Sequence) -> bool:
        if isinstance(what, Sequence):
            length = len(what.tokens)
        else:
            length = 0 if what.logits is not None else len(what.rows[0].context)
        return self.pool.available >= min(-(-(length + 1) // BLOCK), self.pool.count)

    def _start(self, group: _Group) -> None:
        """The first row of a group computes the context; places are kept for as many of the others as there are."""
        row = group.rows.pop(0)
        sequence = self._new(row)
        self._enter(sequence)
        if group.rows:
            group.reserved = min(len(group.rows), self._open)
            self._reserved += group.reserved
            self._groups[sequence] = group

    def _new(self, row: Row) -> Sequence:
        return Sequence(row, list(row.context), now(), len(row.context) + row.limit, self._endings.harmless(row))

    def _enter(self, sequence: Sequence) -> None:
        """Give a sequence a place, and what is known of its tokens; the last one is always computed, for its scores."""
        row, limit = sequence.row, len(sequence.tokens) - 1
        if row.replay:
            limit = min(limit, len(row.context) - row.replay)
        had = max((end for _, end in sequence.spans), default=0)
        sequence.table, found = self.pool.find(sequence.tokens, limit)
        sequence.computed = sequence.since = found
        sequence.shared = True
        # After it was put back, others may have computed what it had not come to yet.
        sequence.cached = sequence.cached + max(0, found - had) if had else found
        self._places.take(sequence)
        self._running.append(sequence)

    def _start_rest(self, group: _Group, most: int) -> None:
        """Up to ``most`` of the rows behind a context that is computed; the others wait with its scores."""
        assert group.logits is not None
        assert group.table is not None
        self._reserved -= group.reserved
        group.reserved = 0
        sequences = []
        for row in group.rows[:most]:
            sequence = self._new(row)
            sequence.table = self.pool.fork(group.table)
            sequence.computed = sequence.since = sequence.cached = len(row.context)
            if row.exit is not None:
                sequence.exits.append(self._exiting.layers)
            self._places.take(sequence)
            self._running.append(sequence)
            sequences.append(sequence)
        del group.rows[:most]
        if group.rows:
            self._wait(group)
        else:
            self.pool.release(group.table)
        if sequences:
            self._extend(sequences, choose(group.logits.expand(len(sequences), -1), sequences))

    # ---- one step

    def _write_first(self) -> None:
        """A step in which every sequence only writes its next token."""
        # Blocks for some steps, where there are plenty: of 32 sequences two need a new one at each step.
        ahead = AHEAD if self.pool.available > 2 * len(self._running) else 1
        for sequence in list(self._running):
            end = min(sequence.computed + ahead, sequence.most)
            if sequence.slot >= 0 and (sequence.shared or end > len(sequence.table.blocks) * BLOCK):
                self._make_room(sequence, end)
        if self._running:
            self._copy()
            self._steady = Steady(list(self._running), self._places)
            self._write_all(self._steady)

    def _write_all(self, steady: Steady) -> None:
        """One step of a stretch in which nothing else happens, or its last one."""
        logits = self._runner.logits(steady.batch())
        chosen = choose(logits, steady.sequences)
        if chosen.logprobs is None and steady.left > 1 and self._plan.kv_cache and steady.harmless(chosen.tokens):
            self._written += len(chosen.tokens)
            steady.write(chosen.tokens, now())
        else:
            self._steady = None
            for sequence in steady.sequences:
                sequence.computed = len(sequence.tokens)
            self._extend(steady.sequences, chosen)

    def _settle(self) -> None:
        """What follows may be another step than the last ones were."""
        if self._steady is not None:
            self._steady.settle()
            self._steady = None

    def _lay_out(self) -> list[list[Work]]:
        """What the step processes, with blocks for all of it: writers first, then prompts as far as the budget goes.

        Two lists at most, a forward pass each: those that may leave the model early go by themselves.
        """
        budget, work = self._plan.budget, list[Work]()
        for sequence in sorted(self._running, key=_left):
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
        work = [w for w in work if w.sequence.slot >= 0]
        early = [w for w in work if w.exits]
        return [part for part in ([w for w in work if not w.exits] if early else work, early) if part]

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Blocks of its own for a sequence's next tokens, for which others are put back; False where it was itself."""
        table = sequence.table
        if not sequence.shared and end <= len(table.blocks) * BLOCK:
            return True
        while True:
            try:
                self.pool.grow(table, sequence.computed, end, self._places.copies)
                break
            except OutOfBlocks:
                last = max(self._running, key=lambda s: (s.row.order, s.started_s))
                if len(self._running) > 1:
                    self._put_back(last)
                    if last is sequence:
                        return False
                elif not self._let_go():
                    raise NoRoom from None
        sequence.shared = False
        self._places.show(sequence)
        return True

    def _put_back(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.proposed = []
        sequence.replayed = []  # its scores are read again from the first on
        if self._drafter is not None:
            self._drafter.forget(sequence)
        self._wait(sequence)

    def _let_go(self) -> bool:
        """Give up the contexts that waiting rows share, so that one is computed anew; False where there are none."""
        held = [w for _, _, w in self._waiting if isinstance(w, _Group) and w.table is not None]
        for group in held:
            context = group.rows[0].context
            self.pool.release(group.table or Table(), context, len(context))
            group.table = group.logits = None
        return bool(held)

    def _process(self, work: list[Work]) -> None:
        self._copy()
        batch = self._places.batch(work)
        if work[0].exits:
            logits = self._exit(work, batch)
        else:
            logits = self._runner.logits(batch)
        at, plain, rows = 0, list[Sequence](), list[int]()
        for item in work:
            sequence, n = item.sequence, item.wanted
            sequence.computed += len(item.tokens) - len(sequence.proposed if item.end else ())
            if item.end and not (sequence.row.peek or sequence.row.replay or sequence.proposed):
                if sequence.row.exit is not None and not item.exits:
                    sequence.exits.append(self._exiting.layers)
                plain.append(sequence)
                rows.append(at)
            elif n:
                self._answer(item, logits[at : at + n])
            at += n
        for sequence in plain:
            if sequence in self._groups or len(sequence.tokens) == len(sequence.row.context):
                self._behind_context(sequence)
        if plain:
            chosen = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
            # A group's scores outlive the buffer they lie in.
            groups = [(self._groups.pop(s), i) for i, s in enumerate(plain) if s in self._groups]
            for group, i in groups:
                group.logits = chosen[i].clone()
            self._extend(plain, choose(chosen, plain))
            for group, _ in groups:
                self._start_rest(group, group.reserved)

    def _copy(self) -> None:
        copies, self._places.copies = self._places.copies, []
        if copies:
            self._runner.copy(copies)

    def _behind_context(self, sequence: Sequence) -> None:
        """A context is computed: others may find it, and the rest of its group shares its blocks."""
        if sequence.keeps_cache and self.pool.commit(sequence.table, sequence.tokens, sequence.computed):
            self._places.show(sequence)
        if sequence in self._groups:
            self._groups[sequence].table = self.pool.fork(sequence.table)
            sequence.shared = True

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

    def _answer(self, work: Work, logits: torch.Tensor) -> None:
        """What a row gets that is not simply extended by a token."""
        sequence, row = work.sequence, work.sequence.row
        if row.peek:
            top = logits[0].float().log_softmax(-1).topk(row.peek)
            choices = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            self._behind_context(sequence)
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
            taken = verify(sequence, proposed, logits, self._drafter.beliefs(sequence))
            sequence.passes += 1
            sequence.drafted += len(proposed)
            before = len(sequence.tokens)
            for token in taken:
                sequence.tokens.append(token)
                sequence.token_s.append(now())
                self._written += 1
                if self._is_last(sequence):
                    break
            sequence.accepted += min(len(taken) - 1, len(sequence.tokens) - before)
            # The pass stored keys and values of the tokens it confirmed; those of the others were work as well.
            processed = sequence.computed + len(proposed)
            sequence.computed = len(sequence.tokens) - 1
            if processed > sequence.computed:
                sequence.spans.append((sequence.computed, processed))
            if sequence.finish:
                self._end(sequence, sequence.finish)

    # ---- writing and ending

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
            if len(tokens) < sequence.most and token in sequence.harmless:
                if not kept:
                    sequence.restart()
            elif self._is_last(sequence):
                self._end(sequence, sequence.finish or "length")
            elif not kept:
                sequence.restart()

    def _is_last(self, sequence: Sequence) -> bool:
        """Whether a sequence ends with its last token, and how (``finish``)."""
        sequence.finish = self._endings.of(sequence.row, sequence.tokens, len(sequence.row.context))
        return sequence.finish is not None

    def _end(self, sequence: Sequence, finish: str, **more: Any) -> None:
        row, ids = sequence.row, sequence.generated
        self._leave(sequence)
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

    def _leave(self, sequence: Sequence) -> None:
        """Free its place and its blocks; what it computed stays findable."""
        sequence.close_span()
        whole = sequence.keeps_cache and self._plan.kv_cache
        length = sequence.computed if whole else min(sequence.computed, len(sequence.row.context))
        self.pool.release(sequence.table, sequence.tokens, length if self._plan.kv_cache else 0)
        self._places.give_back(sequence)
        self._running.remove(sequence)


def _rows(what: _Group | Sequence) -> int:
    return len(what.rows) if isinstance(what, _Group) else 1


def _left(sequence: Sequence) -> int:
    """Tokens of a sequence that are not computed: those that write have one and go first."""
    return len(sequence.tokens) - sequence.computed


def _piece(sequence: Sequence) -> int:
    """How many of them one pass may process: all, but one by one those behind the context that may leave early."""
    left, context = _left(sequence), len(sequence.row.context) - sequence.computed
    return left if sequence.row.exit is None else min(left, max(1, context))
