"""``kernels``: what it prints, what it keeps, what it refuses, and that it can be stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.measure.hardware import ceilings_key
from spec.choices import JobState
from spec.run_spec import RunSpec
from store import open_store
from tests.command_line.test_cli_verbs import ROOT

SMALL = ("--op", "swiglu", "--tokens", "2,4", "--width", "64", "--seconds", "0.01", "--no-compiled")
CEILINGS = {"device": "cpu", "copy_bytes_per_s": 1e9, "matmul_flop_per_s": {"bf16": 1e10, "fp32": 1e10}}


@pytest.fixture(autouse=True)
def calibrated(home):
    with open_store() as store:
        store.settings.set(ceilings_key(), [CEILINGS])


def test_measures_are_lines_and_are_kept(isoquant):
    code, out, _ = isoquant("kernels", "measure", *SMALL, "--device", "cpu", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, lines[0]) == (0, {"planned": 6})
    assert [(r["side"], r["case"]["shape"]["tokens"]) for r in lines[1:4]] == [
        ("triton", 2),
        ("native", 2),
        ("eager", 2),
    ]
    assert lines[3]["copy_bytes_per_s"] == 1e9
    assert lines[3]["share_of_copy"] > 0
    with open_store() as store:
        assert len(store.kernel_results.latest("swiglu")) == 6
    table = isoquant("kernels", "results")[1]
    assert "swiglu:tokens=4,width=64,dtype=bf16" in table
    assert "cannot run: there is no NVIDIA GPU here" in table
    assert len(json.loads(isoquant("kernels", "results", "--op", "swiglu", "--json")[1])) == 6


def test_nothing_is_kept_when_nothing_should_be(isoquant):
    code, out, err = isoquant("kernels", "measure", *SMALL, "--no-save", "--sides", "eager")
    assert code == 0
    assert "1 of 2  swiglu:tokens=2,width=64,dtype=bf16  eager" in err
    assert "cannot run" not in out
    assert isoquant("kernels", "results")[1].startswith("No kernel was measured yet")


def test_ceilings_are_measured_once(isoquant, monkeypatch):
    from engine.measure import roofline

    asked = []
    made = roofline.Roofline("cpu", 1, 1, 1, 2e9, {"bf16": 3e10})
    monkeypatch.setattr(roofline, "calibrate", lambda device: asked.append(device) or made)
    with open_store() as store:
        store.settings.set(ceilings_key(), [{"device": "cuda:7"}])
    for _ in range(2):
        isoquant("kernels", "measure", *SMALL, "--device", "cpu", "--sides", "eager")
    assert asked == ["cpu"]
    with open_store() as store:
        assert [c["device"] for c in store.settings.get(ceilings_key())] == ["cuda:7", "cpu"]
        assert store.kernel_results.latest()[0].copy_bytes_per_s == 2e9


def test_results_travel(isoquant, tmp_path):
    out = isoquant("kernels", "measure", *SMALL, "--sides", "eager", "--no-save", "--json")[1]
    foreign = out.replace('"hardware_name": "', '"hardware_name": "H200 <b>\\u001b[2J ')
    (tmp_path / "theirs.jsonl").write_text(foreign)
    assert isoquant("kernels", "import", tmp_path / "theirs.jsonl")[1] == "2 new results of 2.\n"
    again = isoquant("kernels", "import", tmp_path / "theirs.jsonl", "--json")[1]
    assert json.loads(again) == {"results": 2, "new": 0}
    shown = isoquant("kernels", "results")[1]
    assert "H200 <b>" in shown
    assert "\x1b" not in shown


def test_a_measured_row_without_figures_is_refused_with_its_line(isoquant, tmp_path):
    lines = isoquant("kernels", "measure", *SMALL, "--sides", "eager", "--no-save", "--json")[1].splitlines()
    bare = json.loads(lines[2]) | {"error": None, "median_s": None}
    (tmp_path / "f").write_text("\n".join([*lines[:2], json.dumps(bare)]))
    code, _, err = isoquant("kernels", "import", tmp_path / "f")
    assert code == 2
    assert "Line 3: This is no kernel result ('it says measured and has no figure for error')" in err
    assert isoquant("kernels", "results")[1].startswith("No kernel was measured yet")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "Line 1 is no JSON"), ('{"planned": 1}\n{"a": 1}', "Line 2"), ("[1]", "no kernel result"), ("[", "no JSON")],
)
def test_a_file_that_is_none_is_refused_with_its_line(isoquant, tmp_path, text, words):
    (tmp_path / "f").write_text(text)
    code, _, err = isoquant("kernels", "import", tmp_path / "f")
    assert code == 2
    assert words in err
    (tmp_path / "g").write_bytes(b"\xff\xfe\x00")
    assert isoquant("kernels", "import", tmp_path / "g")[0] == 2
    for name in ("nosuch", ""):
        code, _, err = isoquant("kernels", "import", tmp_path / name)
        assert (code, "give a file that `kernels measure --json` wrote" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("measure", "--op", "decod"), "did you mean 'decode'"),
        (("measure", "--batch", "1,x"), "1,8,32"),
        (("measure", "--op", "norm", "--batch", "1"), "field of norm 'batch'"),
        (("measure", "--feature", "windw=3"), "did you mean 'window'"),
        (("measure", "--sides", "sdpaa"), "did you mean 'sdpa'"),
        (("measure", "--device", "cuda:9"), "is not there"),
        (("measure", "--preset", "lama"), "Unknown model shape"),
        (("measure", "--case", "norm:tokens=1", "--batch", "1"), "leave out"),
        (("measure", "--dtype", "int3"), "number format"),
        (("compiled", "--capability", "12"), "80, 89, 90"),
        (("results", "--op", "nrm"), "did you mean 'norm'"),
    ],
)
def test_mistakes_say_what_to_do(isoquant, arguments, words):
    code, _, err = isoquant("kernels", *arguments)
    assert code == 2
    assert words in err


def test_operations_are_listed_with_reasons(isoquant):
    rows = {row["op"]: row for row in json.loads(isoquant("kernels", "ops", "--device", "cpu", "--json")[1])}
    assert rows["decode"]["sides"][0] == {
        "name": "triton", "label": "Isoquant, Triton", "reason": "there is no NVIDIA GPU here",
    }  # fmt: skip
    assert "4 B Hq S D" in rows["decode"]["cost"]
    assert "cannot run" in isoquant("kernels", "ops", "--device", "cpu")[1]


def test_a_run_beside_it_is_said(isoquant):
    with open_store() as store:
        lease = store.jobs.start(RunSpec("lab-s"), worker="w", source="cli")
        assert store.jobs.list([JobState.RUNNING])
    _, _, err = isoquant("kernels", "measure", *SMALL, "--sides", "eager")
    assert f"run {lease.run_id} is being measured too" in err


def test_a_stop_keeps_what_was_measured(home):
    words = ("kernels", "measure", "--op", "norm", "--tokens", "2048", "--width", "4096", "--seconds", "5", "--json")
    child = subprocess.Popen(
        [sys.executable, "cli.py", *words, "--sides", "eager,triton,rms-norm", "--no-compiled"], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"ISOQUANT_HOME": str(home)},
    )  # fmt: skip
    assert json.loads(child.stdout.readline()) == {"planned": 3}
    first = json.loads(child.stdout.readline())
    assert first["side"] == "triton"
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    rest = child.communicate(timeout=100)[0]
    assert child.returncode == 130
    assert "of 3 results were measured and kept" in rest
    with open_store() as store:
        kept = {r.side for r in store.kernel_results.latest()}
    assert {"triton"} <= kept < {"triton", "eager", "rms-norm"}
