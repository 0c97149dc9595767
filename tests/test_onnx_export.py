"""The back end onnxruntime: the same text as transformers', an export that is whole or not there, refusals in words."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from engine import refusals
from engine.backends.onnxruntime import OnnxBackend
from engine.backends.rows import Row
from engine.backends.transformers import TransformersBackend
from engine.catalog import resolve
from engine.devices import pick_device
from engine.models import ModelHost, load
from engine.onnx import child, making, packages
from engine.onnx.artifact import GRAPH, MANIFEST, REFERENCE, WEIGHTS, Artifact
from engine.onnx.checking import allowed, difference
from engine.onnx.loading import load_onnx
from engine.onnx.session import OnnxModel
from engine.run import execute
from engine.sampling import Sampling, stream_key
from spec.choices import Dtype
from spec.errors import Cancelled, DoesNotFitError, ModelError, SpecError, StoreError
from spec.recipe import Recipe, parse_recipe
from spec.results import Phase
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from tests import tiny
from tests.tiny import CONTEXT, LetterTask, TextTask, make_model

CPU = pick_device("cpu")
PROMPTS = ["Question 1\nAnswer:", "Q", "What is 2 + 2, and why is it so? Say it slowly. " * 2, "abc abc abc"]
FEW = [
    pytest.param("llama"),
    *(pytest.param(a, marks=pytest.mark.slow) for a in ("gpt2", "gpt_neox", "qwen2", "mistral")),
]
FEW += [pytest.param(a, marks=pytest.mark.slow) for a in ("qwen3", "smollm3")]
MORE = tiny._SMALL | {"intermediate_size": 64, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(architecture, recipe) -> (torch model, ONNX model), both loaded; the export is made here, once."""
    made = {}

    def get(architecture="llama", recipe="", dtype=Dtype.FP32):
        key = (architecture, recipe, dtype)
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ISOQUANT_HOME", str(tmp_path_factory.mktemp("home")))
                patch.setitem(tiny.ARCHITECTURES, "qwen3", MORE | {"head_dim": 8})
                patch.setitem(tiny.ARCHITECTURES, "smollm3", MORE)
                patch.setitem(
                    tiny.ARCHITECTURES, "granite", MORE | {"logits_scaling": 4.0, "tie_word_embeddings": True}
                )
                ref = resolve(str(make_model(tmp_path_factory.mktemp("model"), architecture)))
                patch.setattr(making, "in_a_process", child.make)
                onnx = load_onnx(ref, CPU, dtype, parse_recipe(recipe), making.never, lambda text: None)
            made[key] = load(ref, CPU, dtype), onnx
        return made[key]

    return get


def quiet(tokens):
    """Nothing to do between steps."""


def extend(backend, rows, on_step=quiet):
    backend.submit(rows)
    found = dict(backend.step(on_step))
    assert not backend.busy
    return [replace(found[r].extension, seconds=0.0, logprobs=()) for r in rows]


def rows_of(loaded, prompts=PROMPTS, limit=16, sampling=None, **more):
    encode = loaded.tokenizer.encode
    return [Row(tuple(encode(p)), limit, sampling, stream_key(0, 0, p, 0), 0, (), **more) for p in prompts]


@pytest.mark.parametrize("recipe", ["int8:head=keep", "int8"])
def test_an_output_layer_whose_scores_are_scaled_is_known_as_one(exported, recipe):
    loaded, onnx = exported("granite", recipe)  # the export compares the two, and refuses what differs
    assert loaded.model.config.logits_scaling == 4.0
    assert extend(OnnxBackend(onnx, 64), rows_of(loaded, ["abc"], 4))


@pytest.mark.parametrize("architecture", FEW)
def test_texts_are_those_of_transformers(exported, architecture):
    loaded, onnx = exported(architecture)
    other, mine = TransformersBackend(loaded, 64), OnnxBackend(onnx, 64)
    rows = rows_of(loaded, limit=24)
    assert extend(mine, rows) == extend(other, rows)
    drawn = rows_of(loaded, limit=24, sampling=Sampling(0.9, top_k=20, top_p=0.95, repetition_penalty=1.2))
    together = extend(mine, drawn)
    assert together == extend(other, drawn)
    assert len({e.text for e in together}) == len(drawn)
    drawn = rows_of(loaded, limit=24, sampling=Sampling(1.1, min_p=0.02))
    together = extend(mine, drawn)
    assert together == [e for r in drawn for e in extend(mine, [r])], "a seed means the same at any batch size"


@pytest.mark.parametrize("architecture", FEW)
def test_no_row_is_pushed_past_the_context(exported, architecture):
    loaded, onnx = exported(architecture)
    rows = [*rows_of(loaded, ["x" * (CONTEXT - 3)], 3), *rows_of(loaded, ["short"], 40)]
    alone = extend(OnnxBackend(onnx, 64), rows[1:])
    assert extend(OnnxBackend(onnx, 64), rows)[1:] == alone


