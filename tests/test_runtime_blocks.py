"""Blocks of the KV cache against a naive model that remembers what each block holds."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.runtime.blocks import BLOCK, WORTH, BlockPool, OutOfBlocks

WORDS = st.integers(0, 1)
LETTERS = st.lists(WORDS, min_size=1, max_size=4).map(lambda words: [w for w in words for _ in range(7)])


class Held:
    """A sequence: the keys and values of its first ``computed`` tokens are in its table."""

    def __init__(self, table, tokens, computed):
        self.table, self.tokens, self.computed = table, tokens, computed


def paths(pool):
    """Every findable block with the text that it ends, and how much of that text is its own."""
    waiting = [(pool._root, ())]
    while waiting:
        entry, before = waiting.pop()
        for below in (*entry.children.values(), *entry.open.values()):
            assert below.parent is entry
            waiting.append((below, before + below.tokens))
            yield below, before + below.tokens


class Pool(RuleBasedStateMachine):
    """A cell of a block holds the whole text up to its token, as keys and values do."""

    @initialize(count=st.integers(2, 9))
    def start(self, count):
        self.pool = BlockPool(count)
        self.cells = [[None] * BLOCK for _ in range(count)]
        self.live = []
        self.most = 0

    def pick(self, data):
        return data.draw(st.sampled_from(self.live))

    @rule(data=st.data(), tokens=LETTERS, extra=st.lists(WORDS, max_size=3), take_over=st.booleans())
    def find(self, data, tokens, extra, take_over):
        tokens = [*tokens, *extra]
        limit = data.draw(st.integers(0, len(tokens)))
        known = max((common(text, tokens[:limit]) for _, text in paths(self.pool)), default=0)
        table, found = self.pool.find(tokens, limit, take_over)
        worth = known % BLOCK >= WORTH or known == limit
        assert found == (known if worth else known - known % BLOCK), "the longest known beginning"
        assert len(table.blocks) == -(-found // BLOCK)
        held = Held(table, tokens[:found], found)
        self.check_content(held)
        self.live.append(held)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), letters=st.lists(LETTERS, min_size=1, max_size=3))
    def step(self, data, letters):
        """Several sequences grow; where blocks run out the last one is put back. Copies first, then writes."""
        chosen = data.draw(st.lists(st.sampled_from(self.live), min_size=1, max_size=3, unique=True))
        copies, grown = [], []
        for held, more in zip(chosen, letters, strict=False):
            if not any(h is held for h in self.live):
                continue
            while True:
                try:
                    self.pool.grow(held.table, held.computed, held.computed + len(more), copies)
                except OutOfBlocks:
                    last = self.live[-1]
                    self.put_back(last)
                    grown = [(h, m) for h, m in grown if h is not last]
                    if last is held:
                        break
                else:
                    self.check_writable(held, len(more))
                    grown.append((held, more))
                    break
        for source, target in copies:
            self.cells[target] = list(self.cells[source])
        for held, more in grown:
            for word in more:
                held.tokens.append(word)
                self.write(held)

    def write(self, held):
        at = held.computed
        self.cells[held.table.blocks[at // BLOCK]][at % BLOCK] = tuple(held.tokens[: at + 1])
        held.computed += 1

    def put_back(self, held, keep=True):
        self.live = [h for h in self.live if h is not held]
        self.pool.release(held.table, held.tokens, held.computed if keep else 0)
        assert held.table.blocks == []
        assert held.table.entries == []

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data, keep):
        self.put_back(self.pick(data), keep)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def commit(self, data):
        held = self.pick(data)
        before = list(held.table.blocks)
        swapped = self.pool.commit(held.table, held.tokens, held.computed)
        assert swapped == (before != held.table.blocks)
        assert all(self.pool.is_findable(b) for b in held.table.blocks[: held.computed // BLOCK])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data):
        held = self.pick(data)
        self.pool.trim(held.table, held.computed)  # a table is forked behind its context, before there are guesses
        self.live.append(Held(self.pool.fork(held.table), list(held.tokens), held.computed))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def trim(self, data):
        held = self.pick(data)
        at_borders = st.sampled_from(range(0, held.computed + 1, BLOCK))
        held.computed = data.draw(st.integers(0, held.computed) | at_borders)
        self.pool.trim(held.table, held.computed)
        del held.tokens[held.computed :]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def take_guesses_back(self, data):
        """As trim, but the blocks behind stay: they are its own, as those of rejected guesses are."""
        held = self.pick(data)
        length = data.draw(st.integers(0, held.computed))
        behind = held.table.blocks[length // BLOCK :]
        if all(self.pool.refs(b) == 1 and not self.pool.is_findable(b) for b in behind):
            held.computed = length
            del held.tokens[length:]

    @rule()
    def clear(self):
        self.pool.clear()
        assert self.pool.peak == self.pool.in_use
        self.most = self.pool.in_use

    def check_content(self, held):
        for i in range(held.computed):
            assert self.cells[held.table.blocks[i // BLOCK]][i % BLOCK] == tuple(held.tokens[: i + 1])

    def check_writable(self, held, more):
        for i in range(held.computed, held.computed + more):
            block = held.table.blocks[i // BLOCK]
            assert self.pool.refs(block) == 1
            assert not self.pool.is_findable(block)
            assert sum(block in other.table.blocks for other in self.live) == 1

    @invariant()
    def counts_are_those_of_the_tables(self):
        if not hasattr(self, "pool"):
            return
        pool, tables = self.pool, [h.table.blocks for h in self.live]
        refs = Counter(b for blocks in tables for b in blocks)
        assert all(len(set(blocks)) == len(blocks) for blocks in tables)
        assert [pool.refs(b) for b in range(pool.count)] == [refs[b] for b in range(pool.count)]
        assert pool.in_use == len(refs)
        assert pool.available == pool.count - len(refs)
        assert len(set(pool._free)) == len(pool._free), "a block was freed twice"
        assert not set(pool._free) & (set(refs) | set(pool._entry))
        assert set(pool._unused) == set(pool._entry) - set(refs)
        self.most = max(self.most, pool.in_use)
        assert self.most <= pool.peak <= pool.count

    @invariant()
    def every_table_holds_its_text_and_every_findable_block_too(self):
        if not hasattr(self, "pool"):
            return
        for held in self.live:
            self.check_content(held)
        found = 0
        for entry, text in paths(self.pool):
            found += 1
            before = len(text) - len(entry.tokens)
            for i in range(before, len(text)):
                assert self.cells[entry.block][i - before] == text[: i + 1]
        assert found == len(self.pool._entry), "a block can be found whose beginning cannot"

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for held in list(self.live):
            self.put_back(held)
        self.counts_are_those_of_the_tables()
        self.every_table_holds_its_text_and_every_findable_block_too()
        assert self.pool.in_use == 0
        assert self.pool.available == self.pool.count
        self.pool.clear()
        assert sorted(self.pool._free) == list(range(self.pool.count))
        assert self.pool.find([0] * 40, 40)[1] == 0


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = Pool.TestCase


def common(a, b):
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def grown(pool, tokens, table=None, start=0):
    copies = []
    table = table or pool.find(tokens, 0)[0]
    pool.grow(table, start, len(tokens), copies)
    return table, copies


def test_the_peak_counts_blocks_that_are_held_at_once_and_shared_ones_once():
    pool, tokens = BlockPool(10), list(range(40))
    table, _ = grown(pool, tokens)
    pool.commit(table, tokens, 40)
    forks = [pool.fork(table) for _ in range(3)]
    assert (pool.in_use, pool.peak) == (3, 3)
    copies = []
    for fork in forks:
        pool.grow(fork, 40, 41, copies)
    assert [source for source, _ in copies] == [table.blocks[2]] * 3
    assert len({target for _, target in copies}) == 3
    assert (pool.in_use, pool.peak) == (6, 6)
    for held in (table, *forks):
        pool.release(held, tokens, 40)
    assert (pool.in_use, pool.peak, pool.available) == (0, 6, 10)


def test_the_longest_unused_goes_first_and_an_end_before_its_beginning():
    pool, old, new = BlockPool(4), [1] * 32, [2] * 32
    for tokens in (old, new):
        pool.release(grown(pool, tokens)[0], tokens, 32)
    grown(pool, [3] * 16)
    assert [pool.find(t, 32)[1] for t in (old, new)] == [16, 32]


def test_an_open_end_goes_on_where_it_is_unless_somebody_else_may_want_it():
    pool, tokens = BlockPool(3), [1] * 20
    pool.release(grown(pool, tokens)[0], tokens, 20)
    copies = []
    kept, _ = pool.find(tokens, 20, take_over=False)
    assert pool.is_findable(kept.blocks[1])
    pool.release(kept)
    taken, length = pool.find(tokens, 20)
    assert not pool.is_findable(taken.blocks[1])
    pool.grow(taken, length, 21, copies)
    assert copies == []
    other, length = pool.find(tokens, 20)
    assert length == 16, "what goes on is found no more"
    pool.release(other)


def test_a_block_given_up_in_a_step_may_take_the_next_copy_of_that_step():
    """What stood in it is copied first: the order of the copies is part of the answer."""
    pool, texts = BlockPool(3), ([1] * 8, [2] * 8)
    for tokens in texts:
        pool.release(grown(pool, tokens)[0], tokens, 8)
    copies = []
    first, second = (pool.find(tokens, 8, take_over=False)[0] for tokens in texts)
    (a,), (b,) = first.blocks, second.blocks
    pool.grow(first, 8, 9, copies)
    pool.grow(second, 8, 9, copies)
    assert copies == [(a, first.blocks[0]), (b, a)]
    assert second.blocks == [a]


def test_running_out_takes_nothing_from_the_others():
    pool, tokens = BlockPool(3), [1] * 32
    table, _ = grown(pool, tokens)
    other, _ = pool.find([2], 0)
    with pytest.raises(OutOfBlocks):
        pool.grow(other, 0, 33, [])
    assert pool.refs(table.blocks[0]) == pool.refs(table.blocks[1]) == 1
    pool.release(other)
    assert pool.available == 1


def test_nothing_is_found_where_nothing_is_shared():
    pool, tokens = BlockPool(4, share=False), [1] * 32
    pool.release(grown(pool, tokens)[0], tokens, 32)
    assert pool.find(tokens, 32)[1] == 0
    assert pool.available == 4
