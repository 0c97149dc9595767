"""Runs of compressed models: what is prepared, loaded, measured and said."""

import pytest
import torch

from engine import artifacts
from engine.catalog import resolve
from engine.measure.flops import model_shape
from engine.models import ModelHost, load
from engine.recipes import check_recipe
from engine.run import execute
from kernels.native import build
from spec.choices import Dtype
from spec.errors import Cancelled, ModelError, SpecError
from spec.measures import MEASURES, Group
from spec.recipe import parse_recipe
from spec.results import Phase
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from tests.tiny import LetterTask, make_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path):
    return str(make_model(tmp_path / "m", hidden_size=64, intermediate_size=96))


def run(model, recipe="", host=None, strategy="greedy", **runtime):
    spec = RunSpec(
        model, runtime=Runtime(device="cpu", batch_size=4, **runtime), task=TaskSpec("lab-words"),
        compression=parse_recipe(recipe), strategy=parse_strategy(strategy),
    )  # fmt: skip
    events = []
    result = execute(spec, events.append, host=host, task=LetterTask())
    texts = {e.answer.problem_id: e.answer.candidates[0].text for e in events if hasattr(e, "answer")}
    return result, texts, [e for e in events if isinstance(e, Phase)]


def test_a_run_prepares_what_is_missing_once_and_measures_that(model):
    result, texts, phases = run(model, "int8")
    assert "compress" in [p.name for p in phases]
    (made,), damaged = artifacts.all_artifacts()
    assert not damaged
    environment = result.environment
    assert (environment["artifact"], environment["compression"]) == (made.id, "int8")
    assert environment["model_fingerprint"] == made.id
    assert environment["parent_fingerprint"] == made.parent_fingerprint
    assert result.measures["weights_bytes"] == made.bytes < made.parent_bytes
    assert result.measures["logit_kl"] == made.errors["logit_kl"] > 0
    assert result.measures["top1_agreement"] == made.errors["top1_agreement"]
    _, same, phases = run(model, "int8")
    assert same == texts
    assert "compress" not in [p.name for p in phases if p.detail.startswith("Rounding")]
    assert len(artifacts.all_artifacts()[0]) == 1


def test_an_uncompressed_run_has_no_errors_against_a_parent_and_says_why(model):
    result, _, _ = run(model)
    assert result.measures["logit_kl"] is None
    assert result.reasons["logit_kl"] == "the model is not compressed"


def test_one_host_keeps_recipes_apart(model):
    host = ModelHost()
    found = {recipe: run(model, recipe, host)[0].measures["weights_bytes"] for recipe in ("", "int8", "", "nf4")}
    assert found[""] > found["int8"] > found["nf4"]
    assert run(model, "", host)[0].environment["artifact"] is None


@pytest.mark.parametrize("recipe", ["int4:group=32", "prune:structure=neurons,level=0.5+int8", "lowrank:ratio=0.3"])
def test_both_back_ends_write_the_same(model, recipe):
    assert run(model, recipe)[1] == run(model, recipe, backend="transformers")[1]


@pytest.mark.parametrize(("structure", "step"), [("heads", "+int8"), ("neurons", ""), ("layers", "+int8")])
def test_what_pruning_leaves_serves_every_kind_of_decoding(tmp_path, structure, step):
    model = str(make_model(tmp_path / "m", hidden_size=64, intermediate_size=96, num_hidden_layers=4))
    recipe, host = f"prune:structure={structure},method=taylor,level=0.5{step}", ModelHost()
    written = run(model, recipe, host)[1]
    for strategy in (f"speculative:draft={model}", "lookup", "early-exit:threshold=1.0"):
        assert run(model, recipe, host, strategy)[1] == written, strategy
    for strategy in ("early-exit:threshold=0.2", "majority:n=3", "beam:width=3"):
        assert run(model, recipe, host, strategy)[0].measures["tokens_generated"] > 0, strategy