def test_counts_times_and_likelihoods_are_those_of_transformers(exported):
    loaded, onnx = exported()
    found = []
    for backend in (TransformersBackend(loaded, 64), OnnxBackend(onnx, 64)):
        told = []
        rows = rows_of(loaded, logprobs=True)
        backend.submit(rows)
        grown = dict(backend.step(told.append))
        assert all(g.started_s < g.token_s[0] and sorted(g.token_s) == list(g.token_s) for g in grown.values())
        found.append((told, backend.kv_bytes_peak, [grown[r].spans for r in rows], [grown[r] for r in rows]))
    (told, kv, spans, theirs), (my_told, my_kv, my_spans, mine) = found
    assert (my_told, my_kv, my_spans) == (told, kv, spans)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.extension.logprobs, b.extension.logprobs, atol=1e-4)


def test_likely_next_tokens(exported):
    loaded, onnx = exported()
    rows = [replace(r, peek=3, limit=0) for r in rows_of(loaded)]
    for backend in (mine := OnnxBackend(onnx, 64), other := TransformersBackend(loaded, 64)):
        backend.submit(rows)
    a, b = (dict(backend.step(quiet)) for backend in (mine, other))
    assert [[t for t, _ in a[r].choices] for r in rows] == [[t for t, _ in b[r].choices] for r in rows]


def test_the_session_is_checked_and_says_what_it_is(exported):
    loaded, onnx = exported()
    assert onnx.attention == "ONNX Runtime, CPU"
    assert onnx.facts["onnx_difference"] < 1e-5
    assert onnx.facts["onnx_provider"] == "CPUExecutionProvider"
    # The output layer of so small a model is in the graph twice, for the embedding reads it the other way round.
    assert loaded.weights_bytes <= onnx.weights_bytes < 1.2 * loaded.weights_bytes


@pytest.mark.parametrize(
    "recipe", ["int8", *(pytest.param(r, marks=pytest.mark.slow) for r in ("int8-dynamic", "int4"))]
)
def test_recipes_end_to_end(exported, recipe):
    loaded, onnx = exported(recipe=recipe)
    assert onnx.facts["onnx_difference"] < allowed("fp32", recipe)
    assert onnx.weights_bytes < 0.5 * loaded.weights_bytes
    assert "embedding tied" in onnx.facts["onnx_quantized"]
    assert all(e.ids for e in extend(OnnxBackend(onnx, 64), rows_of(loaded)))


@pytest.mark.slow
def test_fp16(exported):
    loaded, onnx = exported(dtype=Dtype.FP16)
    assert onnx.weights_bytes < 1.2 * loaded.weights_bytes
    assert onnx.facts["onnx_difference"] < 0.01
    assert all(e.ids for e in extend(OnnxBackend(onnx, 64), rows_of(loaded)))


def test_a_run_of_a_recipe_says_that_nothing_was_compared(exported, monkeypatch):
    loaded, onnx = exported()
    monkeypatch.setenv("ISOQUANT_HOME", str(onnx.model.artifact.folder.parents[1]))
    runtime = Runtime(backend="onnxruntime", device="cpu", batch_size=3)
    spec = RunSpec(loaded.name, Precision("fp32"), runtime, compression=parse_recipe("int8"))
    for name in ("logit_kl", "top1_agreement"):
        assert "ONNX export is not compared" in execute(spec, task=LetterTask()).reasons[name]


def test_a_run_and_a_text_end_to_end(exported, tmp_path, monkeypatch):
    loaded, onnx = exported()
    monkeypatch.setenv("ISOQUANT_HOME", str(onnx.model.artifact.folder.parents[1]))
    runs = {}
    for backend in ("transformers", "onnxruntime"):
        spec = RunSpec(loaded.name, Precision("fp32"), Runtime(backend=backend, device="cpu", batch_size=3))
        runs[backend] = execute(spec, task=LetterTask()), execute(spec, task=TextTask("Ada has 12 apples. " * 20))
    (theirs, their_text), (mine, my_text) = runs["transformers"], runs["onnxruntime"]
    for name in ("flops_total", "kv_bytes_peak", "tokens_generated", "n_correct"):
        assert mine.measures[name] == theirs.measures[name], name
    assert my_text.measures["perplexity_token"] == pytest.approx(their_text.measures["perplexity_token"], rel=1e-4)
    for result in (mine, my_text):
        assert result.environment["backend"] == "onnxruntime"
        assert result.environment["onnx_opset"] == 23
    json.dumps(mine.environment)


