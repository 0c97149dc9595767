"""Every architecture over the paged cache: transformers' own greedy text, whatever is done to the batches."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.backends.isoquant import IsoquantBackend, Layout
from engine.catalog import resolve
from engine.models import load
from engine.runtime import module_runner, native_runner, support
from engine.runtime.batch import Batch
from engine.runtime.plan import Plan
from engine.runtime.support import ANY, Unsupported, runner_for
from engine.runtime.way import Way
from kernels.native import build
from spec.choices import Attention, Dtype, Fusion, KvDtype
from spec.errors import SpecError
from tests.batches import (
    CPU,
    MODULES,
    NATIVE,
    PLAIN,
    UNFUSED,
    batcher,
    causal,
    drain,
    greedy,
    ids,
    known,
    plain,
    row,
    run,
    text,
)  # fmt: skip
from tests.tiny import make_model

needs_kernels = pytest.mark.skipif(build.reason() is not None, reason=f"no native kernels: {build.reason()}")
CONTEXTS = (text(1), text(30), text(30), text(30), text(40), text(17))
LIMIT = 16


@pytest.fixture(scope="module")
def expected():
    """architecture -> transformers' greedy text behind each context."""
    made = {}

    def get(architecture):
        if architecture not in made:
            by_context = {c: greedy(known(architecture), c, LIMIT) for c in dict.fromkeys(CONTEXTS)}
            made[architecture] = [by_context[c] for c in CONTEXTS]
        return made[architecture]

    return get


def rows():
    return [row(c, LIMIT, order=(i,)) for i, c in enumerate(CONTEXTS)]


# Those whose forward pass differs most run each time, the others with the slow tests.
OTHERS = "arcee ernie4_5 exaone4 glm glm4 granitemoe helium hunyuan_v1_dense ministral olmo seed_oss persimmon biogpt"
ALL = [pytest.param(a, marks=[pytest.mark.slow] if a in OTHERS.split() else []) for a in NATIVE + MODULES]


@needs_kernels
@pytest.mark.parametrize("architecture", ALL)
def test_greedy_text_is_that_of_generate(architecture, expected):
    """Ragged prompts in pieces, equal contexts that fork, and so few blocks that sequences are put back."""
    made = batcher(known(architecture), batch_size=3, budget=12, blocks=7)
    try:
        forward = architecture in NATIVE
        assert made.runner.name == ("paged, native forward" if forward else "paged, native kernel")
        assert type(made.runner.inner).__name__ == ("NativeRunner" if forward else "ModuleRunner")
        found = drain(made, rows())
    finally:
        made.close()
    assert ids(found) == expected(architecture)
    assert any(len(g.spans) > 1 for g in found), "nobody was put back"


PATHS = {"forward": ANY, "kernel": UNFUSED, "gathered": PLAIN}
WAYS = {
    "static": {"static": True},
    "sequence": {"share": False},
    "off": {"kv_cache": False, "share": False},
    "few blocks, no sharing": {"share": False, "blocks": 6},
    "one at a time": {"batch_size": 1},
    "all at once": {"batch_size": 16, "budget": 512},
    "small pieces": {"budget": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("architecture", ["mistral", "gpt2"])
def test_greedy_text_is_the_same_however_it_is_laid_out(architecture, path, way, expected):
    if path != "gathered" and build.reason() is not None:
        pytest.skip(build.reason())
    if (architecture, path) == ("gpt2", "forward"):
        pytest.skip("it runs through its own modules")
    wanted = expected(architecture)  # before our attention stands in the model
    made = batcher(known(architecture), way=PATHS[path], **({"batch_size": 4} | WAYS[way]))
    try:
        assert path in made.runner.name
        assert ids(drain(made, rows())) == wanted
    finally:
        made.close()


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "gemma3_text"])
def test_the_gathered_path_knows_windows_caps_and_sinks(name, expected):
    assert ids(run(known(name), rows(), way=PLAIN, budget=12, blocks=7)) == expected(name)


