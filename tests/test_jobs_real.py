"""The shipped worker and command line with the real engine and a tiny model, in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from spec.choices import JobState
from spec.measures import MEASURES
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import Majority
from store import open_store
from tests.patience import slack, until

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS = 200
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model and a file of questions."""
    from tests.tiny import make_model

    folder = tmp_path_factory.mktemp("files")
    make_model(folder / "model")
    rows = [{"question": f"{i}+1=?", "answer": str(i + 1), "level": 1 + i % 3} for i in range(PROBLEMS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def env(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    return dict(os.environ)


def start(*arguments, **options):
    command = [sys.executable, "cli.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def options(files, **changes):
    chosen = {
        "--model": files / "model",
        "--task": f"jsonl:{files / 'questions.jsonl'}",
        "--limit": 12,
        "--max-new-tokens": 16,
        "--batch-size": 4,
    } | changes
    return [str(word) for pair in chosen.items() for word in pair]


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("env")
def test_a_killed_worker_is_followed_by_one_that_goes_on_where_it_stopped(files):
    spec = RunSpec(
        str(files / "model"),
        runtime=Runtime(batch_size=16),
        strategy=Majority(n=4),
        task=TaskSpec(f"jsonl:{files / 'questions.jsonl'}", max_new_tokens=80),
    )
    with open_store() as store:
        job = store.jobs.enqueue(spec)

        def saved():
            return [a.problem_id for a in store.answers.of_run(job.run_id)]

        for _ in range(2):
            worker, before = start("worker"), len(saved())
            until(lambda before=before: len(saved()) >= before + 20, 120)
            engines = psutil.Process(worker.pid).children(recursive=True)
            acknowledged = saved()
            worker.kill()
            worker.communicate()
            until(lambda engines=engines: not any(map(alive, engines)))
            assert len(acknowledged) < PROBLEMS
            assert saved()[: len(acknowledged)] == acknowledged
        code, _, err = finish("worker", "--until-idle")
        assert code == 0, err
        assert store.jobs.get(job.job_id).state is JobState.SUCCEEDED, err
        assert store.jobs.get(job.job_id).crashes == 0, "a killed worker that saved answers is not held against the run"
        assert set(Counter(saved()).values()) == {1}
        assert len(saved()) == PROBLEMS
        result = store.runs.get(job.run_id).result
    assert result.measures["n_problems"] + result.measures["n_failed"] == PROBLEMS
    assert sum(level["n"] for level in result.by_level.values()) == result.measures["n_problems"]


@pytest.mark.usefixtures("env")
def test_run_in_the_foreground(files):
    code, out, err = finish("run", *options(files), "--json")
    assert code == 0, err
    data = json.loads(out)
    assert set(MEASURES) < set(data)
    assert data["n_problems"] == 12
    assert data["environment"]["device"]
    assert data["wall_s"] > 0
    assert "Traceback" not in err
    code, out, _ = finish("runs", "show", data["run_id"], "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == data["accuracy"]
    with open_store() as store:
        (row,) = store.runs.table()
    assert (row["done"], row["total"]) == (12, 12), "also where it was over before the heartbeat came"


@pytest.mark.usefixtures("env")
def test_ctrl_c_in_the_foreground(files):
    long = {"--limit": 200, "--max-new-tokens": 100, "--batch-size": 1, "--strategy": "majority:n=24"}
    process = start("run", *options(files, **long))
    with open_store() as store:
        row = until(lambda: next((r for r in store.runs.table() if r["done"] >= 3), None), 120)
        engines = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert time.monotonic() - begin < 4 * slack()
        assert f"kept as run {row['run_id']}" in err
        assert store.runs.get(row["run_id"]).state is JobState.CANCELLED
        assert store.answers.count(row["run_id"]) >= 3
    assert not any(map(alive, engines))


@pytest.fixture
def hostile(tmp_path, files):
    """Model folders and data files that cannot be used, by name."""
    config = (files / "model" / "config.json").read_text()
    for name in ("no-config", "pickle", "code", "truncated"):
        (tmp_path / name).mkdir()
        if name != "no-config":
            (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    auto = {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(json.loads(config) | auto))
    (tmp_path / "code" / "modeling_x.py").write_text("open('/tmp/canary-of-isoquant', 'w')")
    (tmp_path / "code" / "model.safetensors").write_bytes((files / "model" / "model.safetensors").read_bytes())
    (tmp_path / "truncated" / "model.safetensors").write_bytes(
        (files / "model" / "model.safetensors").read_bytes()[:2000]
    )
    (tmp_path / "bad.jsonl").write_text('{"question": "1+1=?", "answer": "2"}\n{broken\n{"answer": 3}\n')
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


@pytest.mark.usefixtures("env")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "lab-z"], 2, "Unknown model 'lab-z'"),
        (["--model", "{}/absent"], 2, "no folder"),
        (["--model", "../../../../etc"], 2, "config.json"),
        (["--model", "<script>alert(1)</script>"], 2, "Unknown model"),
        (["--model", "{}/no-config"], 2, "config.json"),
        (["--model", "{}/pickle"], 2, "pickle"),
        (["--model", "{}/code"], 2, "code"),
        (["--model", "{}/truncated"], 2, ""),
        (["--model", "MODEL", "--task", "lab-wrds"], 2, "did you mean 'lab-words'"),
        (["--model", "MODEL", "--task", "jsonl"], 2, "jsonl:PATH"),
        (["--model", "MODEL", "--task", "jsonl:{}/absent.jsonl"], 2, "absent.jsonl"),
        (["--model", "MODEL", "--task", "jsonl:{}/bad.jsonl"], 2, "line 2"),
        (["--model", "MODEL", "--task", "jsonl:{}/empty.jsonl"], 2, "empty.jsonl"),
        (["--model", "MODEL", "--task", "jsonl:{}"], 2, ""),
        (["--model", "MODEL", "--strategy", "weighted:reward=lab-pmr"], 2, "lab-prm"),
        (["--model", "MODEL", "--split", "tset"], 2, "did you mean 'test'"),
        (["--model", "MODEL", "--task", "perplexity:{}/bad.jsonl", "--strategy", "sample"], 2, "Perplexity"),
        (["--model", "shape:llama-3.1-8b", "--precision", "fp32", "--batch-size", "65536"], 1, "memory"),
    ],
)
def test_what_cannot_run_is_one_plain_sentence(files, hostile, arguments, code, words):
    filled = [a.replace("{}", str(hostile)).replace("MODEL", str(files / "model")) for a in arguments]
    got, out, err = finish("run", *filled)
    assert (got, out) == (code, ""), err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in err
    assert not Path("/tmp/canary-of-isoquant").exists()


@pytest.mark.usefixtures("env")
def test_bad_lines_are_left_out_by_name_when_asked(files, hostile):
    task = f"jsonl:{hostile / 'bad.jsonl'}"
    code, out, err = finish("run", *options(files, **{"--task": task}), "--skip-bad", "--json")
    assert code == 0, err
    assert json.loads(out)["n_problems"] == 1
    assert "left out line 2" in err
    assert "left out line 3" in err


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, where this machine lets us have one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(path):
    """Write until the disk has no room left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096):
            pass


def test_a_full_disk_is_one_plain_sentence_and_what_was_there_stays(files, small_disk):
    path = small_disk / "isoquant.db"
    assert finish("submit", *options(files), "--db", path)[0] == 0
    fill(small_disk / "ballast")
    code, out, err = finish("submit", *options(files), "--db", path)
    assert (code, out) == (1, "")
    assert err.startswith("error: The disk ")
    assert "Traceback" not in err
    (small_disk / "ballast").unlink()
    code, out, _ = finish("runs", "list", "--db", path, "--json")
    assert code == 0
    assert [row["state"] for row in json.loads(out)] == ["queued"]
