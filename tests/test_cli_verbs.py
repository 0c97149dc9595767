"""Every verb, with a stand-in engine: what it prints, what it stores, how it ends."""

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cli
from jobs.host import EngineProcess
from jobs.pool import EnginePool
from spec.choices import JobState
from spec.errors import InputError, IsoquantError
from spec.measures import MEASURES
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import STRATEGIES
from store import open_store
from tests.fake_engine import answer, result
from tests.patience import slack, until
from tests.test_jobs_worker import FAKE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, models that need no files, and the stand-in engine."""
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("commands.options.check", lambda spec: [])
    monkeypatch.setattr("commands.queue.check", lambda spec: [])
    monkeypatch.setattr("commands.run.EnginePool", lambda: EnginePool(lambda: EngineProcess(FAKE)))
    return tmp_path / "home"


@pytest.fixture
def isoquant(capsys):
    """Run a command; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def stored():
    """Two runs that ended well, one with a dangerous name."""
    with open_store() as store:
        first = store.runs.save(RunSpec("lab-s"), result([answer(i) for i in range(9)]))
        second = store.runs.save(RunSpec("=cmd|' /C calc'!A0<script>\x1b[2J"), result([answer(1)]))
    return first, second


def test_run_json_is_one_object_with_every_measure_by_name(isoquant):
    code, out, err = isoquant("run", "--model", "ok", "--limit", 12, "--seed", 3, "--json")
    assert code == 0
    data = json.loads(out)
    assert set(MEASURES) < set(data)
    assert {"run_id", "spec", "reasons", "energy_method", "energy_valid", "by_level"} < set(data)
    assert data["accuracy"] == pytest.approx(8 / 12)
    assert data["energy_j"] is None
    assert data["reasons"]["energy_j"]
    assert RunSpec.from_dict(data["spec"]) == RunSpec("ok", task=TaskSpec(limit=12), seed=3)
    with open_store() as store:
        assert store.runs.get(data["run_id"]).state is JobState.SUCCEEDED
        assert store.answers.count(data["run_id"]) == 12
    assert "Traceback" not in err


def test_run_prints_a_table_by_groups_with_intervals_and_reasons(isoquant):
    code, out, _ = isoquant("run", "--model", "ok", "--limit", 12)
    assert code == 0
    for words in ("quality", "time", "energy", "compute", "memory", "66.7 % (0.0-100.0), n = 12", "10.0 ms", "n/a"):
        assert words in out
    assert "The stand-in engine does not measure this." in out
    assert "level" in out


def test_run_without_saving_keeps_nothing(isoquant, home):
    code, out, _ = isoquant("run", "--model", "ok", "--no-save", "--json")
    assert code == 0
    assert json.loads(out)["run_id"] is None
    assert not home.exists()


@pytest.mark.parametrize(
    ("model", "code", "kind", "words"),
    [
        ("does-not-fit", 1, "DoesNotFitError", "3 GB"),
        ("no-model", 2, "ModelError", "no model"),
        ("bad-spec", 2, "SpecError", "no such layer"),
        ("segfault", 1, "RunFailed", "SIGSEGV"),
        ("fault", 1, "RunFailed", "illegal memory access"),
    ],
)
def test_a_run_that_fails_says_why_in_one_line(isoquant, model, code, kind, words):
    got, out, err = isoquant("run", "--model", model)
    assert got == code
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert out == ""
    got, out, _ = isoquant("run", "--model", model, "--json")
    assert got == code
    error = json.loads(out)["error"]
    assert (error["type"], set(error)) == (kind, {"type", "message", "field"})
    with open_store() as store:
        assert {row["state"] for row in store.runs.table()} == {JobState.FAILED}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_and_keeps_what_is_there(isoquant, number):
    begin = []

    def interrupt():
        with open_store() as store:
            until(lambda: any(row["done"] > 2 for row in store.runs.table()))
        begin.append(time.monotonic())
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    code, out, err = isoquant("run", "--model", "slow", "--limit", 1000)
    assert code == 130
    assert time.monotonic() - begin[0] < 4 * slack()
    assert "error: Cancelled" in err
    assert out == ""
    with open_store() as store:
        (row,) = store.runs.table()
        assert row["state"] == JobState.CANCELLED
        assert row["run_id"] in err
        assert store.answers.count(row["run_id"]) > 2


def test_partial_accuracy_is_shown_while_it_runs(isoquant, monkeypatch):
    monkeypatch.setattr("commands.run.LINE_EVERY_S", 0.0)
    _, _, err = isoquant("run", "--model", "slow", "--limit", 4)
    assert "4 of 4  accuracy 50 % (15–85)  300 tokens/s" in err


