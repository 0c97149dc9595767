"""Reward models on our runtime: what solutions have in common is read once, and no step is read twice."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch

from engine.devices import available_bytes, does_not_fit, is_out_of_memory, release
from engine.reward_kinds import Laid, Wanted, read, scores, wanted
from engine.rewards import RewardModel, Scored
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK, BlockPool, OutOfBlocks, Table
from engine.runtime.places import flatten
from engine.runtime.support import runner_for

REMEMBERED = 200_000  # scores of steps
SHARE = 0.2  # of the free memory may become the reward model's KV cache


@dataclass(slots=True, eq=False)
class _Text:
    """A distinct text of one call: what of it is known and what is being read.

    ``computed``: tokens found in the cache; ``end``: tokens to be read in all.
    """

    laid: Laid
    values: list[float] = field(default_factory=list)
    wanted: Wanted | None = None
    table: Table = field(default_factory=Table)
    computed: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)


class RuntimeJudge:
    """See ``engine.scheduler.Judge``.

    ``batch_size`` solutions of ``longest`` tokens each find room in its cache, where memory allows; a pass reads at
    most ``budget`` tokens, or one solution. ``sole``: nobody else runs the model until ``close``. Raises Unsupported
    where the runtime cannot run the trunk, DoesNotFitError.
    """

    def __init__(
        self, reward: RewardModel, batch_size: int, longest: int, budget: int, share: bool = True, sole: bool = False
    ) -> None:
        self._reward = reward
        self._budget = budget
        self._share = share
        self._runner = runner_for(reward.model, reward.device, sole=sole)
        one = -(-min(longest, reward.context or longest) // BLOCK) + 1
        fitting = int(available_bytes(reward.device) * SHARE) // self._runner.block_bytes
        if fitting < one:
            self.close()
            raise self._too_small(f"The KV cache of one solution in {reward.name}", one * self._runner.block_bytes)
        self._pool = BlockPool(min(fitting, 2 * one * batch_size), share=share)
        try:
            self._runner.allocate(self._pool.count)
        except BaseException:
            self.close()
            raise
        self._known: dict[bytes, float] = {}

    @property
    def kv_bytes_peak(self) -> int:
        """Bytes of the blocks that were held at once."""
        return self._pool.peak * self._runner.block_bytes

    def forget(self) -> None:
        """See Judge."""
        self._known.clear()
        self._pool.clear()

    def close(self) -> None:
        """See Judge."""
        self._runner.close()

    def _too_small(self, what: str, size: int | None = None) -> Exception:
        device = self._reward.device
        return does_not_fit(what, size, available_bytes(device), device, "lower task.max_new_tokens or the batch size.")

    def score(self, items: list[tuple[str, str]], on_step: Callable[[int], None]) -> list[Scored]:
        """See Judge."""
        laid = [self._reward.kind.lay_out(prompt, text) for prompt, text in items]
        texts: dict[tuple[int, ...], _Text] = {}
        mine = [texts.setdefault(tuple(one.ids), _Text(one)) for one in laid]
        fresh = [t for t in texts.values() if self._look_up(t)]
        if self._share:
            self._read_prompts(fresh, on_step)
        waiting = iter(fresh)
        batch: list[_Text] = []
        for text in waiting:
            if batch and (self._tokens(batch) + self._left(text) > self._budget or not self._place(text)):
                self._read(batch, on_step)
                batch = []
            if not text.table.blocks and not self._place(text):
                raise self._too_small(f"The KV cache of a solution of {text.laid.end:,} tokens in {self._reward.name}")
            batch.append(text)
        if batch:
            self._read(batch, on_step)
        return self._results(mine)

    def _results(self, mine: Iterable[_Text]) -> list[Scored]:
        """One for each item; of equal texts the first one is charged."""
        found = []
        for text in mine:
            spans, text.spans = tuple(text.spans), []
            steps = scores(self._reward.kind, text.values)
            found.append(Scored(steps, text.laid.end, text.laid.cut, spans))
        return found

    # ---- what is known

    def _look_up(self, text: _Text) -> bool:
        """Take over the scores that are known; whether some are not."""
        for place in text.laid.places:
            value = self._known.get(_key(text.laid.ids, place + 1)) if self._share else None
            if value is None:
                break
            text.values.append(value)
        text.wanted = wanted(self._reward.kind, text.laid, text.values)
        return bool(text.wanted.places)

    def _note(self, text: _Text, values: list[float]) -> None:
        assert text.wanted is not None
        if len(self._known) > REMEMBERED:
            self._known.clear()
        for place, value in zip(text.wanted.places, values, strict=True):
            self._known[_key(text.laid.ids, place + 1)] = value
        text.values += values

    # ---- reading

    def _left(self, text: _Text) -> int:
        """Tokens of a text that its pass reads, if nothing of it is found computed but what is known."""
        assert text.wanted is not None
        return text.laid.end - text.wanted.positions[0]

    def _tokens(self, batch: list[_Text]) -> int:
        return sum(t.laid.end - t.computed for t in batch)

    def _place(self, text: _Text) -> bool:
        """Blocks for a text; False where there are none left."""
        assert text.wanted is not None
        ids, end = text.laid.ids, text.laid.end
        # Neighbours go on from the same end, so it stays where it is and each takes a copy.
        text.table, text.computed = self._pool.find(ids, min(text.wanted.positions[0], end - 1), take_over=False)
        copies: list[tuple[int, int]] = []
        try:
            self._pool.grow(text.table, text.computed, end, copies)
        except OutOfBlocks:
            self._pool.release(text.table)
            return False
        finally:
            if copies:
                self._runner.copy(copies)
        return True

    def _read_prompts(self, texts: list[_Text], on_step: Callable[[int], None]) -> None:
        """Read once what the solutions of one problem have in common, before they are read side by side."""
        groups: dict[tuple[int, ...], list[_Text]] = {}
        for text in texts:
            groups.setdefault(tuple(text.laid.ids[: text.laid.start]), []).append(text)
        batch: list[_Text] = []
        for prompt, some in groups.items():
            if len(some) < 2 or len(prompt) < 2 or some[0].values:
                continue
            first = _Text(Laid(list(prompt), 0, [len(prompt) - 1], False), wanted=Wanted([len(prompt)], []))
            if not self._place(first):
                break
            if first.computed >= len(prompt) - 1:  # it is there already
                self._pool.release(first.table, prompt, first.computed)
                continue
            some[0].spans.append((first.computed, len(prompt)))
            batch.append(first)
            if self._tokens(batch) >= self._budget:
                self._pass(batch, on_step)
                batch = []
        if batch:
            self._pass(batch, on_step)

    def _read(self, batch: list[_Text], on_step: Callable[[int], None]) -> None:
        """One pass over texts that have their blocks."""
        states = self._pass(batch, on_step)
        some = [w for t in batch if (w := t.wanted) is not None]
        parts = torch.split(states, [len(w.positions) for w in some])
        with torch.inference_mode():
            found = read(self._reward.kind, [t.laid for t in batch], some, parts)
        for text, values in zip(batch, found, strict=True):
            text.spans.append((text.computed, text.laid.end))
            self._note(text, values)

    def _pass(self, batch: list[_Text], on_step: Callable[[int], None]) -> torch.Tensor:
        """The states at the wanted positions of all texts; afterwards what was read can be found."""
        on_step(0)
        try:
            states = self._runner.states(self._batch(batch))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release(self._reward.device)
            raise self._too_small(f"{len(batch)} solutions in {self._reward.name} at once") from None
        for text in batch:
            self._pool.release(text.table, text.laid.ids, text.laid.end)
        return states

    def _batch(self, batch: list[_Text]) -> Batch:
        parts = [t.laid.ids[t.computed : t.laid.end] for t in batch]
        starts = [t.computed for t in batch]
        width = max(len(t.table.blocks) for t in batch)
        tables = np.zeros((len(batch), width), dtype=np.int32)
        before, chosen = 0, list[int]()
        for i, text in enumerate(batch):
            tables[i, : len(text.table.blocks)] = text.table.blocks
            assert text.wanted is not None
            chosen += [before + p - text.computed for p in text.wanted.positions if p < text.laid.end]
            before += len(parts[i])
        return flatten(parts, starts, list(range(len(batch))), tables, np.array(chosen, dtype=np.int32))


def _key(ids: list[int], end: int) -> bytes:
    """Names the text of the first ``end`` tokens."""
    return blake2b(array("q", ids[:end]).tobytes(), digest_size=16).digest()