def test_what_is_only_simulated_has_answers_and_no_speed(model, monkeypatch):
    monkeypatch.setenv("ISOQUANT_NATIVE", "0")
    build.library.cache_clear()
    try:
        result, _, _ = run(model, "nf4")
    finally:
        monkeypatch.delenv("ISOQUANT_NATIVE")
        build.library.cache_clear()
    assert "dequantized in each call" in result.environment["simulated"]
    assert result.measures["accuracy"] is not None
    assert result.measures["tokens_generated"] > 0
    for measure in MEASURES.values():
        if measure.group in (Group.TIME, Group.ENERGY) and measure.name != "load_s":
            assert result.measures[measure.name] is None, measure.name
            assert "simulated" in result.reasons[measure.name]
    assert not result.samples
    assert any("no time, rate or energy" in note for note in result.notes)


def test_zeros_are_said_to_save_nothing(model):
    result, _, _ = run(model, "prune:level=0.5")
    assert any("50% of the weights" in note for note in result.notes)


def test_parameters_are_those_that_are_left(model):
    ref = resolve(model)
    whole = load(ref, CPU, Dtype.FP32)
    run(model, "int8")
    run(model, "prune:structure=neurons,level=0.34")
    quantized = load(ref, CPU, Dtype.FP32, recipe=parse_recipe("int8"))
    pruned = load(ref, CPU, Dtype.FP32, recipe=parse_recipe("prune:structure=neurons,level=0.34"))
    assert quantized.shape == whole.shape == model_shape(whole.model)
    neurons = 32 * 3 * 64 * len(whole.model.model.layers)
    assert whole.shape.parameters - pruned.shape.parameters == neurons
    assert whole.shape.active_parameters - pruned.shape.active_parameters == neurons
    assert pruned.simulated is None


def test_random_weights_are_compressed_as_they_are_made():
    loaded = load(resolve("shape:pythia-410m"), CPU, Dtype.BF16, recipe=parse_recipe("int8"))
    assert loaded.artifact is None
    assert loaded.recipe == "int8"
    assert loaded.weights_bytes < 0.6 * resolve("shape:pythia-410m").sizes.weights_bytes("bf16")
    assert not artifacts.all_artifacts()[0]


def test_random_weights_say_how_far_they_are_and_can_be_stopped():
    spec = RunSpec("shape:pythia-410m", compression=parse_recipe("calibrate:samples=2,tokens=16+int8-static"))
    said = []

    def stop():
        return any(p.name == "compress" for p in said)

    with pytest.raises(Cancelled):
        execute(spec, lambda e: isinstance(e, Phase) and said.append(e), cancelled=stop, task=LetterTask())
    assert said[-1].name == "compress"
    assert said[-1].detail


@pytest.mark.parametrize("recipe", ["recover", "qat+int4", "prune:recover=3", "distill:teacher=lab-m"])
def test_random_weights_are_not_trained(recipe):
    with pytest.raises(SpecError, match="choose a model with weights"):
        check_recipe(resolve("shape:pythia-410m"), parse_recipe(recipe))


def test_zeros_in_random_weights_are_said_too():
    spec = RunSpec("shape:pythia-410m", compression=parse_recipe("prune:level=0.5"), task=TaskSpec(limit=1))
    assert any("50% of the weights" in note for note in execute(spec, task=LetterTask()).notes)


def test_the_folder_of_a_prepared_model_says_how_it_runs(model):
    run(model, "int8")
    (made,), _ = artifacts.all_artifacts()
    with pytest.raises(
        ModelError, match=r"is a prepared model, which runs by its recipe: --model .* --recipe \"int8\""
    ):
        run(str(made.path))


def test_the_only_key_value_head_stays(tmp_path):
    ref = resolve(str(make_model(tmp_path / "one", num_key_value_heads=1)))
    with pytest.raises(SpecError, match="one key/value head in each layer, and none can go"):
        check_recipe(ref, parse_recipe("prune:structure=heads,level=0.5"))


def test_a_cancelled_preparation_leaves_no_model(model):
    spec = RunSpec(model, runtime=Runtime(device="cpu"), compression=parse_recipe("recover:steps=9999"))
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 20

    with pytest.raises(Cancelled):
        execute(spec, cancelled=stop, task=LetterTask())
    assert not artifacts.all_artifacts()[0]


def test_a_server_and_a_recipe_exclude_each_other():
    with pytest.raises(SpecError, match="server"):
        RunSpec("m", runtime=Runtime("openai:http://localhost:1/v1"), compression=parse_recipe("int8"))
