"""The transformers back end: equal to plain generate, exact in its counts, stoppable at every step."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.backends.compiling import Compiled
from engine.backends.rows import Row
from engine.backends.stopping import StopStrings
from engine.backends.transformers import TransformersBackend
from engine.catalog import resolve
from engine.devices import pick_device
from engine.models import load
from engine.sampling import Sampling, stream_key
from kernels.native import build
from spec.choices import Attention, Dtype
from spec.errors import Cancelled, DoesNotFitError, SpecError
from tests.tiny import ARCHITECTURES, CONTEXT, make_model

PROMPTS = ["Question 1\nAnswer:", "Q", "What is 2 + 2, and why is it so? Say it slowly.", "abc abc abc"]
CPU = pick_device("cpu")


def quiet(tokens: int) -> None:
    """Nothing to do between steps."""


def extend(backend, rows, on_step):
    """What becomes of the rows, in their order, in one batch; without the seconds, which no two runs share."""
    backend.submit(rows)
    found = dict(backend.step(on_step))
    assert not backend.busy
    for g in found.values():
        assert g.extension.seconds == (g.token_s[-1] - g.started_s if g.token_s else 0.0)
    return [replace(found[r], extension=replace(found[r].extension, seconds=0.0)) for r in rows]


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """architecture -> a back end over a tiny model; made once."""
    made = {}

    def get(architecture: str = "llama", **more) -> TransformersBackend:
        key = (architecture, tuple(more.items()))
        if key not in made:
            folder = make_model(tmp_path_factory.mktemp("model"), architecture, **more)
            made[key] = TransformersBackend(load(resolve(str(folder)), CPU, Dtype.FP32), 64)
        return made[key]

    return get


def rows_of(backend, prompts=PROMPTS, limit=16, sampling=None, stop=()):
    encode = backend.loaded.tokenizer.encode
    return [Row(tuple(encode(p)), limit, sampling, stream_key(0, 0, p, 0), 0, tuple(stop)) for p in prompts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_plain_generate_of_each_prompt_alone(backends, architecture):
    backend = backends(architecture)
    plain = AutoModelForCausalLM.from_pretrained(resolve(backend.loaded.name).path)
    for prompt, grown in zip(PROMPTS, extend(backend, rows_of(backend), quiet), strict=True):
        ids = torch.tensor([backend.loaded.tokenizer.encode(prompt)])
        expected = plain.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
        assert list(grown.extension.ids) == expected
        ended = expected[-1] == 0
        assert grown.extension.finish == ("stop" if ended else "length")
        assert grown.extension.text == backend.loaded.tokenizer.inner.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_seed_gives_the_same_samples_at_any_batch_size(backends, architecture, batch):
    backend = backends(architecture)
    rows = rows_of(backend, sampling=Sampling(0.9, top_k=20, top_p=0.95))
    together = [g.extension for g in extend(backend, rows, quiet)]
    apart = [g.extension for i in range(0, 4, batch) for g in extend(backend, rows[i : i + batch], quiet)]
    assert apart == together
    assert len({e.text for e in together}) == 4


def test_a_path_continued_draws_what_it_would_have_drawn_in_one_go(backends):
    backend = backends()
    (row,) = rows_of(backend, PROMPTS[:1], limit=12, sampling=Sampling(1.0))
    whole = extend(backend, [row], quiet)[0].extension.ids
    assert len(whole) == 12
    rest = Row(row.context + whole[:5], 7, row.sampling, row.key, 5, ())
    assert extend(backend, [rest], quiet)[0].extension.ids == whole[5:]


def test_mixed_sampling_in_one_batch(backends):
    backend = backends()
    greedy, drawn = rows_of(backend, PROMPTS[:2]), rows_of(backend, PROMPTS[2:], sampling=Sampling(1.0))
    mixed = extend(backend, [greedy[0], drawn[0], greedy[1], drawn[1]], quiet)
    expected = extend(backend, greedy, quiet) + extend(backend, drawn, quiet)
    assert [m.extension for m in mixed] == [expected[i].extension for i in (0, 2, 1, 3)]


def test_the_end_token_ends_a_sequence_and_is_counted_once(backends):
    backend = backends()
    rows = rows_of(backend, [f"{i} {p}" for i in range(8) for p in PROMPTS], limit=60, sampling=Sampling(3.0))
    grown = extend(backend, rows, quiet)
    ended = [g for g in grown if g.extension.finish == "stop"]
    assert ended
    for g in ended:
        assert g.extension.ids.count(0) == 1
        assert g.extension.ids[-1] == 0
        assert "eos" not in g.extension.text
        assert len(g.extension.text) == len(g.extension.ids) - 1


def test_an_end_token_that_is_plain_text_is_not_part_of_the_answer(backends, tmp_path):
    """Many chat models end their turn with a token that only their generation config names."""
    free = extend(backends(), rows_of(backends(), limit=12), quiet)[0].extension
    folder = make_model(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, free.ids[5]]}))
    backend = TransformersBackend(load(resolve(str(folder)), CPU, Dtype.FP32), 64)
    ended = extend(backend, rows_of(backend, limit=12), quiet)[0].extension
    end = free.ids.index(free.ids[5])
    assert ended.ids == free.ids[: end + 1]
    assert (ended.text, ended.finish) == (free.text[:end], "stop")


def test_every_token_has_its_time(backends):
    backend = backends()
    rows = rows_of(backend, [f"{i}" for i in range(20)], limit=40, sampling=Sampling(3.0))
    for g in extend(backend, rows, quiet):
        assert len(g.token_s) == len(g.extension.ids)
        assert g.started_s < g.token_s[0]
        assert sorted(g.token_s) == list(g.token_s)


def test_steps_report_exactly_the_tokens_generated(backends):
    backend = backends()
    told = []
    rows = rows_of(backend, [f"{i}" for i in range(20)], limit=40, sampling=Sampling(3.0))
    grown = extend(backend, rows, told.append)
    assert sum(told) == sum(len(g.extension.ids) for g in grown)
    assert told[0] == 20


def test_a_stop_string_ends_the_text_before_it(backends):
    backend = backends()
    free = extend(backend, rows_of(backend, limit=20), quiet)[0].extension
    stop = free.text[6:9]
    rows = rows_of(backend, limit=20, stop=(stop, "never this"))
    cut = extend(backend, rows, quiet)[0].extension
    at = free.text.index(stop)
    assert (cut.text, cut.finish) == (free.text[:at], "stop")
    assert cut.ids == free.ids[: at + len(stop)]


def test_stop_strings_that_cross_tokens_and_bytes():
    class Pieces:
        """Token i decodes to the i-th piece; joined bytes may form one character."""

        pieces = (b"ab", b"c\n\nQ", b" x", "é".encode()[:1], "é".encode()[1:], b"zz ")
        stop_ids, pad_id = frozenset(), 0

        def decode(self, ids):
            return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    stops = StopStrings(Pieces(), ["bc\n", "é", "z "])
    assert stops.met([0, 1])
    assert not stops.met([1])
    assert not stops.met([2, 3])
    assert stops.met([2, 3, 4])
    assert stops.met([2, 5])
    assert stops.first_in("xbc\nyé") == (1, "bc\n")
    assert stops.first_in("none") is None
    assert not StopStrings(Pieces(), []).met([0])


def test_a_stop_string_may_begin_in_the_path():
    class Letters:
        stop_ids, pad_id = frozenset(), 0

        def decode(self, ids):
            return "".join(map(chr, ids))

    stops = StopStrings(Letters(), ["Question:"])
    path = list(map(ord, "the end\nQuest"))
    assert stops.met(list(map(ord, "ion:")), path)
    assert not stops.met(list(map(ord, "ion")), path)
    assert not stops.met(list(map(ord, "ion:")))
    assert not stops.met(list(map(ord, "x")), list(map(ord, "Question:"))), "it lies in the path alone"
    assert stops.first_in("ion: x", "Quest") == (0, "Question:")
    assert stops.first_in("x Question:", "Quest") == (2, "Question:")


def test_no_row_is_pushed_past_the_context(backends):
    """GPT-2 has no position beyond its context: feeding one is an index error, not a wrong number."""
    backend = backends("gpt2")
    near = tuple(backend.loaded.tokenizer.encode("x" * (CONTEXT - 3)))
    short = tuple(backend.loaded.tokenizer.encode("short"))
    rows = [Row(near, 3, None, 0, 0, ()), Row(short, 40, None, 0, 0, ())]
    grown = extend(backend, rows, quiet)
    assert len(grown[0].extension.ids) == 3
    alone = extend(backend, rows[1:], quiet)[0].extension
    assert grown[1].extension == alone


@pytest.mark.slow
@pytest.mark.parametrize("attention", [Attention.SDPA, Attention.EAGER])
@pytest.mark.parametrize("sampling", [None, Sampling(1.0)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_with_little_room_share_one_call_with_the_others(backends, architecture, sampling, attention, monkeypatch):
    loaded = load(resolve(backends(architecture).loaded.name), CPU, Dtype.FP32, attention)
    backend, context, calls, furthest = TransformersBackend(loaded, 64), CONTEXT, [], []
    texts = {3: "x" * (context - 3), 11: "ab " * 39, 40: "short", 1: "y" * (context - 1), 30: "What is 2 + 2?"}
    rows = [rows_of(backend, [t], limit, sampling)[0] for limit, t in texts.items()]
    alone = [extend(backend, [row], quiet)[0].extension for row in rows]
    generate, forward = loaded.model.generate, loaded.model.forward

    @functools.wraps(forward)  # generate looks at its parameters
    def positions(*args, **kwargs):
        furthest.append(int(kwargs["position_ids"].max()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "generate", lambda **kwargs: calls.append(kwargs) or generate(**kwargs))
    monkeypatch.setattr(loaded.model, "forward", positions)
    assert [g.extension for g in extend(backend, rows, quiet)] == alone
    assert len(calls) == 1
    assert max(furthest) == context - 1
    assert not loaded.model._forward_pre_hooks


def test_a_model_that_takes_no_positions_has_its_cramped_rows_apart(backends, monkeypatch):
    loaded, calls = backends().loaded, []
    generate, forward = loaded.model.generate, loaded.model.forward
    monkeypatch.setattr(loaded.model, "forward", lambda input_ids=None, **kwargs: forward(input_ids, **kwargs))
    backend = TransformersBackend(loaded, 64)
    rows = [*rows_of(backend, ["x" * (CONTEXT - 3)], 3), *rows_of(backend, PROMPTS[:3], 40)]
    monkeypatch.setattr(loaded.model, "generate", lambda **kwargs: calls.append(kwargs) or generate(**kwargs))
    monkeypatch.setattr(loaded.model, "forward", forward)
    assert len(extend(backend, rows, quiet)[0].extension.ids) == 3
    assert [len(c["input_ids"]) for c in calls] == [1, 3]


def test_kv_cache_bytes_are_those_of_the_real_cache(backends):
    backend = TransformersBackend(backends().loaded, 64)
    extend(backend, rows_of(backend, ["abcde", "xyz"], limit=4), quiet)
    steps = 5 + 4 - 1  # the last token is never read
    heads, width = 2, 8
    assert backend.kv_bytes_peak == 2 * 2 * steps * 2 * heads * width * 4
    before = backend.kv_bytes_peak
    extend(backend, rows_of(backend, ["a"], limit=1), quiet)
    assert backend.kv_bytes_peak == before


def test_an_exception_between_steps_ends_the_batch_at_once(backends):
    backend = backends()
    steps = []

    def stop(tokens):
        steps.append(tokens)
        if len(steps) == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        extend(backend, rows_of(backend, limit=50), stop)
    assert len(steps) == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_a_result_that_names_a_batch_size(backends, monkeypatch, error):
    backend = backends()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(backend.loaded.model, "generate", fail)
    with pytest.raises(DoesNotFitError, match="try batch size 2"):
        extend(backend, rows_of(backend), quiet)


def test_other_errors_are_not_taken_for_memory(backends, monkeypatch):
    backend = backends()

    def fail(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(backend.loaded.model, "generate", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        extend(backend, rows_of(backend), quiet)


def test_a_batch_that_eats_the_last_memory_is_stopped(backends, monkeypatch):
    from engine.backends import batches as module

    backend = backends()
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFitError, match="try batch size"):
        extend(backend, rows_of(backend, limit=64), quiet)


@pytest.mark.parametrize("attention", [Attention.EAGER, Attention.SDPA])
def test_the_attention_asked_for_is_the_one_that_runs(tmp_path, attention):
    loaded = load(resolve(str(make_model(tmp_path / "m"))), CPU, Dtype.FP32, attention)
    assert loaded.attention == attention
    backend = TransformersBackend(loaded, 64)
    assert extend(backend, rows_of(backend), quiet)[0].extension.ids


@pytest.mark.parametrize("attention", [Attention.SDPA_MATH, Attention.SDPA_FLASH])
def test_a_pinned_kernel_writes_the_same_text(tmp_path, attention):
    folder = make_model(tmp_path / "m")
    plain, own = (load(resolve(str(folder)), CPU, Dtype.FP32, a) for a in (Attention.SDPA, attention))
    expected = extend(TransformersBackend(plain, 64), rows_of(TransformersBackend(plain, 64)), quiet)
    backend = TransformersBackend(own, 64, attention=attention)
    assert backend.attention == f"sdpa, {attention.removeprefix('sdpa-')}"
    found = extend(backend, rows_of(backend), quiet)
    assert [g.extension.ids for g in found] == [g.extension.ids for g in expected]


def test_a_pinned_kernel_that_refuses_says_so_in_words(tmp_path):
    loaded = load(resolve(str(make_model(tmp_path / "m"))), CPU, Dtype.FP32, Attention.SDPA_EFFICIENT)
    backend = TransformersBackend(loaded, 64, attention=Attention.SDPA_EFFICIENT)
    with pytest.raises(SpecError, match="sdpa-efficient kernel does not take") as caught:
        extend(backend, rows_of(backend), quiet)
    assert caught.value.field == "runtime.attention"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(build.compiler_reason() is not None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("sampling", [None, Sampling(0.9, top_k=20)])
def test_compiled_steps_write_the_same_text(backends, sampling, monkeypatch):
    """Batches of other sizes and widths than the first, one row with hardly any room left in the fixed cache."""
    plain = backends()
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    longest = max(len(r.context) for r in rows_of(plain, prompts)) + 16
    compiled = Compiled(plain.loaded.model, 4, longest)
    backend = TransformersBackend(plain.loaded, 4, compiled=compiled)
    assert backend.attention == "sdpa, compiled"
    calls = []
    arguments = compiled.arguments
    monkeypatch.setattr(compiled, "arguments", lambda: calls.append(1) or arguments())
    for some in (prompts, prompts[:1]):
        rows = rows_of(plain, some, sampling=sampling)
        assert [g.extension.ids for g in extend(backend, rows, quiet)] == [
            g.extension.ids for g in extend(plain, rows, quiet)
        ]
    rows = rows_of(plain, prompts[:1]) + rows_of(plain, [PROMPTS[2]])
    long = replace(rows[1], context=rows[1].context[: longest - 3], limit=3)
    both = [replace(rows[0], limit=16), long]
    assert [g.extension.ids for g in extend(backend, both, quiet)] == [
        g.extension.ids for g in extend(plain, both, quiet)
    ]
    assert len(calls) == 4, "the cramped row had to run apart"


def test_the_models_own_sampling_defaults_are_not_used(tmp_path):
    folder = make_model(tmp_path / "m")
    backend = TransformersBackend(load(resolve(str(folder)), CPU, Dtype.FP32), 64)
    before = [g.extension for g in extend(backend, rows_of(backend), quiet)]
    path = folder / "generation_config.json"
    own = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 5.0, "eos_token_id": 0}
    path.write_text(json.dumps(own))
    backend = TransformersBackend(load(resolve(str(folder)), CPU, Dtype.FP32), 64)
    assert [g.extension for g in extend(backend, rows_of(backend), quiet)] == before
