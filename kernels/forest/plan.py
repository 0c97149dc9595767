"""Which keys are read together: the block tables of a step as a forest, cut into work of about equal size.

Sequences whose tables begin alike (samples of one prompt, branches of a search, problems behind one system prompt) are
the leaves of a tree. Each of its edges is a range of keys that all sequences below it share: a segment, whose keys are
read once for all of them (Hydragen, Juravsky et al. 2024, arXiv 2402.05099; DeFT, Yao et al. 2024, arXiv 2404.00242).
What a sequence has for itself is read for it alone.

A plan is one flat int32 array whose size follows from a ``Size`` and not from the tables, so a CUDA graph that was
recorded with it holds while its contents change. It says nothing about the lengths, which the device reads: a plan
stays right as sequences grow, until a table changes in the part that was shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 16  # tokens of a block of the runtime's cache
# Where sharing begins to pay: TensorRT-LLM's pull request 14396 measured 0.52 times the speed at 128 shared tokens, 2.2
# times at 256 (L20, 128 beams). With fewer than four sequences the merge costs what the reading saves.
LEAST_KEYS = 256
LEAST_SEQUENCES = 4
LEAST_SPLIT = 256  # keys for which another program is worth starting
WAVES = 2  # of programs on the whole GPU
FIELDS = 8  # numbers of an item: first key, last key, begin, count, slot, split, splits, and one to fill up
FIRST, LAST, BEGIN, COUNT, SLOT, SPLIT, SPLITS = range(7)
OPEN = -1  # the last key of an item that goes on to its sequence's end


@dataclass(frozen=True, slots=True)
class Size:
    """The fixed measures of a plan.

    Attributes:
        sequences: of the step, with rows that only fill it up; group: query heads to a key/value head.
        rows: of a tile for shared keys: its sequences times ``group``.
        programs: so many for each key/value head fill the GPU.
    """

    sequences: int
    group: int
    rows: int
    programs: int

    @classmethod
    def fitting(cls, sequences: int, heads: int, kv_heads: int, *, units: int, most: int = 64) -> Size:
        """For a GPU of ``units`` multiprocessors, with tiles of ``most`` rows, or as many as share a key/value head.

        >>> Size.fitting(64, heads=32, kv_heads=8, units=132)
        Size(sequences=64, group=4, rows=64, programs=33)
        """
        group = heads // kv_heads
        rows = max(16, _power(group), min(most, _power(sequences * group)))
        return cls(sequences, group, rows, -(-WAVES * units // kv_heads))

    @property
    def each(self) -> int:
        """Sequences of a tile."""
        return self.rows // self.group

    @property
    def narrow_rows(self) -> int:
        """Rows of a tile of one sequence; matrix instructions take no fewer than 16."""
        return max(16, _power(self.group))

    @property
    def wide(self) -> int:
        """Items for shared keys: what fills the GPU, and one for every few sequences."""
        return self.programs + self.sequences // LEAST_SEQUENCES if self.sequences > 1 else 0

    @property
    def narrow(self) -> int:
        """Items for the keys that a sequence has for itself."""
        return self.programs + self.sequences

    @property
    def parts(self) -> int:
        """Partial results of sequences, at the most."""
        return self.wide * self.each + self.narrow

    @property
    def ints(self) -> int:
        """Numbers of a plan."""
        return self._starts + self.sequences + 1

    @property
    def _starts(self) -> int:
        # Every array begins at a multiple of 16 bytes.
        return FIELDS * (self.wide + self.narrow) + -(-self.sequences // 4) * 4

    def views(self, flat: Any) -> tuple[Any, Any, Any, Any]:
        """A plan's arrays, of NumPy or PyTorch: wide items, narrow items, the order, where parts start."""
        wide, both = FIELDS * self.wide, FIELDS * (self.wide + self.narrow)
        order, starts = flat[both : both + self.sequences], flat[self._starts : self.ints]
        return flat[:wide].reshape(-1, FIELDS), flat[wide:both].reshape(-1, FIELDS), order, starts


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """The work of a step.

    Attributes:
        flat: int32 [size.ints], everything below; ``size.views`` finds it again on the device.
        wide: [size.wide, FIELDS], items for keys ``first`` .. ``last`` - 1 of the ``count`` sequences from place
            ``begin`` of the order on. It is the ``split``-th of ``splits`` programs that share these keys, and puts
            its result at ``slot`` of each of its sequences. An unused item has no sequences.
        narrow: [size.narrow, FIELDS], the same for one sequence's own keys, up to its end (``OPEN``).
        order: [sequences], so that sequences with a common prefix are neighbours.
        starts: [sequences + 1], where the parts of each one in the order start.
    """

    size: Size
    flat: np.ndarray

    @property
    def wide(self) -> np.ndarray:
        """See above."""
        return self.size.views(self.flat)[0]

    @property
    def narrow(self) -> np.ndarray:
        """See above."""
        return self.size.views(self.flat)[1]

    @property
    def order(self) -> np.ndarray:
        """See above."""
        return self.size.views(self.flat)[2]

    @property
    def starts(self) -> np.ndarray:
        """See above."""
        return self.size.views(self.flat)[3]

    @property
    def shares(self) -> bool:
        """Whether any key is read for several sequences; else the ordinary decoding kernel does the same for less."""
        return bool(self.wide[:, COUNT].any())

    def holds(self, tables: np.ndarray, lengths: np.ndarray, block: int = BLOCK) -> bool:
        """Whether it is right for these tables and lengths, though perhaps not the best: what it shares is shared."""
        needed = np.zeros(self.size.sequences, dtype=np.int64)  # blocks that each has in common with the next one
        for item in self.wide[self.wide[:, COUNT] > 1].tolist():
            alike = slice(item[BEGIN], item[BEGIN] + item[COUNT] - 1)
            needed[alike] = np.maximum(needed[alike], item[LAST] // block)
        order, needed = self.order, needed[:-1]
        ends = self.narrow[self.narrow[:, SPLIT] == 0]
        ends = ends[ends[:, COUNT] > 0]  # one for each sequence, which begins where its shared keys end
        if (lengths[order[ends[:, BEGIN]]] < ends[:, FIRST]).any() or needed.max(initial=0) > tables.shape[1]:
            return False
        return bool((_common(tables[order]) >= needed).all())


@dataclass(frozen=True, slots=True)
class Saved:
    """Keys that a step reads for each key/value head and layer: ``alone`` by every sequence, ``together`` by a plan."""

    alone: int
    together: int

    @property
    def times(self) -> float:
        """How many times fewer they are."""
        return self.alone / max(1, self.together)

    def bytes(self, of_a_key: int) -> int:
        """Bytes that need not be read, where a key with its value has so many in all layers and heads."""
        return (self.alone - self.together) * of_a_key


def saved(plan: Plan, lengths: np.ndarray) -> Saved:
    """What a plan saves a step; keys that several tiles of one segment read count for each of them."""
    wide, narrow = (items[(items[:, COUNT] > 0) & (items[:, SPLIT] == 0)] for items in (plan.wide, plan.narrow))
    alone = int(lengths.sum(dtype=np.int64))
    return Saved(alone, int((wide[:, LAST] - wide[:, FIRST]).sum() + alone - narrow[:, FIRST].sum()))


def plan(
    tables: np.ndarray,
    lengths: np.ndarray,
    size: Size,
    *,
    block: int = BLOCK,
    least_keys: int = LEAST_KEYS,
    least_sequences: int = LEAST_SEQUENCES,
) -> Plan:
    """Plan a step.

    Sequences share keys as far as their tables name the same blocks from the beginning on, and only whole blocks: the
    last one may still be written to. A segment too short, or of too few sequences, is left to those below it. Where
    there are more segments than a plan has room for, they must be longer.

    Args:
        tables: int32 [sequences, width] of blocks; what stands behind a sequence's end does not matter.
        lengths: int32 [sequences], tokens, the new ones included.
        size: for so many sequences.
        block: tokens of a block; least_keys, least_sequences: of a segment.

    Raises:
        ValueError: the tables have another number of rows than ``size``.
    """
    n = size.sequences
    if tables.shape[0] != n or lengths.shape != (n,):
        raise ValueError(f"a plan for {n} sequences, but tables {tables.shape} and lengths {lengths.shape}")
    whole = lengths // block
    heads = [tables[i, :end].tobytes() for i, end in enumerate(whole.tolist())]
    order = np.array(sorted(range(n), key=heads.__getitem__), dtype=np.int64)
    whole = whole[order]
    common = _common(tables[order, : whole.max(initial=0)])
    common = np.minimum(common, np.minimum(whole[1:], whole[:-1]))
    branches = [b for b in _branches(common) if b[2] - b[1] >= least_sequences]
    least = max(1, -(-least_keys // block))
    segments, own = _segments(branches, n, least)
    while (tiles := -(-(segments[:, 3] - segments[:, 2]) // size.each)).sum() > size.wide:
        least *= 2
        segments, own = _segments(branches, n, least)

    first, last, begin, end = segments.T
    # A part's sums are fp32 and are written and read: so many bytes as a fourth of its rows in keys and values.
    splits = _splits((last - first) * block, tiles, size.wide, max(LEAST_SPLIT, 4 * size.rows))
    slot, used = _slots(begin, end, splits, n)
    flat = np.zeros(size.ints, dtype=np.int32)
    wide, narrow, places, starts = size.views(flat)
    _fill(wide, first * block, last * block, begin, end, slot, splits, size.each)
    each = np.arange(n)
    rest = _splits(lengths[order] - own * block, np.ones(n, dtype=np.int64), size.narrow, LEAST_SPLIT)
    _fill(narrow, own * block, np.full(n, OPEN), each, each + 1, used, rest, 1)
    places[:] = order
    starts[1:] = np.cumsum(used + rest)
    return Plan(size, flat)


def _common(tables: np.ndarray) -> np.ndarray:
    """How many blocks each row has in common with the next one, from the beginning on: [rows - 1]."""
    differ = np.ones((len(tables) - 1, tables.shape[1] + 1), dtype=bool)
    np.not_equal(tables[1:], tables[:-1], out=differ[:, :-1])
    return differ.argmax(1)


def _branches(common: np.ndarray) -> list[tuple[int, int, int]]:
    """Every set of rows that share more than any larger one: blocks, rows from .. to; larger sets before their parts.

    ``common`` as ``_common`` gives it, of rows in order.

    >>> _branches(np.array([2, 5, 0, 1]))
    [(1, 3, 5), (2, 0, 3), (5, 1, 3)]
    """
    found, waiting = [], [(0, 0)]
    for row, shared in enumerate([*common.tolist(), 0]):
        begin = row
        while waiting[-1][0] > shared:
            deeper, begin = waiting.pop()
            found.append((deeper, begin, row + 1))
        if waiting[-1][0] < shared:
            waiting.append((shared, begin))
    return found[::-1]


def _segments(branches: list[tuple[int, int, int]], n: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """The segments [count, 4] as blocks from .. to and rows from .. to, above before below; each row's first own block.

    A branch that adds fewer than ``least`` blocks to the segments above it leaves them to those below it.
    """
    own = [0] * n
    found = []
    for shared, begin, end in branches:
        if shared - own[begin] >= least:
            found.append((own[begin], shared, begin, end))
            own[begin:end] = [shared] * (end - begin)
    return np.array(found, dtype=np.int64).reshape(-1, 4), np.array(own, dtype=np.int64)


def _splits(keys: np.ndarray, tiles: np.ndarray, room: int, least: int) -> np.ndarray:
    """Programs for the keys of each tile: one, and of the ``room`` that is left as many as its share of all keys."""
    share = keys * (room - tiles.sum()) // max(1, (keys * tiles).sum())
    return np.minimum(1 + share, np.maximum(1, keys // least))


def _slots(begin: np.ndarray, end: np.ndarray, splits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the parts of each segment stand among those of a sequence, and how many parts each sequence then has.

    It is the same for all sequences of a segment, since they share all that is above it.
    """
    slot, used = np.zeros(len(begin), dtype=np.int64), np.zeros(n, dtype=np.int64)
    for i, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        slot[i] = used[a]
        used[a:b] += splits[i]
    return slot, used


def _fill(
    items: np.ndarray, first: np.ndarray, last: np.ndarray, begin: np.ndarray, end: np.ndarray, slot: np.ndarray,
    splits: np.ndarray, each: int,
) -> None:  # fmt: skip
    """Write the items of segments: for each split the tiles of ``each`` sequences, beside one another for the cache."""
    tiles = -(-(end - begin) // each)
    counts = tiles * splits
    of = np.repeat(np.arange(len(counts)), counts)
    inside = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = begin[of] + inside % tiles[of] * each
    split = inside // tiles[of]
    columns = first[of], last[of], start, np.minimum(each, end[of] - start), slot[of] + split, split, splits[of]
    items[: len(of), : SPLITS + 1] = np.stack(columns, 1)


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
