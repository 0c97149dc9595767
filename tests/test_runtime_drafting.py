"""Speculative decoding: the model's own text and its own distribution, and counts that can be checked by hand."""

import functools
import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from engine.backends.isoquant import IsoquantBackend, Layout
from engine.catalog import resolve
from engine.decoding.requests import Draft
from engine.models import load
from engine.runtime.blocks import BlockPool
from engine.runtime.drafting import LookupDrafter, ModelDrafter, room, verify
from engine.runtime.plan import Plan
from engine.runtime.sampler import distribution
from engine.runtime.sequence import Sequence
from engine.runtime.support import runner_for
from engine.sampling import Sampling
from spec.choices import Dtype
from spec.errors import SpecError
from tests.batches import CPU, Spy, Words, batcher, causal, drain, greedy, ids, known, plain, row, text
from tests.tiny import make_model

TARGET = known("llama")


def chi_square(counts, expected):
    """How far counts lie from what was expected, in standard deviations of that distance."""
    n = sum(counts)
    parts = [(c - n * p) ** 2 / (n * p) for c, p in zip(counts, expected, strict=True) if p]
    assert all(c == 0 for c, p in zip(counts, expected, strict=True) if not p)
    degrees = len(parts) - 1
    return (sum(parts) - degrees) / (2 * degrees) ** 0.5


LOGITS = torch.tensor([[0.0, 1.0, -0.5, 2.0], [1.5, 0.0, 0.3, -3.0], [-1.0, 0.2, 0.9, 0.4]])
BELIEFS = torch.tensor([[0.6, 0.05, 0.3, 0.05], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=3)])
def test_what_is_taken_has_the_models_own_distribution(certain, sampling):
    p = distribution(LOGITS, sampling, [[0]] * 3).softmax(-1)
    guesses, pairs = np.random.default_rng(1), Counter()
    firsts, n = Counter(), 1500
    for key in range(n):
        one = Sequence(row((0,), 9, sampling=sampling, key=key * 7919), [0], 0.0, 10, ())
        proposed = [int(guesses.choice(4, p=q)) for q in BELIEFS.tolist()] if not certain else [0, 2]
        taken = verify(one, proposed, LOGITS, None if certain else BELIEFS)
        firsts[taken[0]] += 1
        if len(taken) > 1:
            pairs[taken[0], taken[1]] += 1
    assert abs(chi_square([firsts[t] for t in range(4)], p[0].tolist())) < 4
    for first in {a for a, _ in pairs}:
        seconds = [pairs[first, t] for t in range(4)]
        if sum(seconds) > 300:
            assert abs(chi_square(seconds, p[1].tolist())) < 4


def test_single_tokens_stand_before_guesses_and_pieces_of_prompts():
    """Kernels that attend a step's single tokens apart take those at its beginning."""
    made = batcher(TARGET, batch_size=3, budget=12, blocks=20, drafter=LookupDrafter())
    made.runner.seen.clear()
    drain(made, [row(text(4) * 2, 9, (0,), draft=Draft(None, 3, 2)), row(text(3), 9, (1,)), row(text(40), 2, (2,))])
    starts = [np.flatnonzero(np.diff(b.slots, prepend=-1)) for b in made.runner.seen]
    lengths = [np.diff(np.append(first, b.m)) for first, b in zip(starts, made.runner.seen, strict=True)]
    mixed = [n for n in lengths if 1 in n and n.max() > 1]
    assert mixed
    assert all((np.diff((n > 1).astype(int)) >= 0).all() for n in mixed)


def test_a_guess_that_is_always_right_is_always_taken():
    p = distribution(LOGITS, Sampling(), [[0]] * 3).softmax(-1, dtype=torch.float64)
    rng = np.random.default_rng(0)
    for key in range(200):
        one = Sequence(row((0,), 9, sampling=Sampling(), key=key), [0], 0.0, 10, ())
        proposed = [int(rng.choice(4, p=q.numpy())) for q in p[:2]]
        assert verify(one, proposed, LOGITS, p[:2])[:2] == proposed


def drafter_of(draft, batch_size=4, blocks=100):
    runner = Spy(runner_for(draft, CPU))
    runner.allocate(blocks)
    return ModelDrafter(runner, BlockPool(blocks), batch_size)


@functools.cache
def written(context, limit):
    """The target's own greedy text."""
    return greedy(TARGET, context, limit)