@pytest.mark.parametrize("model", ["lab-xs", "lab-s"])
@pytest.mark.parametrize("native", [True, False])
def test_the_lab_models_write_what_generate_writes(model, native):
    loaded = load(resolve(model), CPU, Dtype.FP32)
    encode = loaded.tokenizer.encode
    prompts = ["Question:\nMia has 3 pens and buys 4 more. How many pens does she have?\nAnswer:", "Question:", "7"]
    asked = [row(encode(p), 24) for p in prompts]
    end = next(iter(loaded.tokenizer.stop_ids))
    wanted = [greedy(loaded.model, r.context, 24) for r in asked]
    wanted = [w[: w.index(end) + 1] if end in w else w for w in wanted]
    found = run(loaded.model, asked, way=ANY if native else UNFUSED, budget=16, tokenizer=loaded.tokenizer)
    assert ids(found) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_half_precision_is_as_near_to_full_precision_as_transformers_is(architecture, dtype):
    full, half = known(architecture), causal(architecture).to(dtype)
    context, exact, theirs = text(40), plain(full, text(40)), plain(half, text(40)).float()
    made = batcher(half)
    try:
        (grown,) = drain(made, [row(context, 1, peek=5)])
    finally:
        made.close()
    limit = 2 * float((theirs - exact).abs().max()) + 1e-3
    logprobs = exact[-1].log_softmax(-1)
    assert all(abs(value - float(logprobs[token])) <= limit for token, value in grown.choices)


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "mpt"])
def test_a_model_with_an_attention_of_its_own_is_refused_and_left_as_it_was(architecture):
    model = causal(architecture, attention="eager")
    before = plain(model, text(20))
    with pytest.raises(Unsupported, match=r"AttentionInterface|does not run over"):
        runner_for(model, CPU)
    assert torch.equal(plain(model, text(20)), before)
    assert model.config._attn_implementation == "eager"
    assert not any(hasattr(m, "isoquant_step") for m in model.modules())


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_follow_the_batch_are_refused(kind):
    more = {"factor": 2.0, "rope_theta": 10000.0, "rope_type": kind, "original_max_position_embeddings": 64}
    more |= {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8} if kind == "longrope" else {}
    with pytest.raises(Unsupported, match="rotary positions"):
        runner_for(causal("llama", rope_parameters=more), CPU)


def test_the_refusal_is_a_spec_error_that_names_the_other_back_end(tmp_path):
    folder = make_model(tmp_path / "m")
    loaded = load(resolve(str(folder)), CPU, Dtype.FP32)
    loaded.model.config.rope_parameters["rope_type"] = "dynamic"
    with pytest.raises(SpecError, match="choose the transformers back end") as error:
        IsoquantBackend({None: loaded}, Layout(Plan(2, 64), 50))
    assert error.value.field == "runtime.backend"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_closing_leaves_the_model_as_it_was_found(native, attention):
    model = causal("llama", attention=attention)
    before, wanted = plain(model, text(30)), greedy(model, text(30))
    names = [set(vars(m)) for m in model.modules()]
    run(model, [row(text(30))], way=ANY if native else UNFUSED)
    assert model.config._attn_implementation == attention
    assert [set(vars(m)) for m in model.modules()] == names
    assert torch.equal(plain(model, text(30)), before)
    assert greedy(model, text(30)) == wanted


@needs_kernels
def test_a_model_whose_layers_are_not_quite_the_familys_takes_its_own_modules():
    model = causal("llama", hidden_act="gelu")
    assert not native_runner.serves(model, CPU)
    biased = causal("llama", mlp_bias=True)
    assert not native_runner.serves(biased, CPU)
    assert ids(run(biased, [row(text(20))])) == [greedy(causal("llama", mlp_bias=True), text(20))]
    assert native_runner.serves(causal("llama", attention_bias=True), CPU)


@needs_kernels
def test_a_head_of_odd_width_is_gathered():
    model = causal("gpt2", hidden_size=36, n_embd=36)
    wanted = greedy(model, text(20))
    made = batcher(model)
    assert made.runner.name == "paged, gathered"
    assert ids(drain(made, [row(text(20))])) == [wanted]


class Watch(TorchDispatchMode):
    """Notes operations that wait for the device, or whose result's size depends on values."""

    bad = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "unique", "_unique2", "masked_select")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def fixed(monkeypatch):
    """Decoding steps in arrays of fixed sizes, as on a GPU; the sizes that occurred."""
    sizes = []

    class Runner(module_runner.ModuleRunner):
        def __init__(self, *given, **more):
            super().__init__(*given, fixed=True, **more)

        def allocate(self, *given):
            super().allocate(*given)
            for tensor in (*self._kv.keys, *self._kv.values):
                tensor.fill_(float("nan"))

        def _decode(self, step):
            sizes.append((step.size, step.width))
            return super()._decode(step)

    monkeypatch.setattr(support, "ModuleRunner", Runner)
    return sizes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gpt_oss", "qwen3", "mistral", "cohere2", "phi"])
