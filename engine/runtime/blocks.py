"""Who owns which block of the KV cache, and where a prefix is found again. No tensors.

A block holds the keys and values of ``BLOCK`` tokens of one sequence, in all layers. Sequences share blocks by
reference count; a block that is shared or can be found again is never written, its next writer gets a copy. What a
sequence leaves behind stays findable until the space is needed, the longest unused first.

Prefixes are found in a tree of blocks: each full block hangs under the block before it by its own tokens, so a path
from the root spells a text, and two different texts never meet in one key. Parts count too: the last, open block of a
finished sequence, and the first tokens of a full one, are found by their longest common beginning and copied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 16
WORTH = 8  # tokens of a part of a block


class OutOfBlocks(Exception):
    """No block is free and none can be evicted: all are in use."""


class NoRoom(Exception):
    """One sequence alone needs more blocks than there are."""


class _Entry:
    """A findable block: ``tokens`` it holds (fewer than ``BLOCK``: an open one), under ``parent``."""

    __slots__ = ("block", "children", "open", "parent", "tokens")

    def __init__(self, block: int, parent: _Entry | None, tokens: tuple[int, ...]) -> None:
        self.block = block
        self.parent = parent
        self.tokens = tokens
        self.children: dict[tuple[int, ...], _Entry] = {}
        self.open: dict[tuple[int, ...], _Entry] = {}


@dataclass(slots=True)
class Table:
    """The blocks of one sequence, in order. ``entries``: its first blocks, as far as they can be found by others."""

    blocks: list[int] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)


Copies = list[tuple[int, int]]


class BlockPool:
    """Blocks 0 .. count - 1. ``shares``: whether prefixes are found again.

    ``in_use`` counts those that some sequence holds, ``peak`` the most there were. Methods that hand out blocks raise
    OutOfBlocks; what the table got until then it keeps.
    """

    def __init__(self, count: int, share: bool = True) -> None:
        self.count = count
        self.in_use = 0
        self.peak = 0
        self.shares = share
        self._free = list(range(count - 1, -1, -1))
        self._refs = [0] * count
        self._root = _Entry(-1, None, ())
        self._entry: dict[int, _Entry] = {}  # of findable blocks
        self._unused: OrderedDict[int, None] = OrderedDict()  # findable, held by nobody, longest unused first

    @property
    def available(self) -> int:
        """Blocks that could be handed out."""
        return len(self._free) + len(self._unused)

    def refs(self, block: int) -> int:
        """How many tables hold a block."""
        return self._refs[block]

    def is_findable(self, block: int) -> bool:
        """Whether a later sequence may find it."""
        return block in self._entry

    def clear(self) -> None:
        """Forget what nobody holds, and the peak."""
        for block in self._unused:
            self._forget(self._entry[block])
            self._free.append(block)
        self._unused.clear()
        self.peak = self.in_use

    def find(self, tokens: Sequence[int], limit: int, take_over: bool = True) -> tuple[Table, int]:
        """A table over the longest known prefix of ``tokens``, and its length, ``limit`` at most.

        The caller computes what comes after. The last block may be shared in part; ``grow`` copies it. ``take_over``:
        an open end that nobody else holds goes on where it is, so that others do not find it any more.
        """
        table = Table()
        if not self.shares:
            return table, 0
        at, length = self._root, 0
        while length + BLOCK <= limit:
            entry = at.children.get(tuple(tokens[length : length + BLOCK]))
            if entry is None:
                break
            self._hold(entry.block)
            table.blocks.append(entry.block)
            table.entries.append(entry)
            at, length = entry, length + BLOCK
        entry, common = self._closest(at, tokens[length : min(limit, length + BLOCK)])
        # A few tokens are computed sooner than a block is copied, unless they are all that is missing.
        if entry is not None and (common >= WORTH or length + common == limit):
            self._hold(entry.block)
            table.blocks.append(entry.block)
            if take_over and common == len(entry.tokens) < BLOCK and self._refs[entry.block] == 1:
                self._forget(entry)
            length += common
        return table, length

    def fork(self, table: Table) -> Table:
        """Another table over the same blocks."""
        for block in table.blocks:
            self._hold(block)
        return Table(list(table.blocks), list(table.entries))

    def grow(self, table: Table, start: int, end: int, copies: Copies) -> None:
        """Make positions ``start .. end - 1`` writable.

        (source, destination) of each block to copy before anything is written is added to ``copies``, whose order must
        be kept: a destination may be the source of a later one.
        """
        first = start // BLOCK
        if first < len(table.blocks) and start < end:
            block = table.blocks[first]
            if self._refs[block] > 1 or block in self._entry:
                mine = self._replace(table, first)
                if start % BLOCK:
                    copies.append((block, mine))
        while len(table.blocks) * BLOCK < end:
            table.blocks.append(self._take())

    def commit(self, table: Table, tokens: Sequence[int], length: int) -> bool:
        """Make the full blocks among the first ``length`` computed tokens findable.

        Where others computed the same before, their block takes the place of the table's own; True if any did.
        """
        if not self.shares:
            return False
        swapped = False
        while (done := len(table.entries)) < length // BLOCK:
            parent = table.entries[-1] if table.entries else self._root
            key = tuple(tokens[done * BLOCK : (done + 1) * BLOCK])
            entry, mine = parent.children.get(key), table.blocks[done]
            if entry is None:
                old = self._entry.get(mine)
                if old is not None:  # held as an open end of something shorter
                    self._forget(old)
                entry = _Entry(mine, parent, key)
                parent.children[key] = self._entry[mine] = entry
            elif entry.block != mine:
                self._hold(entry.block)
                table.blocks[done] = entry.block
                self._drop(mine)
                swapped = True
            table.entries.append(entry)
        return swapped

    def release(self, table: Table, tokens: Sequence[int] = (), length: int = 0) -> None:
        """Give up a table; what it computed, ``length`` tokens, stays findable as long as there is room."""
        if length:
            self.commit(table, tokens, length)
            self._leave_open(table, tokens, length)
        for block in reversed(table.blocks):  # its end is evicted before its beginning
            self._drop(block)
        table.blocks.clear()
        table.entries.clear()

    def trim(self, table: Table, length: int) -> None:
        """Give up the blocks behind the first ``length`` tokens."""
        keep = -(-length // BLOCK)
        while len(table.blocks) > keep:
            self._drop(table.blocks.pop())
        del table.entries[length // BLOCK :]

    def _leave_open(self, table: Table, tokens: Sequence[int], length: int) -> None:
        done = length // BLOCK
        rest = tuple(tokens[done * BLOCK : length])
        if not self.shares or not rest or len(table.entries) != done:
            return
        block = table.blocks[done]
        parent = table.entries[-1] if table.entries else self._root
        if self._refs[block] == 1 and block not in self._entry and rest not in parent.open:
            entry = _Entry(block, parent, rest)
            parent.open[rest] = self._entry[block] = entry

    def _closest(self, at: _Entry, tokens: Sequence[int]) -> tuple[_Entry | None, int]:
        """The block under ``at`` that begins most like ``tokens``, and how many they share."""
        best, most, better = None, 0, tuple(tokens[:1])
        for entries in (at.open, at.children) if better else ():
            for key, entry in entries.items():
                if key[: most + 1] == better:  # it shares more than the best one does
                    best, most = entry, _common(key, tokens)
                    if most == len(tokens):
                        return best, most
                    better = tuple(tokens[: most + 1])
        return best, most

    def _replace(self, table: Table, index: int) -> int:
        """A block of the table's own in place of a shared one; its content is the caller's affair."""
        block = self._take()
        self._drop(table.blocks[index])
        table.blocks[index] = block
        del table.entries[index:]
        return block

    def _take(self) -> int:
        if not self._free:
            self._evict()
        block = self._free.pop()
        self._refs[block] = 1
        self._count(1)
        return block

    def _evict(self) -> None:
        if not self._unused:
            raise OutOfBlocks
        block = next(iter(self._unused))
        self._forget(self._entry[block])
        del self._unused[block]
        self._free.append(block)

    def _hold(self, block: int) -> None:
        if not self._refs[block]:
            self._unused.pop(block, None)
            self._count(1)
        self._refs[block] += 1

    def _drop(self, block: int) -> None:
        self._refs[block] -= 1
        if self._refs[block]:
            return
        self._count(-1)
        if block in self._entry:
            self._unused[block] = None
        else:
            self._free.append(block)

    def _forget(self, entry: _Entry) -> None:
        parent = entry.parent
        assert parent is not None
        place = parent.children if len(entry.tokens) == BLOCK else parent.open
        del place[entry.tokens]
        del self._entry[entry.block]

    def _count(self, change: int) -> None:
        self.in_use += change
        self.peak = max(self.peak, self.in_use)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