@functools.cache
def near(noise):
    """A draft model that is the target with some noise: now and then right."""
    model = causal("llama")
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def drafted(limit=16, **more):
    contexts = [text(5), text(40), text(40), text(17), text(31)]
    return [row(c, limit, (i,), draft=Draft("d", 1 + i), **more) for i, c in enumerate(contexts)]


LAYOUTS = [{}, {"budget": 8}, {"batch_size": 1}, {"blocks": 7, "share": False}, {"kv_cache": False}]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
def test_greedy_text_is_the_targets_own_with_any_draft_model(noise, how):
    drafter = drafter_of(near(noise))
    found = drain(batcher(TARGET, drafter=drafter, **how), drafted())
    assert ids(found) == [written(r.context, 16) for r in drafted()]
    rate = sum(g.accepted for g in found) / max(1, sum(g.drafted for g in found))
    if how.get("kv_cache", True):
        assert {0.0: rate == 1.0, 0.01: 0.2 < rate < 1.0, 1.0: rate < 0.3}[noise]
    assert drafter.pool.in_use == 0
    assert sum(b.m for b in drafter._runner.seen) == sum(e - f for g in found for f, e in g.draft_spans)


@pytest.mark.parametrize("how", LAYOUTS)
def test_greedy_text_is_the_targets_own_with_guesses_from_the_text(how):
    repeating = tuple(itertools.islice(itertools.cycle(text(6)), 30))
    rows = [row(repeating, 24, draft=Draft(None, 5, 3)), row(text(9), 24, draft=Draft(None, 2, 1))]
    found = drain(batcher(TARGET, drafter=LookupDrafter(), **how), rows)
    assert ids(found) == [greedy(TARGET, r.context, 24) for r in rows]
    assert how.get("kv_cache", True) == any(g.drafted for g in found)


def test_nothing_is_guessed_before_a_context_is_read():
    """Its last token may be left alone for a pass, as here; the rows that share it wait for that pass's scores."""
    rows = [row(text(41), 12, draft=Draft("d", 3)) for _ in range(3)]
    found = drain(batcher(TARGET, drafter=drafter_of(near(0.01)), budget=8), rows)
    assert ids(found) == [written(text(41), 12)] * 3


def test_a_draft_model_without_room_guesses_nothing():
    found = drain(batcher(TARGET, drafter=drafter_of(near(0.0), blocks=3)), drafted())
    assert ids(found) == [written(r.context, 16) for r in drafted()]


def test_a_sequence_that_is_put_back_gives_its_place_with_the_draft_model_back():
    drafter = drafter_of(near(0.02), batch_size=2)
    made = batcher(TARGET, batch_size=2, blocks=6, drafter=drafter)
    long = [row(text(30, i), 30, (5 + i,), draft=Draft("d", 3)) for i in (1, 2)]
    short = [row(text(5, 3), 30, (1,), draft=Draft("d", 3))]
    found = drain(made, long, later=short, after=14)
    assert ids(found) == [greedy(TARGET, r.context, 30) for r in (*long, *short)]
    assert len(drafter._free) == 2


def test_the_whole_way_has_the_models_distribution_too():
    """All texts of three tokens, and how often each comes, against the product of the model's probabilities."""
    sampling, context, n = Sampling(1.0, top_k=2), text(12), 1000
    expected = {(): 1.0}
    for _ in range(3):
        longer = {}
        for path, chance in expected.items():
            p = distribution(plain(TARGET, context + path)[-1:], sampling, [[]]).softmax(-1)[0]
            longer |= {(*path, int(t)): chance * float(p[t]) for t in p.nonzero()[:, 0]}
        expected = longer
    rows = [row(context, 3, sampling=sampling, key=31 * i, draft=Draft("d", 2)) for i in range(n)]
    tokens = Words(())  # no token ends a text
    found = drain(batcher(TARGET, batch_size=50, drafter=drafter_of(near(0.03), 50, 400), tokenizer=tokens), rows)
    assert 0.1 < sum(g.accepted for g in found) / sum(g.drafted for g in found) < 0.95
    counts = Counter(ids(found))
    assert set(counts) <= set(expected)
    assert abs(chi_square([counts[t] for t in expected], list(expected.values()))) < 4


# ---- counts by hand