def test_submit_queues_and_says_how_to_follow(isoquant):
    code, out, err = isoquant("submit", "--model", "ok", "--limit", 3)
    assert code == 0
    with open_store() as store:
        (job,) = store.jobs.list()
    assert job.run_id in out
    assert f"http://127.0.0.1:8501/r/{job.run_id}" in out
    assert "no worker is running" in err
    code, out, _ = isoquant("submit", "--model", "ok", "--json")
    assert set(json.loads(out)) == {"run_id", "state", "message", "url", "spec"}
    assert json.loads(out)["state"] == "queued"


@pytest.fixture
def fake_worker(monkeypatch):
    from jobs import worker

    plain = worker.Worker

    def with_fake_engine(path, **options):
        return plain(path, command=FAKE, **options)

    monkeypatch.setattr(worker, "Worker", with_fake_engine)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("fake_worker")
def test_worker_measures_what_is_queued(isoquant):
    isoquant("submit", "--model", "ok", "--limit", 3)
    code, out, err = isoquant("worker", "--until-idle")
    assert code == 0
    assert "succeeded" in err
    assert out == ""
    isoquant("submit", "--model", "no-model")
    code, out, err = isoquant("worker", "--until-idle", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert any("There is no model here" in line["message"] and line["level"] == "error" for line in lines)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_worker")
@pytest.mark.parametrize(("model", "expected"), [("ok", 0), ("no-model", 1)])
def test_submit_and_wait_ends_as_the_run_does(isoquant, model, expected):
    code = (
        "import sys; from jobs.worker import Worker; from tests.test_jobs_worker import FAKE\n"
        "w = Worker(command=FAKE); w.install_signals(); w.work()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        got, out, err = isoquant("submit", "--model", model, "--wait", "--json")
    finally:
        process.terminate()
        process.wait()
    assert got == expected
    assert json.loads(out)["state"] == ("succeeded" if expected == 0 else "failed")
    assert "running" in err


def test_a_second_worker_is_told_who_is_first(isoquant, fake_worker):
    from jobs.lock import SlotLock

    with open_store() as store:
        lock = SlotLock(Path(f"{store.path}.worker-cpu.lock"))
    lock.acquire()
    code, out, err = isoquant("worker", "--device", "cpu")
    lock.release()
    assert code == 1
    assert f"error: Another worker (process {os.getpid()})" in err
    assert out == ""


def test_tour_queues_three_models_twice(isoquant):
    code, out, _ = isoquant("tour", "--json")
    assert code == 0
    specs = [RunSpec.from_dict(r["spec"]) for r in json.loads(out)["runs"]]
    assert [(s.model, s.strategy.name) for s in specs] == [
        (m, s) for m in ("lab-xs", "lab-s", "lab-m") for s in ("greedy", "majority")
    ]
    with open_store() as store:
        assert len(store.jobs.list()) == 6


def test_runs_list_and_search(isoquant, stored):
    code, out, _ = isoquant("runs", "list")
    assert code == 0
    assert stored[0] in out
    assert "66.7 %" in out
    assert "\x1b" not in out
    assert "<script>\\x1b[2J" in out
    _, out, _ = isoquant("runs", "list", "--json", "--search", "lab-s greedy")
    assert [row["run_id"] for row in json.loads(out)] == [stored[0]]
    assert isoquant("runs", "list", "--state", "failed")[1] == "No runs.\n"
    assert isoquant("runs", "list", "--state", "faild")[2] == "error: Unknown state 'faild'; did you mean 'failed'?\n"
    assert len(json.loads(isoquant("runs", "list", "--json", "--limit", 1)[1])) == 1


def test_states_may_be_named_as_the_pages_name_them(isoquant, stored):
    with open_store() as store:
        waiting = store.jobs.enqueue(RunSpec("lab-s")).run_id
    listed = {word: json.loads(isoquant("runs", "list", "--state", word, "--json")[1]) for word in ("done", "live")}
    assert {row["run_id"] for row in listed["done"]} == set(stored)
    assert [row["run_id"] for row in listed["live"]] == [waiting]
    code, _, err = isoquant("runs", "list", "--state", "don")
    assert code == 2
    assert "did you mean 'done'" in err


def test_energy_that_is_not_valid_is_marked_wherever_it_is_shown(isoquant):
    measured = result([answer(i) for i in range(9)])
    joules = {"energy_j": 12.0, "j_per_token": 0.5, "idle_w": 3.0}
    measured = dataclasses.replace(
        measured,
        measures=measured.measures | joules,
        energy_method="rapl",
        energy_valid=False,
        energy_reason="The run was too short.",
    )
    with open_store() as store:
        run_id = store.runs.save(RunSpec("lab-s"), measured)
        good = store.runs.save(RunSpec("lab-s"), dataclasses.replace(measured, energy_valid=True, energy_reason=None))
    shown = isoquant("runs", "show", run_id)[1]
    assert re.search(r"12\.0 J \(not valid\)", shown)
    assert re.search(r"500 mJ \(not valid\)", shown)
    assert "3.00 W (not valid)" not in shown
    assert "energy counters of the processor (RAPL); not valid: The run was too short." in shown
    assert "not valid" not in isoquant("runs", "show", good)[1]
    listed = {row["run_id"]: row["energy_valid"] for row in json.loads(isoquant("runs", "list", "--json")[1])}
    assert listed == {run_id: 0, good: 1}


def test_runs_purge_removes_only_what_was_deleted_long_enough_ago(isoquant, stored):
    gone, kept = stored
    isoquant("runs", "delete", gone)
    assert isoquant("runs", "purge")[1] == "0 deleted runs removed for good.\n"
    assert isoquant("runs", "purge", "--days", 0)[1] == "1 deleted run removed for good.\n"
    with open_store() as store:
        assert [row["run_id"] for row in store.runs.table()] == [kept]
    assert isoquant("runs", "restore", gone)[0] == 2


def test_runs_show_tells_the_history_to_scripts(isoquant):
    with open_store() as store:
        job = store.jobs.enqueue(RunSpec("lab-s"))
        store.jobs.request_cancel(job.job_id)
    shown = json.loads(isoquant("runs", "show", job.run_id, "--json")[1])
    assert [event["event"] for event in shown["history"]] == ["queued", "cancelled"]


def test_runs_show(isoquant, stored):
    code, out, _ = isoquant("runs", "show", stored[0])
    assert code == 0
    assert "lab-s | auto | greedy" in out
    assert "66.7 %" in out
    data = json.loads(isoquant("runs", "show", stored[0], "--json")[1])
    assert set(MEASURES) < set(data)
    assert data["state"] == "succeeded"


def test_runs_show_a_failed_one_with_its_last_words(isoquant):
    isoquant("run", "--model", "fault")
    with open_store() as store:
        (row,) = store.runs.table()
    code, out, _ = isoquant("runs", "show", row["run_id"])
    assert code == 0
    assert "failed. The engine failed: RuntimeError: CUDA error" in out
    assert "2 problems answered" in out
    assert "| last words of the library" in out


def test_delete_and_restore(isoquant, stored):
    assert isoquant("runs", "delete", stored[0])[0] == 0
    assert stored[0] not in isoquant("runs", "list")[1]
    assert stored[0] in isoquant("runs", "list", "--deleted")[1]
    assert json.loads(isoquant("runs", "restore", stored[0], "--json")[1]) == {
        "run_id": stored[0],
        "state": "restored",
    }
    assert stored[0] in isoquant("runs", "list")[1]


def test_cancel_and_resume(isoquant):
    run_id = json.loads(isoquant("submit", "--model", "ok", "--json")[1])["run_id"]
    assert isoquant("runs", "delete", run_id)[0] == 1
    assert json.loads(isoquant("runs", "cancel", run_id, "--json")[1]) == {"run_id": run_id, "state": "cancelled"}
    code, _, err = isoquant("runs", "cancel", run_id)
    assert (code, "nothing to cancel" in err) == (2, True)
    assert json.loads(isoquant("runs", "resume", run_id, "--json")[1])["state"] == "queued"


@pytest.mark.parametrize("verb", ["show", "delete", "restore", "cancel", "resume"])
@pytest.mark.parametrize("run_id", ["0123456789ab", "../../etc/passwd", "' OR 1=1", "\x1b[31m", ""])
def test_an_unknown_run_is_bad_input(isoquant, verb, run_id):
    code, out, err = isoquant("runs", verb, run_id)
    assert code == 2
    assert err.startswith("error: There is no run")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err
    assert out == ""


def test_export_csv_hides_formulas_from_spreadsheets(isoquant, stored):
    code, out, _ = isoquant("export", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["run_id"] for row in rows] == list(stored)
    assert set(MEASURES) < set(rows[0])
    assert rows[1]["model"].startswith("'=cmd")
    assert float(rows[0]["accuracy"]) == pytest.approx(2 / 3)
    assert rows[0]["energy_j"] == ""


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_export_to_a_file(isoquant, stored, tmp_path, kind):
    path = tmp_path / f"runs.{kind}"
    code, out, _ = isoquant("export", "--format", kind, "--output", path, "--json")
    assert code == 0
    assert json.loads(out) == {"path": str(path), "format": kind, "rows": 2}
    rows = {
        "csv": lambda: list(csv.DictReader(path.open())),
        "json": lambda: json.loads(path.read_text()),
        "parquet": lambda: pq.read_table(path).to_pylist(),
    }[kind]()
    assert [row["run_id"] for row in rows] == list(stored)
    assert float(rows[0]["n_problems"]) == 9


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--format", "xlsx"], 2, "csv, json, parquet"),
        (["--format", "parqet"], 2, "did you mean 'parquet'"),
        (["--format", "parquet"], 2, "--output"),
        (["--output", "/absent/folder/x.csv"], 1, "/absent/folder/x.csv: No such file or directory"),
        (["--output", "/tmp/" + "x" * 256], 1, "xxx: File name too long"),
        (["--output", "/proc/x.csv"], 1, "/proc"),
    ],
)
def test_export_mistakes(isoquant, arguments, code, words):
    got, out, err = isoquant("export", *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert words in err


def test_export_as_csv_and_json_at_once_is_refused(isoquant):
    code, out, _ = isoquant("export", "--format", "csv", "--json")
    assert code == 2
    assert "--json prints JSON, not csv" in json.loads(out)["error"]["message"]


def test_export_of_an_empty_database(isoquant):
    assert isoquant("export")[0] == 0
    assert json.loads(isoquant("export", "--format", "json")[1]) == []


def test_lists_of_what_there_is(isoquant):
    strategies = json.loads(isoquant("strategies", "--json")[1])
    assert [s["name"] for s in strategies] == list(STRATEGIES)
    assert strategies[2]["parameters"][-1]["name"] == "n"
    assert "How many samples" in isoquant("strategies")[1]
    assert {t["name"] for t in json.loads(isoquant("tasks", "--json")[1])} == {
        "lab-words",
        "gsm8k",
        "jsonl",
        "perplexity",
    }
    assert "jsonl:PATH" in isoquant("tasks")[1]
    models = json.loads(isoquant("models", "--json")[1])
    assert "shape:llama-3.2-1b" in {m["name"] for m in models["models"]}
    assert models["rewards"][0]["name"] == "lab-prm"
    assert "shape:pythia-410m" in isoquant("models")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["modls"], "Did you mean 'models'"),
        (["run"], "Missing option '--model'"),
        (["run", "--model", "ok", "--batchsize", "3"], "--batch-size"),
        (["run", "--model", "ok", "extra"], "unexpected extra argument"),
        (["run", "--model", "ok", "--strategy", "greddy"], "did you mean 'greedy'"),
        (["run", "--model", "ok", "--strategy", "majority:n=0"], "1 to 4096"),
        (["submit", "--model", "ok", "--strategy", "sample:temperature=-1"], "0.01 to 5"),
        (["worker", "--device", "cup"], "did you mean 'cpu'"),
        (["runs", "list", "--limit", "0"], "--limit"),
        (["runs", "shw", "x"], "Did you mean"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(isoquant, arguments, words):
    code, out, err = isoquant(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err
    code, out, err = isoquant(*arguments, "--json")
    assert code == 2
    assert words in json.loads(out)["error"]["message"]
    assert err == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"this is text, and no database at all " * 99, "not a database"), (None, "")],
)
def test_a_database_that_is_none_stays_as_it_is(isoquant, tmp_path, content, words):
    path = tmp_path / "x.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for arguments in (["runs", "list"], ["submit", "--model", "ok"], ["run", "--model", "ok"], ["worker"], ["export"]):
        code, out, err = isoquant(*arguments, "--db", path)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("error: ")
        assert words in err
        assert "Traceback" not in err
    if content is not None:
        assert path.read_bytes() == content


