"""Estimates before a run: what they rest on, and that they move the right way."""

from dataclasses import replace

import pytest

from engine.predict import Fit, Past, Rates, predict
from spec.errors import SpecError
from spec.recipe import parse_recipe
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from tests.tiny import make_model, make_prm

RATES = Rates(flops=1e12, bytes_per_s=1e10, layer_s=1e-3)


def spec_of(strategy="greedy", model="shape:pythia-410m", batch_size=8, precision="bf16", **task):
    runtime = Runtime(batch_size=batch_size, device="cpu")
    return RunSpec(
        model, strategy=parse_strategy(strategy), runtime=runtime, precision=Precision(precision), task=TaskSpec(**task)
    )


def estimate(spec, problems=100, **more):
    more.setdefault("available_bytes", 10**12)
    return predict(spec, problems=problems, default_max_new_tokens=200, rates=RATES, **more)


def test_memory_is_weights_cache_and_overhead():
    e = estimate(spec_of(batch_size=16))
    assert e.weights_bytes == 405_334_016 * 2
    assert e.kv_bytes == 16 * (100 + 200) * 2 * 24 * 1024 * 2
    assert e.needed_bytes > e.weights_bytes + e.kv_bytes
    assert estimate(spec_of(precision="fp32")).weights_bytes == 405_334_016 * 4


@pytest.mark.parametrize(
    ("recipe", "kv_cache", "weights", "cache"),
    [
        ("int8", "auto", 0.5, 1.0),
        ("int4", "auto", 0.27, 1.0),
        ("prune:structure=layers,method=activation,level=0.5", "auto", 0.55, 0.5),
        ("prune:structure=heads,level=0.25", "auto", 0.925, 0.75),
        ("prune:structure=neurons,level=0.5+int8", "fp8", 0.325, 0.52),
    ],
)
def test_what_a_recipe_and_a_smaller_cache_leave(recipe, kv_cache, weights, cache):
    whole, spec = estimate(spec_of()), spec_of()
    spec = replace(spec, compression=parse_recipe(recipe), precision=Precision("bf16", kv_cache))
    found = estimate(spec)
    assert found.weights_bytes / whole.weights_bytes == pytest.approx(weights, abs=0.01)
    assert found.kv_bytes / whole.kv_bytes == pytest.approx(cache, abs=0.001)


def test_no_more_sequences_than_there_are():
    assert estimate(spec_of(batch_size=4096), problems=10).kv_bytes == estimate(spec_of(batch_size=10)).kv_bytes


@pytest.mark.parametrize(("available", "fit"), [(10**12, Fit.YES), (10**9, Fit.NO)])
def test_the_verdict(available, fit):
    assert estimate(spec_of(), available_bytes=available).fit is fit


def test_tight_is_when_only_long_answers_do_not_fit():
    e = estimate(spec_of(batch_size=64))
    assert estimate(spec_of(batch_size=64), available_bytes=e.needed_bytes - 1).fit is Fit.TIGHT


def test_time_grows_with_work():
    base = estimate(spec_of()).seconds
    assert estimate(spec_of("majority:n=16")).seconds > 10 * base
    assert estimate(spec_of(limit=10)).seconds < base / 5
    assert estimate(spec_of(batch_size=64)).seconds < base
    assert estimate(spec_of(model="shape:llama-3.1-8b")).seconds > 5 * base
    assert "calibrated" in estimate(spec_of()).basis
    assert "assumed" in predict(spec_of(), problems=1, default_max_new_tokens=9).basis


def test_calibrated_rates_are_those_of_the_device():
    ceilings = [
        {"device": "cpu", "copy_bytes_per_s": 1e10, "matmul_flop_per_s": {"fp32": 2e11, "bf16": 1e9}},
        {"device": "cuda:0", "copy_bytes_per_s": 1e12, "matmul_flop_per_s": {"bf16": 4e14}},
    ]
    cpu, gpu = (Rates.of_ceilings(ceilings, on_gpu) for on_gpu in (False, True))
    assert cpu.flops / gpu.flops == 2e11 / 4e14
    assert cpu.bytes_per_s < 1e10
    assert Rates.of_ceilings(ceilings[:1], on_gpu=True) is None
    assert Rates.of_ceilings([], on_gpu=False) is None


def test_a_measured_run_is_the_better_basis():
    past = [
        Past(spec_of("majority:n=4"), tok_s=100.0, tokens_per_problem=400.0),
        Past(spec_of(batch_size=64), tok_s=1.0, tokens_per_problem=1.0),
        Past(spec_of(model="shape:llama-3.2-1b"), tok_s=1.0, tokens_per_problem=1.0),
    ]
    e = estimate(spec_of("majority:n=8"), past=past)
    assert e.tokens == 100 * 800
    assert e.seconds == pytest.approx(800.0)
    assert "measured run" in e.basis
    assert "batch size" not in e.basis
    assert "at batch size 8" in estimate(spec_of("majority:n=8", batch_size=16), past=past[:1]).basis


def test_a_reward_model_costs_memory_and_time(tmp_path):
    prm = make_prm(tmp_path / "prm")
    voted, weighted = estimate(spec_of("majority:n=4")), estimate(spec_of(f"weighted:n=4,reward={prm}"))
    assert weighted.weights_bytes > voted.weights_bytes
    assert weighted.seconds > voted.seconds


def test_a_model_not_here_yet_and_unknown_names():
    e = estimate(spec_of(model="owner/name"))
    assert (e.fit, e.needed_bytes, e.seconds) == (Fit.UNKNOWN, None, None)
    assert "size is not known" in e.basis
    with pytest.raises(SpecError):
        estimate(spec_of(model="shape:nothing"))
    assert estimate(spec_of(), problems=None).seconds is None


def test_a_local_folder_is_measured_by_its_files(tmp_path):
    folder = make_model(tmp_path / "m")
    e = estimate(spec_of(model=str(folder), precision="auto"))
    assert e.weights_bytes == 21312 * 4
    assert e.fit is Fit.YES
