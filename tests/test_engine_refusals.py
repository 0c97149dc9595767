"""A run that this machine cannot do as asked is refused before a model is loaded."""

import pytest

from engine import refusals
from engine.models import ModelHost
from engine.run import execute
from kernels.dispatch import Machine
from spec.errors import SpecError
from spec.recipe import parse_recipe
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec


class NoHost(ModelHost):
    def get(self, spec):
        raise AssertionError("a model was loaded")


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (RunSpec("lab-xs", runtime=Runtime(attention="triton")), "runtime.attention", "Attention triton cannot run"),
        (RunSpec("lab-xs", runtime=Runtime(graphs="on")), "runtime.graphs", "CUDA graphs on cannot run"),
        (
            RunSpec("lab-xs", Precision(kv_cache="int8"), Runtime(attention="plain", fusion="kernels")),
            "runtime.fusion",
            "Fusion kernels cannot run",
        ),
    ],
)
def test_a_run_is_refused_before_loading(monkeypatch, spec, field, words):
    monkeypatch.setattr(refusals, "machine", lambda device: Machine())
    with pytest.raises(SpecError, match=words) as caught:
        execute(spec, host=NoHost())
    assert caught.value.field == field


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False), (None, False)])
def test_fp8_weights_need_a_gpu_that_has_fp8(monkeypatch, capability, refused):
    monkeypatch.setattr(refusals, "machine", lambda device: Machine(capability, "3.6.0"))
    spec = RunSpec("lab-xs", compression=parse_recipe("fp8"))
    if not refused:
        refusals.check(spec)
        return
    with pytest.raises(SpecError, match=r"8\.9") as caught:
        refusals.check(spec)
    assert caught.value.field == "compression"


def test_heads_that_are_too_wide_are_seen_in_the_config(monkeypatch, tmp_path):
    monkeypatch.setattr(refusals, "machine", lambda device: Machine((9, 0), "3.6.0"))
    spec = RunSpec("shape:llama-3.1-8b", runtime=Runtime(attention="triton"), task=TaskSpec(limit=1))
    refusals.check(spec)
    monkeypatch.setattr(refusals, "_head_dim", lambda ref: 512)
    with pytest.raises(SpecError, match="512 wide"):
        refusals.check(spec)


def test_the_width_of_a_head_is_read_from_any_config():
    from engine.catalog import resolve

    assert refusals._head_dim(resolve("shape:llama-3.1-8b")) == 128
    assert refusals._head_dim(resolve("shape:qwen2.5-0.5b")) == 64


@pytest.mark.parametrize(("field", "word"), [("attention", "triton"), ("graphs", "on"), ("attention", "flex")])
def test_the_form_gets_the_same_reasons(monkeypatch, field, word):
    monkeypatch.setattr(refusals, "machine", lambda device: Machine())
    assert "NVIDIA" in refusals.reason(field, word, "auto")
    monkeypatch.setattr(refusals, "machine", lambda device: Machine((9, 0), "3.6.0"))
    assert refusals.reason(field, word, "auto") is None
