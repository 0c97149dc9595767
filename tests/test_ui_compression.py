"""The form's part on compression: what is chosen becomes a recipe, and a recipe comes back as it was."""

import random
from dataclasses import replace

import pytest
from apptest import button, visit, words
from synthetic import result

from spec.recipe import parse_recipe
from spec.run_spec import Precision, RunSpec, TaskSpec
from spec.strategy import Greedy
from store import open_store
from ui import offers
from ui.command import command

SPEC = RunSpec("lab-xs", strategy=Greedy(), task=TaskSpec(limit=7))
FORM = "../../pages/run.py"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))


def form(**session):
    return visit("run", session={"run_model": "lab-xs", "run_strategy": "greedy", **session})


def shown(at):
    assert not at.error, words(at)
    return [c.value for c in at.code]


@pytest.mark.parametrize(
    ("session", "recipe"),
    [
        ({"run_c_precision": "int4"}, "int4"),
        ({"run_c_precision": "int8-dynamic"}, "int8-dynamic"),
        ({"run_c_structure": "neurons"}, "prune:structure=neurons"),
        ({"run_c_structure": "2:4", "run_c_precision": "int8"}, "prune:structure=2:4+int8"),
        ({"run_c_recipe": "recover:steps=3+nf4"}, "recover:steps=3+nf4"),
    ],
)
def test_what_is_chosen_becomes_a_recipe(session, recipe):
    at = form(**session)
    expected = replace(SPEC, task=TaskSpec(limit=100), compression=parse_recipe(recipe))
    assert command(expected) in shown(at)
    assert "prepared first" in words(at)


def test_a_number_format_is_no_recipe():
    at = form(run_c_precision="bf16")
    assert command(replace(SPEC, task=TaskSpec(limit=100), precision=Precision("bf16"))) in shown(at)


@pytest.mark.parametrize(
    "recipe",
    [
        "int4:group=32,rounding=gptq,head=keep",
        "prune:structure=neurons,method=taylor,level=0.3,scope=global,rounds=2,recover=9,rate=0.001,batch=4+fp8",
        "lowrank:ratio=0.25+int8-static:percentile=99",
        "lowrank:ratio=0.25,scaling=none",
        "calibrate:data=gsm8k,samples=9+mixed:size=6",
        "distill:teacher=lab-m,steps=5,loss=both+prune+int4",
        "prune:level=0.3+prune:structure=neurons",
    ],
)
def test_a_stored_recipe_is_run_again_as_it_was(recipe):
    spec = replace(SPEC, compression=parse_recipe(recipe), precision=Precision("fp32"))
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0)))
    at = button(visit("runs", run=run_id), "Run again ...").click().run()
    if "gsm8k" in recipe:  # whose texts are not on this machine
        assert "gsm8k" in words(at)
        return
    assert command(spec) in shown(at)


@pytest.mark.parametrize(
    ("session", "part"),
    [
        ({"run_c_recipe": "int4+prune"}, "cannot follow"),
        ({"run_c_recipe": "inf4"}, "did you mean"),
        ({"run_c_precision": "int4", "run_c_int4_group": "64"}, "do not divide"),
        ({"run_c_recipe": "distill:teacher=lab-nobody"}, "lab-nobody"),
        ({"run_c_recipe": "calibrate:data=text:/no/such/file+int8-static"}, "/no/such/file"),
        ({"run_c_recipe": "prune:structure=layers,method=taylor,level=0.1"}, "less than one"),
        ({"run_c_recipe": "<script>alert(1)</script>"}, "script"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_can_be_started(session, part):
    at = form(**session)
    assert part in words(at)
    assert button(at, "Run").disabled


def test_an_open_recipe_tells_what_is_prepared(monkeypatch):
    class Found:
        bytes, parent_bytes = 160_000, 640_000
        errors = {"top1_agreement": 0.93}  # noqa: RUF012

    monkeypatch.setattr(offers, "prepared", lambda ref, recipe: Found)
    line = offers.compressed_line(replace(SPEC, compression=parse_recipe("int4")))
    assert "160 kB" in line
    assert "25.0 %" in line
    assert "93.0 %" in line
    shape = RunSpec("shape:pythia-410m", compression=parse_recipe("int8"))
    assert "Random weights" in offers.compressed_line(shape)
