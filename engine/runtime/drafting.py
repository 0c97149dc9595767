"""Speculative decoding: tokens are guessed ahead and verified in one pass (Leviathan et al. 2022, arXiv 2211.17192).

A guess is taken over with probability min(1, p/q), p the model's and q the drafter's; the first that is not is drawn
anew from what of p the drafter had too little of, so the text has the model's own distribution (section 2.3 and
appendix A.1 there). Greedily a guess is taken over where it is the model's own choice.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
import torch

from engine.measure.time import now
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK, BlockPool, Copies, OutOfBlocks, Table
from engine.runtime.runner import Runner
from engine.runtime.sampler import distribution
from engine.runtime.sequence import Sequence
from engine.sampling import draw, uniforms

Ends = Callable[[Sequence], bool]
"""Whether a sequence ends with its last token."""

# Guesses and verdicts draw from streams of their own: the numbers of the text stay those of plain sampling.
_GUESS, _VERDICT = 0x9E6C_63D0_876A_68DE, 0x5851_F42D_4C95_7F2D


class Drafter(Protocol):
    """Guesses the next tokens of sequences."""

    def propose(self, sequences: Seq[Sequence]) -> None:
        """Set each one's ``proposed``, at most as many as its draft allows and its limit leaves room for."""
        ...

    def beliefs(self, sequence: Sequence) -> torch.Tensor | None:
        """The drafter's probabilities [proposed, vocabulary]; None where it was certain of each guess."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        ...


def room(sequence: Sequence) -> int:
    """How many guesses make sense: what the draft allows, with the token that each pass gives anyway left out."""
    draft, row = sequence.row.draft, sequence.row
    assert draft is not None
    written = len(sequence.tokens) - len(row.context)
    return max(0, min(draft.tokens, row.limit - written - 1))


def verify(
    sequence: Sequence,
    proposed: list[int],
    logits: torch.Tensor,
    beliefs: torch.Tensor | None,
    own: list[int] | None = None,
) -> list[int]:
    """The tokens that a pass over the last token and the ``proposed`` ones gives: those taken over and one more.

    ``logits`` [proposed + 1, vocabulary] behind each of them; ``own``: the most likely token of each, where known.
    """
    sampling = sequence.row.sampling
    if sampling is None:
        own = logits.argmax(-1).tolist() if own is None else own
        kept = next((i for i, (a, b) in enumerate(zip(proposed, own, strict=False)) if a != b), len(proposed))
        return [*proposed[:kept], own[kept]]
    contexts = [sequence.tokens + proposed[:i] for i in range(len(proposed) + 1)]
    scores = distribution(logits, sampling, contexts)
    p = scores.softmax(-1, dtype=torch.float64)
    start = len(sequence.tokens) - len(sequence.row.context)
    verdicts = uniforms([sequence.row.key ^ _VERDICT], [sequence.row.start + start], max(1, len(proposed)))[0]
    # On a GPU each number that the host reads is waited for: all at once.
    which = torch.tensor(proposed, dtype=torch.int64, device=p.device)[:, None]
    mine = p[: len(proposed)].gather(1, which)[:, 0].tolist()
    theirs = [1.0] * len(proposed) if beliefs is None else beliefs.gather(1, which)[:, 0].tolist()
    for i, token in enumerate(proposed):
        if verdicts[i] * theirs[i] < mine[i]:
            continue
        if beliefs is None:
            rest = p[i].clone()
            rest[token] = 0.0
        else:
            rest = (p[i] - beliefs[i]).clamp_(min=0.0)
        return [*proposed[:i], _draw(rest.log(), sequence, start + i)]
    return [*proposed, _draw(scores[-1], sequence, start + len(proposed))]


def take_over(
    sequence: Sequence,
    proposed: list[int],
    logits: torch.Tensor,
    drafter: Drafter,
    ends: Ends,
    own: list[int] | None = None,
) -> int:
    """Extend a sequence by what ``verify`` gives, up to the token that ``ends`` it; how many tokens that is."""
    taken = verify(sequence, proposed, logits, drafter.beliefs(sequence), own)
    sequence.passes += 1
    sequence.drafted += len(proposed)
    before = len(sequence.tokens)
    for token in taken:
        sequence.tokens.append(token)
        sequence.token_s.append(now())
        if ends(sequence):
            break
    written = len(sequence.tokens) - before
    sequence.accepted += min(len(taken) - 1, written)
    # The pass stored keys and values of the tokens it confirmed; those of the others were work as well.
    processed = sequence.computed + len(proposed)
    sequence.computed = len(sequence.tokens) - 1
    if processed > sequence.computed:
        sequence.spans.append((sequence.computed, processed))
    return written


def _draw(scores: torch.Tensor, sequence: Sequence, index: int) -> int:
    uniform = torch.tensor([sequence.number(index)], dtype=torch.float64, device=scores.device)
    return int(draw(scores[None], uniform))


class LookupDrafter:
    """Guesses what followed the last tokens where they stood before (prompt-lookup decoding, Saxena 2023)."""

    def propose(self, sequences: Seq[Sequence]) -> None:
        """See Drafter."""
        for sequence in sequences:
            assert sequence.row.draft is not None
            sequence.proposed = _continued(sequence.tokens, sequence.row.draft.ngram)[: room(sequence)]

    def beliefs(self, sequence: Sequence) -> torch.Tensor | None:
        """See Drafter."""
        return None

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""


def _continued(tokens: list[int], ngram: int) -> list[int]:
    """What stands behind the last earlier place of the longest ending of ``tokens``, of ``ngram`` tokens at most."""
    for n in range(min(ngram, len(tokens) - 1), 0, -1):
        ending = tokens[-n:]
        for at in range(len(tokens) - n - 1, -1, -1):
            if tokens[at] == ending[0] and tokens[at : at + n] == ending:
                return tokens[at + n :]
    return []


class _State:
    """What the draft model knows of a sequence."""

    __slots__ = ("beliefs", "computed", "slot", "table")

    def __init__(self, table: Table, computed: int, slot: int) -> None:
        self.table = table
        self.computed = computed
        self.slot = slot
        self.beliefs: list[torch.Tensor] = []


class ModelDrafter:
    """Guesses with a smaller model of the same vocabulary, on a runner and blocks of its own.

    ``context``: the longest text it can read; it guesses nothing behind that.
    """

    def __init__(self, runner: Runner, pool: BlockPool, batch_size: int, context: int | None = None) -> None:
        self._runner = runner
        self._context = context
        self.pool = pool
        self._states: dict[Sequence, _State] = {}
        self._free = list(range(batch_size - 1, -1, -1))
        self._tables = np.zeros((batch_size, pool.count), dtype=np.int32)

    def propose(self, sequences: Seq[Sequence]) -> None:
        """See Drafter. A sequence for which it has no blocks left gets no guesses."""
        going = [s for s in sequences if self._room(s) > 0]
        for sequence in sequences:
            sequence.proposed = []
        for sequence in going:
            state = self._state(sequence)
            state.beliefs = []
            state.computed = min(state.computed, len(sequence.tokens) - 1)
        while going:
            going = self._guess([s for s in going if self._grown(s)])

    def beliefs(self, sequence: Sequence) -> torch.Tensor | None:
        """See Drafter."""
        found = self._states[sequence].beliefs
        return torch.stack(found) if found else None

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""
        state = self._states.pop(sequence, None)
        if state is not None:
            self.pool.release(state.table)
            self._free.append(state.slot)

    def _room(self, sequence: Sequence) -> int:
        """How many guesses make sense and can be made."""
        left = room(sequence)
        return left if self._context is None else min(left, self._context - len(sequence.tokens) + 1)

    def _state(self, sequence: Sequence) -> _State:
        found = self._states.get(sequence)
        if found is None:
            table, known = self.pool.find(sequence.tokens, len(sequence.tokens) - 1)
            found = self._states[sequence] = _State(table, known, self._free.pop())
        return found

    def _grown(self, sequence: Sequence) -> bool:
        state = self._states[sequence]
        copies: Copies = []
        try:
            self.pool.grow(state.table, state.computed, len(sequence.tokens) + len(sequence.proposed), copies)
        except OutOfBlocks:
            return False
        finally:
            if copies:
                self._runner.copy(copies)
        self._tables[state.slot, : len(state.table.blocks)] = state.table.blocks
        return True

    def _guess(self, going: list[Sequence]) -> list[Sequence]:
        """One more guess for each; those that may go on."""
        if not going:
            return []
        states = [self._states[s] for s in going]
        texts = [s.tokens + s.proposed for s in going]
        fed = [t[st.computed :] for t, st in zip(texts, states, strict=True)]
        logits = self._runner.logits(self._batch(states, fed))
        for sequence, state, part in zip(going, states, fed, strict=True):
            sequence.draft_spans.append((state.computed, state.computed + len(part)))
            state.computed += len(part)
            # What was guessed may be wrong and is for nobody else; the prompt is.
            self.pool.commit(state.table, sequence.tokens, min(state.computed, len(sequence.row.context)))
        likely = logits.argmax(-1).tolist() if any(s.row.sampling is None for s in going) else []
        for i, sequence in enumerate(going):
            greedy = sequence.row.sampling is None
            token = likely[i] if greedy else self._pick(sequence, states[i], logits[i : i + 1], texts[i])
            sequence.proposed.append(token)
        return [s for s in going if len(s.proposed) < self._room(s)]

    def _pick(self, sequence: Sequence, state: _State, logits: torch.Tensor, text: list[int]) -> int:
        row = sequence.row
        assert row.sampling is not None
        scores = distribution(logits, row.sampling, [text])
        state.beliefs.append(scores[0].softmax(-1, dtype=torch.float64))
        number = uniforms([row.key ^ _GUESS], [row.start + len(text) - len(row.context)], 1)[0]
        return int(draw(scores, torch.from_numpy(number).to(scores.device)))

    def _batch(self, states: list[_State], fed: list[list[int]]) -> Batch:
        tokens = np.array([t for part in fed for t in part], dtype=np.int32)
        positions = [
            p for st, part in zip(states, fed, strict=True) for p in range(st.computed, st.computed + len(part))
        ]
        slots = [st.slot for st, part in zip(states, fed, strict=True) for _ in part]
        ends = np.cumsum([len(part) for part in fed]) - 1
        width = -(-(max(positions) + 1) // BLOCK)
        tables = np.ascontiguousarray(self._tables[:, :width])
        return Batch(tokens, np.array(positions, np.int32), np.array(slots, np.int32), tables, ends.astype(np.int32))