class Rigged:
    """Guesses the target's own next tokens, but a wrong one at some places of the text."""

    def __init__(self, written, wrong=()):
        self.written, self.wrong = written, wrong

    def propose(self, sequences):
        for one in sequences:
            at = len(one.generated)
            right = self.written[at : at + room(one)]
            one.proposed = [(t + 1) % 96 if at + i in self.wrong else t for i, t in enumerate(right)]

    def beliefs(self, sequence):
        return None

    def forget(self, sequence):
        pass


CONTEXT = text(20)
WRITTEN = greedy(TARGET, CONTEXT, 12)


def rigged(limit, guesses, wrong=(), **more):
    made = batcher(TARGET, drafter=Rigged(WRITTEN, wrong), tokenizer=more.pop("tokenizer", None))
    (found,) = drain(made, [row(CONTEXT, limit, draft=Draft("d", guesses), **more)])
    return found


def test_right_guesses_are_all_taken_and_each_pass_gives_one_more():
    found = rigged(9, 3)
    assert found.extension.ids == WRITTEN[:9]
    assert (found.passes, found.drafted, found.accepted) == (3, 6, 6)
    assert list(found.spans) == [(0, 28)]
    assert len(found.token_s) == 9


def test_what_a_wrong_guess_cost_is_counted():
    # Passes: the context (token 0); guesses 1 2 3, of which 2 is wrong (tokens 1, 2); guesses 3 4 5 (tokens 3 .. 6).
    found = rigged(7, 3, wrong=(2,))
    assert found.extension.ids == WRITTEN[:7]
    assert (found.passes, found.drafted, found.accepted) == (3, 6, 4)
    assert sorted(found.spans) == [(0, 26), (22, 24)]


def test_there_is_no_guess_for_the_last_token():
    found = rigged(5, 8)
    assert (found.passes, found.drafted, found.accepted) == (2, 3, 3)
    assert found.extension.finish == "length"
    found = rigged(2, 8)
    assert (found.passes, found.drafted) == (2, 0)


def test_an_end_inside_what_was_taken_cuts_it_there():
    end = WRITTEN[4]
    at = WRITTEN.index(end)
    found = rigged(12, 8, tokenizer=Words([end]))
    assert found.extension.ids == WRITTEN[: at + 1]
    assert found.extension.finish == "stop"
    assert (found.passes, found.drafted, found.accepted) == (2, 8, at)
    stop = Words(()).decode(WRITTEN[3:5])
    found = rigged(12, 8, stop=(stop,))
    assert found.extension.ids == WRITTEN[:5]
    assert found.extension.stop == stop
    assert found.accepted == 4


def test_look_up_continues_the_last_place_of_the_longest_ending():
    drafter = LookupDrafter()

    def guessed(tokens, ngram=3, most=4):
        one = Sequence(row(tokens, 50, draft=Draft(None, most, ngram)), list(tokens), 0.0, 99, ())
        drafter.propose([one])
        return one.proposed

    assert guessed([1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3]
    assert guessed([1, 2, 3, 9, 8, 7, 2, 3, 5, 6, 1, 2, 3], most=2) == [9, 8]
    assert guessed([5, 3, 7, 4, 3, 8, 9, 3], ngram=2) == [8, 9, 3]
    assert guessed([1, 2, 3]) == []
    assert guessed([4]) == []
    assert guessed([4, 4, 4], ngram=1) == [4]


def test_a_draft_model_of_another_vocabulary_and_the_model_itself_are_refused(tmp_path):
    target = load(resolve(str(make_model(tmp_path / "a"))), CPU, Dtype.FP32)
    layout = Layout(Plan(2, 64), 50, drafts="d")
    with pytest.raises(SpecError, match="guess for itself"):
        IsoquantBackend({None: target, "d": target}, layout)
    other = load(resolve("lab-xs"), CPU, Dtype.FP32)
    with pytest.raises(SpecError, match="another vocabulary") as error:
        IsoquantBackend({None: target, "d": other}, layout)
    assert error.value.field == "strategy"


def test_behind_its_own_context_a_draft_model_guesses_nothing():
    short = causal("llama", max_position_embeddings=32)
    short.load_state_dict(TARGET.state_dict())
    drafter = drafter_of(short)
    drafter._context = 32
    found = drain(batcher(TARGET, drafter=drafter), [row(text(20), 30, draft=Draft("d", 4))])
    assert ids(found) == [written(text(20), 30)]
    # It is the target itself: all it guesses is right, up to the thirteenth token, which the last of its context gives.
    assert found[0].accepted == found[0].drafted > 8
    assert max(end for _, end in found[0].draft_spans) == 32
