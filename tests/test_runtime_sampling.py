"""Drawing tokens in our runtime: one seed, one text, however it is laid out; transformers' own filters; ends."""

import functools

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.backends.transformers import TransformersBackend
from engine.catalog import resolve
from engine.models import load
from engine.runtime.sampler import choose, distribution
from engine.runtime.sequence import Sequence
from engine.runtime.support import ANY
from engine.sampling import Sampling, draw, stream_key, uniforms
from kernels.native import build
from spec.choices import Dtype
from tests.batches import CPU, UNFUSED, VOCAB, Words, batcher, drain, ids, known, plain, quiet, row, run, text

KINDS = [
    Sampling(0.7),
    Sampling(1.0, top_k=7),
    Sampling(1.3, top_p=0.8),
    Sampling(1.0, min_p=0.05),
    Sampling(0.9, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.3),
    Sampling(repetition_penalty=2.0),
]
PROMPTS = (text(40), text(40), text(40), text(5), text(17), text(40, 1))


NUCLEUS = Sampling(0.9, top_k=40, top_p=0.95)


def drawn():
    return [row(p, 20, (i,), sampling=NUCLEUS, key=stream_key(0, 0, "p", i)) for i, p in enumerate(PROMPTS)]


@functools.cache
def at_first(architecture, native):
    return run(known(architecture), drawn(), way=ANY if native else UNFUSED)


