"""The same run on this machine and on a server with the same model gives the same answers, counted alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.run import execute
from spec.results import Answered
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from store import open_store
from tests.lab_server import LabServer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def server():
    with LabServer("lab-xs") as found:
        yield found


def answers(runtime, strategy="greedy", limit=6, **task):
    found = {}

    def keep(event):
        if isinstance(event, Answered):
            found[event.answer.problem_id] = event.answer

    spec = RunSpec("lab-xs", runtime=runtime, strategy=parse_strategy(strategy), task=TaskSpec(limit=limit, **task))
    return execute(spec, keep), found


@pytest.mark.parametrize("strategy", ["greedy", "budget:max_tokens=30,min_tokens=12,wait= Then"])
def test_a_greedy_run_gives_the_same_answers_as_here(server, strategy):
    """A budget goes on from text that it cut, whose tokens a server finds anew; here they are the same ones."""
    local, here = answers(Runtime("transformers", batch_size=3), strategy)
    remote, there = answers(Runtime(f"openai:{server.address}", batch_size=3), strategy)
    assert here.keys() == there.keys()
    for key, answer in here.items():
        mine, other = answer.candidates[0], there[key].candidates[0]
        assert (other.text, other.answer, other.tokens, other.finish) == (
            mine.text,
            mine.answer,
            mine.tokens,
            mine.finish,
        )
    for name in ("accuracy", "n_correct", "tokens_generated", "tokens_per_problem"):
        assert remote.measures[name] == local.measures[name]
    if strategy == "greedy":
        assert remote.measures["tokens_prompt"] == local.measures["tokens_prompt"]


def test_a_search_over_steps_finds_its_way(server):
    """The server draws nothing at random, so both paths are the greedy one, step by step."""
    _, greedy = answers(Runtime("transformers"), limit=2)
    _, found = answers(Runtime(f"openai:{server.address}"), "step-beam:n=2,width=2,reward=lab-prm", limit=2)
    for key, answer in found.items():
        assert answer.candidates[0].text == greedy[key].candidates[0].text
        assert len(answer.candidates[0].step_scores) > 1


def test_the_command_line_runs_it_and_keeps_it(server, tmp_path):
    environment = os.environ | {"ISOQUANT_HOME": str(tmp_path), "OPENAI_API_KEY": "sk-secret"}
    words = ["--model", "auto", "--limit", "4", "--strategy", "majority:n=2", "--batch-size", "4", "--json"]
    done = subprocess.run(
        [sys.executable, "cli.py", "run", "--backend", f"openai:{server.address}", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["n_problems"] == 4
    assert found["accuracy"] is not None
    assert found["ttft_p50_s"] > 0
    assert found["spec"]["runtime"]["server"] == server.address
    assert "sk-secret" not in done.stdout + done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-secret" in p.read_bytes()]
    assert server.headers[-1]["Authorization"] == "Bearer sk-secret"
    with open_store(tmp_path / "isoquant.db") as store:
        stored = store.runs.get(found["run_id"]).result.environment
    assert stored["hardware_name"] == f"server {server.address}"
    assert stored["server_model"]["id"] == "lab-xs"


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "cli.py", "run", "--model", "x", "--backend", "openai:http://127.0.0.1:9/v1", "--limit", "1"],
        cwd=ROOT, env=os.environ | {"ISOQUANT_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: The server at http://127.0.0.1:9/v1 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
