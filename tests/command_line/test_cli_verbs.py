"""What all verbs have in common: lists, mistakes, help, and what they do not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import cli
from spec.errors import InputError, IsoquantError
from spec.strategy import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]


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


def verbs(group, *names):
    """Every verb of the command line, as the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, *names, name)
        else:
            yield " ".join((*names, name)), command


def test_every_verb_takes_json():
    without = [
        name for name, c in verbs(typer.main.get_command(cli.app)) if not any("--json" in p.opts for p in c.params)
    ]
    assert without == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["modls"], "Did you mean 'models'"),
        (["run"], "Missing option '--model'"),
        (["run", "--model", "ok", "--batchsize", "3"], "--batch-size"),
        (["run", "--model", "ok", "extra"], "unexpected extra argument"),
        (
            ["run", "--model", "ok", "--recipe", "prune", "+", "int4"],
            "int4). A recipe with spaces needs quotes around it.",
        ),
        (
            ["compress", "--model", "ok", "--recipe", "prune+", "int4"],
            "int4). A recipe with spaces needs quotes around it.",
        ),
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


def test_an_extra_word_is_not_taken_for_a_recipe(isoquant):
    assert "quotes" not in isoquant("run", "--model", "ok", "extra")[2]


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