WAYS = {
    "one at a time": {"batch_size": 1},
    "two": {"batch_size": 2, "budget": 16},
    "all at once": {"batch_size": 16, "budget": 512},
    "small pieces": {"budget": 4},
    "sequence": {"share": False},
    "off": {"kv_cache": False},
    "static": {"static": True, "batch_size": 3},
    "few blocks": {"blocks": 6},
    "few blocks of its own": {"blocks": 6, "share": False, "budget": 5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("architecture", "native"), [("llama", True), ("llama", False), ("gpt2", False)])
def test_a_seed_gives_the_same_text_however_it_is_laid_out(architecture, native, way):
    if build.reason() is not None:
        pytest.skip(build.reason())
    model = known(architecture)
    expected = at_first(architecture, native)
    found = run(model, drawn(), way=ANY if native else UNFUSED, **WAYS[way])
    assert ids(found) == ids(expected)
    assert len(set(ids(expected))) == len(PROMPTS), "streams differ though prompts do not"
    assert ("few" in way) == any(len(g.spans) > 1 for g in found) or way == "off"


@pytest.mark.parametrize("sampling", [None, Sampling(0.8), Sampling(1.0, top_p=0.9, repetition_penalty=1.2)])
def test_both_back_ends_draw_the_same_samples_from_the_lab_model(sampling):
    loaded = load(resolve("lab-xs"), CPU, Dtype.FP32)
    prompts = [f"Question:\nMia has {i} pens and buys {i + 2} more. How many?\nAnswer:" for i in range(3)] * 2
    rows = [
        row(loaded.tokenizer.encode(p), 24, (i,), sampling=sampling, key=stream_key(7, 0, "p", i), stop=("\n\n",))
        for i, p in enumerate(prompts)
    ]
    baseline = TransformersBackend(loaded, 8)
    baseline.submit(rows)
    theirs = dict(baseline.step(quiet))
    ours = run(loaded.model, rows, tokenizer=loaded.tokenizer)
    for asked, mine in zip(rows, ours, strict=True):
        other = theirs[asked].extension
        assert (mine.extension.ids, mine.extension.text) == (other.ids, other.text)
        assert (mine.extension.finish, mine.extension.stop) == (other.finish, other.stop)


def sequence(context, sampling, key=5, start=0, logprobs=False):
    asked = row(context, sampling=sampling, key=key, start=start, logprobs=logprobs)
    return Sequence(asked, list(context), 0.0, len(context) + 8, ())


@pytest.mark.parametrize("sampling", KINDS)
def test_the_filters_are_transformers_own_in_its_order(sampling):
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    contexts = [list(text(9)), list(text(9, 1)), list(text(4))]
    found = distribution(logits, sampling, contexts)
    made = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        made.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    made.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        made.append(TopKLogitsWarper(sampling.top_k))
    made += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    made += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for i, context in enumerate(contexts):
        alone = made(torch.tensor([context]), logits[i : i + 1].clone())
        assert torch.equal(alone[0], found[i])


def test_rows_of_different_kinds_in_one_batch_draw_as_they_would_alone():
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    kinds = [*KINDS, None, None]
    sequences = [sequence(text(6, i), kind, key=i) for i, kind in enumerate(kinds)]
    together = choose(logits, sequences).tokens
    for i, one in enumerate(sequences):
        assert choose(logits[i : i + 1], [one]).tokens == [together[i]]
        if one.row.sampling is None:
            assert together[i] == int(logits[i].argmax())


def test_the_token_is_where_the_cumulative_distribution_passes_the_rows_number():
    logits = torch.randn(1, VOCAB)
    for key in range(50):
        one = sequence(text(3), Sampling(), key=key, start=4)
        number = uniforms([key], [4], 1)[0, 0]
        assert one.number(0) == number
        expected = int((logits.softmax(-1).double().cumsum(-1) > number).nonzero()[0, 1])
        assert choose(logits, [one]).tokens == [expected]


def test_numbers_are_the_same_wherever_reading_begins():
    one, other = sequence(text(3), Sampling(), start=2), sequence(text(3), Sampling(), start=0)
    assert [one.number(i) for i in range(300)] == [other.number(i + 2) for i in range(300)]
    assert one.number(299) == other.number(301)
    assert one.number(3) == other.number(5), "going back"


@pytest.mark.parametrize("native", [True, False])
def test_log_probabilities_are_those_of_the_models_own_distribution(native):
    model = known("qwen2")
    (found,) = run(
        model, [row(text(20), 12, sampling=Sampling(2.0, top_k=9), logprobs=True)], way=ANY if native else UNFUSED
    )
    written = found.extension.ids
    scores = plain(model, text(20) + written).log_softmax(-1)
    wanted = [float(scores[19 + i, t]) for i, t in enumerate(written)]
    assert found.extension.logprobs == pytest.approx(wanted, abs=1e-5)


def test_only_rows_that_ask_for_log_probabilities_get_them():
    rows = [row(text(9, i), 4, logprobs=i % 2 == 0) for i in range(4)]
    assert [len(g.extension.logprobs) for g in run(known("llama"), rows)] == [4, 0, 4, 0]


# ---- ends


def letters(tokens):
    return Words().decode(tokens)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_stop_string_across_tokens_ends_the_text_before_it(batch_size):
    (free,) = run(known("llama"), [row(text(9), 20)])
    whole = letters(free.extension.ids)
    stop = whole[6:9]
    at = whole.index(stop)
    rows = [row(text(9), 20, stop=(stop, "never")), row(text(9), 20), row(text(9), 20, stop=(whole[3:5],))]
    cut, rest, early = run(known("llama"), rows, batch_size=batch_size)
    assert (cut.extension.text, cut.extension.stop, cut.extension.finish) == (whole[:at], stop, "stop")
    assert cut.extension.whole == whole[: at + 3]
    assert cut.extension.ids == free.extension.ids[: at + 3]
    assert rest.extension.ids == free.extension.ids
    assert early.extension.text == whole[: whole.index(whole[3:5])]


def test_a_stop_string_that_began_in_the_path_ends_it():
    (free,) = run(known("llama"), [row(text(9), 20)])
    written, whole = free.extension.ids, letters(free.extension.ids)
    stop = whole[6:9]
    cut = whole.index(stop) + 2  # the path holds all of it but its last letter
    continued = row(text(9) + written[:cut], 20 - cut, start=cut, stop=(stop,))
    (found,) = run(known("llama"), [continued])
    assert found.extension.ids == written[cut : cut + 1]
    assert (found.extension.text, found.extension.stop, found.extension.finish) == ("", stop, "stop")
    prompted = row(text(9) + written[:cut], 20 - cut, stop=(stop,))
    assert run(known("llama"), [prompted])[0].extension.ids[:2] == written[cut : cut + 2], "a prompt is no path"


def test_the_end_token_ends_a_text_and_is_no_part_of_it():
    (free,) = run(known("llama"), [row(text(9), 20)])
    end = free.extension.ids[7]
    at = free.extension.ids.index(end)
    (found,) = run(known("llama"), [row(text(9), 20)], tokenizer=Words([end]))
    assert found.extension.ids == free.extension.ids[: at + 1]
    assert found.extension.text == letters(free.extension.ids[:at])
    assert (found.extension.finish, found.extension.stop) == ("stop", None)


def test_a_path_continued_draws_what_it_would_have_drawn_in_one_go():
    sampling = Sampling(1.0)
    (whole,) = run(known("llama"), [row(text(20), 16, sampling=sampling, key=9)])
    written = whole.extension.ids
    for cut in (1, 5, 15):
        again = row(text(20) + written[:cut], 16 - cut, sampling=sampling, key=9, start=cut)
        assert run(known("llama"), [again])[0].extension.ids == written[cut:]


def test_a_branch_of_a_text_draws_from_its_own_stream():
    made = batcher(known("llama"))
    same = [row(text(40), 16, sampling=Sampling(1.0), key=i % 2) for i in range(4)]
    a, b, c, d = ids(drain(made, same))
    assert (a, b) == (c, d)
    assert a != b


def test_draw_never_takes_what_was_filtered_out():
    scores = torch.full((1, 5), float("-inf"))
    scores[0, 3] = 0.0
    for u in (0.0, 0.5, 1 - 2**-48):
        assert draw(scores, torch.tensor([u], dtype=torch.float64)).item() == 3