def test_a_cancel_between_steps_ends_the_batch_at_once(exported):
    loaded, onnx = exported()
    steps = []

    def stop(tokens):
        steps.append(tokens)
        if len(steps) == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        extend(OnnxBackend(onnx, 64), rows_of(loaded, limit=50), stop)
    assert len(steps) == 3


def test_running_out_of_memory_names_a_batch_size(exported, monkeypatch):
    loaded, onnx = exported()
    backend = OnnxBackend(onnx, 64)

    def fail(*args):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 123")

    session = onnx.model._session
    monkeypatch.setattr(
        onnx.model, "_session", type("S", (), {"io_binding": session.io_binding, "run_with_iobinding": fail})()
    )
    with pytest.raises(DoesNotFitError, match="try batch size 2"):
        extend(backend, rows_of(loaded))


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, REFERENCE, MANIFEST])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_artifact_is_not_run(exported, tmp_path, name, how):
    _, onnx = exported()
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in onnx.model.artifact.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert Artifact.read(folder).fingerprint == onnx.fingerprint
    data = bytearray((folder / name).read_bytes())
    if how == "gone":
        (folder / name).unlink()
    else:
        data[len(data) // 2] ^= 0x84
        (folder / name).write_bytes(data if how == "flipped" else data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"damaged: .* Delete that folder"):
        Artifact.read(folder)


def test_what_computes_something_else_is_not_run(exported):
    _, onnx = exported()
    known = dict(np.load(onnx.model.artifact.folder / REFERENCE))
    assert difference(onnx.model, known) < 1e-5
    assert difference(onnx.model, known | {"scores": np.roll(known["scores"], 1, 0)}) > 0.5
    assert difference(onnx.model, known | {"ids": np.roll(known["ids"], 1)}) > 0.5


class Faking:
    """Stands in for the exporting process."""

    def __init__(self, source, error=None, wait_s=0.0):
        self.source, self.error, self.wait_s, self.calls = source, error, wait_s, 0

    def __call__(self, order, cancelled):
        from pathlib import Path

        self.calls += 1
        folder = Path(order["folder"])
        (folder / GRAPH).write_bytes(b"half")
        if self.error:
            raise self.error
        time.sleep(self.wait_s)
        for file in self.source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def there(exported, tmp_path, monkeypatch):
    """(ref, folder of a good artifact) with an empty home."""
    _, onnx = exported()
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    return resolve(onnx.name), onnx.model.artifact.folder


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_leaves_nothing_behind(there, number):
    ref, source = there
    with pytest.raises(StoreError, match="disk is full" if number == errno.ENOSPC else "another folder"):
        making.ensure(ref, Dtype.FP32, Recipe(), make=Faking(source, OSError(number, os.strerror(number))))
    home = making.kept(ref, Dtype.FP32, Recipe()).parent
    assert [f.name for f in home.iterdir() if not f.name.endswith(".lock")] == []
    assert making.ensure(ref, Dtype.FP32, Recipe(), make=Faking(source)).dtype == "fp32"


def test_what_a_killed_export_left_is_cleared(there):
    ref, source = there
    folder = making.kept(ref, Dtype.FP32, Recipe())
    left = folder.parent / f".{folder.name}-left"
    left.mkdir(parents=True)
    (left / WEIGHTS).write_bytes(b"half")
    making.ensure(ref, Dtype.FP32, Recipe(), make=Faking(source))
    assert not left.exists()


def test_a_recipe_is_applied_to_the_graph_that_is_there(there):
    ref, source = there
    making.ensure(ref, Dtype.FP32, Recipe(), make=Faking(source))
    orders = []

    def make(order, cancelled):
        orders.append(order)
        child.make(order)

    found = making.ensure(ref, Dtype.FP32, parse_recipe("int8:head=keep"), make=make)
    assert orders[0]["graph"].endswith(GRAPH)
    assert "the output layer is not" in found.quantized
    assert difference(OnnxModel(found, CPU, 1), dict(np.load(found.folder / REFERENCE))) < 1e-3


def test_too_little_room_is_said_before_anything_is_made(there, monkeypatch):
    ref, source = there
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000})())
    make = Faking(source)
    with pytest.raises(StoreError, match="free some space"):
        making.ensure(ref, Dtype.FP32, Recipe(), make=make)
    assert make.calls == 0