def test_padded_steps_give_the_text_of_generate(architecture, expected, fixed):
    """Five sequences in six rows that end one by one, in a cache full of NaN; the sixth row belongs to nobody."""
    made = batcher(known(architecture), batch_size=5, blocks=40, way=PLAIN)
    limits = (16, 4, 9, 16, 12, 16)
    rows = [row(c, n, order=(i,)) for i, (c, n) in enumerate(zip(CONTEXTS, limits, strict=True))]
    try:
        found = drain(made, rows)
    finally:
        made.close()
    assert ids(found) == [e[:n] for e, n in zip(expected(architecture), limits, strict=True)]
    assert {size for size, _ in fixed} > {6, 4}
    assert {width for _, width in fixed} == {4}


def test_a_width_grows_with_the_longest_sequence(fixed):
    made = batcher(known("llama"), batch_size=2, blocks=40, way=PLAIN)
    contexts = (text(60), text(40))
    try:
        found = drain(made, [row(c, 12) for c in contexts])
    finally:
        made.close()
    assert ids(found) == [greedy(known("llama"), c, 12) for c in contexts]
    assert {(2, 4), (2, 6)} <= set(fixed)
    assert {width for _, width in fixed} == {4, 6}


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gpt_oss", "qwen3", "mistral"])
def test_a_decoding_step_never_waits_for_the_device(architecture, padding, monkeypatch, request):
    if padding:
        request.getfixturevalue("fixed")
    model = causal(architecture)
    model.config.pad_token_id = None  # with one, transformers' GPT-2 looks for it in every batch, to warn
    made = batcher(model, way=PLAIN)
    made.submit([row(c, 20) for c in (text(5), text(20))])
    made.step(lambda tokens: None)
    forward, watches = type(model).forward, []

    def watched(self, *args, **kwargs):
        with Watch() as watch:
            watches.append(watch)
            return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", watched)
    made.step(lambda tokens: None)
    made.close()
    assert len(watches) == 1
    assert len(watches[0].seen) > 20, "the watch saw nothing"
    assert not set(watches[0].seen) & set(Watch.bad)


@pytest.mark.parametrize("path", [pytest.param("forward", marks=needs_kernels), "modules"])
def test_the_greedy_token_is_the_first_of_the_highest_scores(path):
    """A vocabulary whose second half has the weights of its first ties every score with another."""
    model = causal("llama", seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        half = len(weight) // 2
        weight[half : 2 * half] = weight[:half]
    runner = runner_for(model, CPU, ANY if path == "forward" else UNFUSED)
    runner.allocate(4)
    rows = np.arange(40, dtype=np.int32)
    tables = np.arange(4, dtype=np.int32)[None]
    batch = Batch(np.array(text(40), dtype=np.int32), rows, np.zeros(40, dtype=np.int32), tables, rows[3::2].copy())
    best = runner.greedy(batch)
    assert best == runner.logits(batch).numpy().argmax(-1).tolist()
    assert max(best) < half
    assert len(set(best)) > 3
    runner.close()


@needs_kernels
def test_gates_far_from_zero_are_closed_or_open():
    """exp(-gate) leaves the numbers of fp32 at a gate of -89."""
    model = causal("llama", seed=4)
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.mlp.gate_proj.weight.mul_(400)
    runner = runner_for(model, CPU)
    assert runner.name == "paged, native forward"
    gates = []
    model.base_model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, i, o: gates.append(o))
    expected = plain(model, text(30))
    assert gates[0].min() < -120
    assert gates[0].max() > 120
    runner.allocate(2)
    rows = np.arange(30, dtype=np.int32)
    batch = Batch(np.array(text(30), dtype=np.int32), rows, np.zeros_like(rows), rows[None, :2].copy(), rows)
    found = runner.logits(batch)
    assert (found - expected).abs().max() < 1e-3 * expected.std()
    runner.close()


@needs_kernels
def test_what_is_chosen_is_what_runs():
    model = known("llama")
    names = {}
    for way in (PLAIN, UNFUSED, Way(attention=Attention.NATIVE), Way(fusion=Fusion.KERNELS)):
        runner = runner_for(model, CPU, way)
        names[way] = runner.name
        runner.close()
    assert list(names.values()) == ["paged, gathered", "paged, native kernel", *["paged, native forward"] * 2]