def test_an_option_without_its_value(isoquant):
    assert isoquant("run", "--model") == (2, "", "error: Option '--model' requires an argument.\n")


def test_no_arguments_print_the_help(isoquant):
    code, out, err = isoquant()
    assert code == 2
    assert "Commands" in out + err


def test_a_missing_file_and_a_fault_in_the_system_are_one_line(isoquant, monkeypatch):
    def broken(*args):
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("commands.runs.open_database", broken)
    assert isoquant("runs", "list") == (1, "", "error: /somewhere: Permission denied.\n")


def test_the_errors_of_the_command_line_are_errors_for_users():
    from commands.run import RunFailed

    assert issubclass(RunFailed, IsoquantError)
    assert issubclass(InputError, IsoquantError)


LIGHT = [["runs", "list"], ["models"], ["strategies"], ["tasks"], ["export"], ["tour", "--help"], ["run", "--help"]]


def test_light_verbs_do_not_import_torch():
    code = (
        "import sys, cli\n"
        f"codes = [cli.main(arguments) for arguments in {LIGHT!r}]\n"
        "heavy = [m for m in ('torch', 'transformers', 'streamlit') if m in sys.modules]\n"
        "sys.exit(f'{codes} imported {heavy}' if any(codes) or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} cli.py strategies --json | head -c 10",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