def test_two_at_once_export_once(there):
    ref, source = there
    make, told, found = Faking(source, wait_s=0.5), [], []
    threads = [
        threading.Thread(
            target=lambda: found.append(making.ensure(ref, Dtype.FP32, Recipe(), tell=told.append, make=make))
        )
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert make.calls == 1
    assert len(found) == 3
    assert sum("Waiting" in t for t in told) == 2


def test_who_waits_can_be_cancelled(there):
    ref, source = there
    make = Faking(source, wait_s=1.0)
    first = threading.Thread(target=making.ensure, args=(ref, Dtype.FP32, Recipe()), kwargs={"make": make})
    first.start()
    while not make.calls:
        time.sleep(0.01)
    with pytest.raises(Cancelled):
        making.ensure(ref, Dtype.FP32, Recipe(), cancelled=lambda: True, make=make)
    first.join()
    assert make.calls == 1


def test_a_cancel_ends_the_exporting_process(there, monkeypatch):
    ref, _ = there
    started, asked = [], []
    popen = subprocess.Popen
    monkeypatch.setattr(making.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def cancelled():
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancelled):
        making.ensure(ref, Dtype.FP32, Recipe(), cancelled=cancelled)
    assert started[0].poll() is not None
    home = making.kept(ref, Dtype.FP32, Recipe()).parent
    assert [f.name for f in home.iterdir() if not f.name.endswith(".lock")] == []


def test_the_exporting_process_ends_with_its_parent():
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.onnx.child", json.dumps({"model": "shape:llama-3.1-8b", "dtype": "fp32"})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("said", "wrong", "code", "kind", "words"),
    [
        ('{"type": "ModelError", "message": "no such"}', "", 1, ModelError, "no such"),
        ('{"type": "DoesNotFitError", "message": "large"}', "", 1, DoesNotFitError, "large"),
        ('{"type": "OSError", "message": "full", "errno": 28}', "", 1, OSError, "full"),
        ("", "Traceback\nValueError: odd", 1, ModelError, "ValueError: odd"),
        ('{"type": "os", "message": ""}', "", 1, ModelError, "no word"),
        ("", "", -9, DoesNotFitError, "memory"),
    ],
)
def test_what_ended_the_exporting_process_is_told(said, wrong, code, kind, words):
    error = making._error(said, wrong, code)
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lab_model_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    host, phases, runs = ModelHost(), [], {}
    note = lambda e: phases.append(e.detail) if isinstance(e, Phase) else None  # noqa: E731
    for backend in ("transformers", "onnxruntime"):
        answers = {}
        spec = RunSpec("lab-xs", Precision("fp32"), Runtime(backend=backend, device="cpu"), task=TaskSpec(limit=20))

        def keep(event, answers=answers):
            if hasattr(event, "answer"):
                answers[event.answer.problem_id] = event.answer.candidates[0].text
            else:
                note(event)

        runs[backend] = execute(spec, keep, host=host), answers
    assert runs["onnxruntime"][1] == runs["transformers"][1]
    assert "Exporting lab-xs to ONNX" in phases
    phases.clear()
    execute(RunSpec("lab-xs", runtime=Runtime(backend="onnxruntime", device="cpu"), task=TaskSpec(limit=1)), note)
    assert "Exporting lab-xs to ONNX" not in phases, "auto is fp32 here, and it was found"


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (
            RunSpec("lab-xs", Precision("bf16"), Runtime(backend="onnxruntime")),
            "precision.weights",
            "no matrix product",
        ),
        (
            RunSpec("lab-xs", runtime=Runtime(backend="onnxruntime"), compression=parse_recipe("nf4")),
            "compression",
            "nf4",
        ),
        (
            RunSpec("lab-xs", runtime=Runtime(backend="onnxruntime"), strategy=parse_strategy("cascade:small=lab-s")),
            "runtime.backend",
            "asks several models",
        ),
    ],
)
def test_what_has_no_form_is_refused(spec, field, words):
    with pytest.raises(SpecError, match=words) as caught:
        refusals.check(spec)
    assert caught.value.field == field


def test_missing_packages_and_devices_are_named(monkeypatch):
    assert packages.reason() is None
    assert refusals.backend_reason("onnxruntime") is None
    assert packages.device_reason("cpu") is None
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else 1)
    assert refusals.backend_reason("onnxruntime").startswith("onnxruntime is not installed")
    with pytest.raises(SpecError, match="cannot run here: onnxruntime is not installed"):
        refusals.check(RunSpec("lab-xs", runtime=Runtime(backend="onnxruntime")))
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "CUDAExecutionProvider" in packages.device_reason("cuda")


def test_a_session_that_does_not_open_says_so(exported, tmp_path):
    _, onnx = exported()
    broken = replace(onnx.model.artifact, folder=tmp_path)
    (tmp_path / GRAPH).write_bytes(b"no graph")
    with pytest.raises(ModelError, match="does not run the model"):
        OnnxModel(broken, CPU, 1)


@pytest.mark.slow
def test_a_model_of_another_kind_is_refused():
    from engine.onnx.tracing import cache_layers

    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=1, vocab_size=90, state_size=4)
    from transformers import AutoModelForCausalLM

    with torch.no_grad(), pytest.raises(ModelError, match="choose the back end transformers"):
        cache_layers(AutoModelForCausalLM.from_config(config).eval())