@pytest.mark.parametrize(
    ("architecture", "way", "words"),
    [
        ("gpt2", Way(fusion=Fusion.KERNELS), "runs the Llama family"),
        ("llama", Way(attention=Attention.TRITON), "needs an NVIDIA GPU"),
        ("gpt2", Way(fusion=Fusion.KERNELS, kv_cache=KvDtype.INT8), "runs the Llama family"),
    ],
)
def test_a_choice_that_does_not_serve_the_model_is_refused(architecture, way, words):
    model = known(architecture)
    before = model.config._attn_implementation
    with pytest.raises(Unsupported, match=words):
        runner_for(model, CPU, way)
    assert model.config._attn_implementation == before
    loaded = load(resolve("lab-xs"), CPU, Dtype.FP32)
    if way.attention is Attention.TRITON:
        with pytest.raises(SpecError, match="leave attention, fusion and KV cache at auto"):
            IsoquantBackend({None: loaded}, Layout(Plan(2, 64), 50, way=way))


@pytest.mark.parametrize("kind", [KvDtype.INT8, KvDtype.FP8])
@pytest.mark.parametrize(
    ("architecture", "attention", "name"),
    [
        ("gemma2", Attention.PLAIN, "gathered"),
        pytest.param("gemma2", Attention.AUTO, "native kernel", marks=needs_kernels),
        pytest.param("llama", Attention.AUTO, "native forward", marks=needs_kernels),
    ],
)
def test_a_cache_of_one_byte_is_smaller_and_nearly_exact(kind, architecture, attention, name):
    model = known(architecture)
    exact = runner_for(model, CPU, PLAIN)
    rows = np.arange(40, dtype=np.int32)
    batch = Batch(np.array(text(40), dtype=np.int32), rows, np.zeros_like(rows), rows[None, :4].copy(), rows)
    exact.allocate(8)
    expected = exact.logits(batch).clone()
    exact.close()
    small = runner_for(model, CPU, Way(attention=attention, kv_cache=kind))
    assert small.name == f"paged, {name}, {kind} cache"
    # Heads of 16 numbers: a byte each instead of four, and four bytes for their scale.
    assert small.block_bytes * 4 * 16 == exact.block_bytes * (16 + 4)
    small.allocate(8)
    for tensor in (*small._kv.key_scales, *small._kv.value_scales):
        tensor.fill_(float("nan"))
    whole = small.logits(batch).clone()
    error = (whole - expected).norm() / expected.norm()
    assert 1e-4 < error < {KvDtype.INT8: 0.02, KvDtype.FP8: 0.08}[kind]
    # Copied blocks carry their scales along.
    small.copy([(0, 4), (1, 5), (2, 6)])
    last = Batch(batch.tokens[39:], rows[39:], rows[:1], np.array([[4, 5, 6, 7]], dtype=np.int32), rows[:1])
    assert torch.allclose(small.logits(last)[0], whole[39], atol=1e-4)
    small.close()


def test_a_reason_against_recording_outlives_the_trial(fixed):
    runner = runner_for(known("llama"), CPU, PLAIN)
    runner._graphs.reason = "it waits"
    runner.allocate(3)
    assert runner._graphs.reason == "it waits"
    rows = np.zeros(1, dtype=np.int32)
    fixed.clear()
    runner.logits(Batch(rows, rows, rows, rows[None], rows))
    assert not fixed
    runner.close()


def test_those_that_write_go_before_pieces_where_a_batch_is_padded(fixed):
    made = batcher(known("llama"), batch_size=3, budget=64, way=PLAIN)
    try:
        made.submit([row(text(5), 20, (0,)), row(text(9), 20, (1,))])
        made.step(lambda tokens: None)
        made.submit([row(text(40), 20, (2,))])
        made.seen.clear()
        made.step(lambda tokens: None)
        assert [batch.m for batch in made.seen] == [2, 40]
    finally:
        made.close()


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_kernels), False])
def test_rounding_in_a_deep_model_is_no_reason_to_refuse_it(native):
    model = causal("qwen2", num_hidden_layers=32, vocab_size=2000).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 1.2 * parameter.shape[-1] ** -0.5)
    runner = runner_for(model, CPU, ANY if native else UNFUSED)
    assert runner.name == ("paged, native forward" if native else "paged, native kernel")
    runner.close()
