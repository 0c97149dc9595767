"""A model that another library has quantized, as it comes: run, measured as it runs, and not compressed again."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.catalog import resolve
from engine.recipes import check_recipe
from engine.run import execute
from spec.errors import SpecError
from spec.recipe import parse_recipe
from spec.run_spec import RunSpec, Runtime, TaskSpec
from tests.tiny import LetterTask, make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model, and the same with the matrices of its layers in int8 as compressed-tensors writes them."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    folder = tmp_path_factory.mktemp("models")
    whole = make_model(folder / "whole", hidden_size=64, intermediate_size=96)
    model = AutoModelForCausalLM.from_pretrained(whole)
    weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="int-quantized", quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data.copy_(module.weight.abs().amax(1, keepdim=True) / 127)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="int-quantized")
    compressor.compress_model(model)
    model.save_pretrained(folder / "int8")
    compressor.update_config(str(folder / "int8"))
    for file in whole.glob("tokenizer*"):
        shutil.copy(file, folder / "int8" / file.name)
    return whole, folder / "int8"


def run(folder, **runtime):
    spec = RunSpec(str(folder), runtime=Runtime(device="cpu", batch_size=4, **runtime), task=TaskSpec("lab-words"))
    events = []
    result = execute(spec, events.append, task=LetterTask())
    return result, {e.answer.problem_id: e.answer.candidates[0].text for e in events if hasattr(e, "answer")}


def test_it_runs_as_it_came_and_is_measured_as_it_runs(models):
    whole, quantized = models
    assert (quantized / "model.safetensors").stat().st_size < 0.5 * (whole / "model.safetensors").stat().st_size
    result, texts = run(quantized)
    assert result.environment["attention"].startswith("paged")
    assert texts == run(quantized, backend="transformers")[1]
    # The library has no low-bit products here and unpacks the weights, so nothing may be said to be saved.
    assert 1.0 <= result.measures["weights_bytes"] / run(whole)[0].measures["weights_bytes"] < 1.05
    assert any("quantized by compressed-tensors, which has unpacked its weights" in note for note in result.notes)


def test_it_computes_what_its_rounded_weights_say(models):
    whole, quantized = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in models)
    tokens = torch.arange(1, 9)[None]
    with torch.inference_mode():
        expected, found = whole(tokens).logits, quantized(tokens).logits
    assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.06


def test_it_is_not_compressed_again(models):
    with pytest.raises(SpecError, match=r"quantized already \(compressed-tensors\)"):
        check_recipe(resolve(str(models[1])), parse_recipe("int4"))
