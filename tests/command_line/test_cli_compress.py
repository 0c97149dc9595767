"""``compress`` and ``artifacts``, and runs that take a recipe."""

import json
import signal
import subprocess
import sys
import time

import pytest

from engine import artifacts
from engine.measure.hardware import ROOT
from spec.recipe import STEPS


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))


@pytest.fixture
def cli(isoquant):
    def call(*words, expect=0):
        code, out, error = isoquant(*words)
        assert code == expect, out + error
        return out, error

    return call


def test_a_model_is_prepared_once_listed_shown_run_and_deleted(cli):
    words = ("compress", "--model", "lab-xs", "--recipe", "int8", "--json")
    lines = [json.loads(line) for line in cli(*words)[0].splitlines()]
    assert all(set(line) == {"say"} for line in lines[:-1])
    made = lines[-1]
    assert made["recipe"] == "int8"
    assert made["bytes"] < 0.6 * made["parent_bytes"]
    again = [json.loads(line) for line in cli(*words)[0].splitlines()]
    assert again == [made], "it was made again"
    (listed,) = json.loads(cli("artifacts", "list", "--json")[0])
    assert listed == made
    assert "int8" in cli("artifacts", "list")[0]
    assert "same likeliest next token" in cli("artifacts", "show", made["id"])[0]
    words = ("run", "--model", "lab-xs", "--precision", "int8", "--limit", "2", "--json")
    done = subprocess.run([sys.executable, "cli.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=170)
    run = json.loads(done.stdout)
    assert run["environment"]["artifact"] == made["id"]
    assert run["environment"]["compression"] == "int8"
    assert run["logit_kl"] == made["errors"]["logit_kl"]
    assert run["weights_bytes"] == made["bytes"]
    assert json.loads(cli("artifacts", "delete", made["id"], "--json")[0]) == {"id": made["id"], "state": "deleted"}
    assert artifacts.find(made["id"]) is None
    assert "no prepared model" in cli("artifacts", "delete", made["id"], expect=2)[1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model", "lab-xs", "--recipe", "int5"], "did you mean"),
        (["--model", "lab-xs", "--recipe", "prune:level=1.0"], "0.9 at most"),
        (["--model", "lab-xs", "--recipe", "lowrank:ratio=0"], "between 0 and 1"),
        (["--model", "lab-xs", "--recipe", "int4:group=64"], "do not divide"),
        (["--model", "lab-xs", "--recipe", "distill:teacher=shape:pythia-410m,steps=1"], "random weights"),
        (["--model", "lab-nobody", "--recipe", "int4"], "lab-nobody"),
        (["--model", "shape:pythia-410m", "--recipe", "int4"], "random weights"),
        (["--model", "lab-xs"], "--recipe"),
        (["--model", "lab-xs", "--recipe", "int8", "--device", "cuda:7"], "cuda:7"),
    ],
)
def test_what_cannot_be_prepared_is_said_and_leaves_nothing_behind(cli, words, part, tmp_path):
    assert part in cli("compress", *words, expect=2)[1]
    assert not [p for p in (tmp_path / "artifacts").glob("*") if p.is_dir()]


def test_steps_are_listed_with_their_parameters(cli):
    shown = cli("compress", "--steps")[0]
    assert "rounding" in shown
    assert all(f"{name}: {step.summary}" in shown for name, step in STEPS.items())
    listed = {s["step"]: s for s in json.loads(cli("compress", "--steps", "--json")[0])}
    assert listed["int4"]["parameters"]["group"]["default"] == "auto"
    assert listed["prune"]["parameters"]["method"]["default"] is None
    assert listed["prune"]["parameters"]["rate"]["default"] == "0.0001"


def test_ctrl_c_stops_it_and_the_next_call_goes_on(tmp_path):
    words = ["compress", "--model", "lab-xs", "--recipe", "recover:steps=100000", "--json"]
    child = subprocess.Popen([sys.executable, "cli.py", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        for line in child.stdout:
            if "training step" in line:
                break
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        assert time.monotonic() - began < 20
    finally:
        child.kill()
        child.stdout.close()
    assert not [p for p in (tmp_path / "artifacts").glob("*") if p.is_dir() and len(p.name) == 16]
