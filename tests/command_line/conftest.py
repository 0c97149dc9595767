"""A home of its own, the stand-in engine, and a command line to call."""

import pytest

import cli
from jobs.host import EngineProcess
from jobs.pool import EnginePool
from spec.run_spec import RunSpec
from store import open_store
from tests.fake_engine import FAKE, answer, result


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
