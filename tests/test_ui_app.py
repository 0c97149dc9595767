"""The launcher: what it imports, what it refuses, what it ships."""

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from apptest import visit, words
from starlette.requests import Request

from store import open_store
from store.connection import APPLICATION_ID
from ui import boot, routes

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )


def test_the_web_process_never_imports_torch():
    code = "import app, sys; from ui import boot; boot.preload(); import ui.entry; print(sorted(sys.modules))"
    done = python(code)
    assert done.returncode == 0, done.stderr
    loaded = eval(done.stdout.splitlines()[-1])
    assert "streamlit" in loaded
    assert [m for m in loaded if m.split(".")[0] in ("torch", "transformers")] == []


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=os.environ | {"PORT": str(port), "ISOQUANT_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.strip() == f"Port {port} is in use; stop what uses it, or choose another: PORT={port + 1}."


@pytest.mark.parametrize("text", ["0", "65536", "80x", "", "-1"])
def test_a_port_that_is_none_is_one_sentence(text):
    with pytest.raises(OSError, match="PORT must be a number from 1 to 65535"):
        boot.port_from(text)


def test_the_shipped_configuration_keeps_others_out():
    server, client = CONFIG["server"], CONFIG["client"]
    assert server["address"] == "127.0.0.1"
    assert set(server["allowedHosts"]) == {"localhost", "127.0.0.1", "::1"}
    assert server["enableStaticServing"] is False
    assert server["enableAgentApi"] is False
    assert "enableCORS" not in server
    assert "enableXsrfProtection" not in server
    assert server["maxUploadSize"] <= 50
    assert client["showErrorDetails"] == "none"
    assert CONFIG["browser"]["gatherUsageStats"] is False
    assert CONFIG["runner"]["postScriptGC"] is False
    assert server["fileWatcherType"] == "none"


def test_the_chart_library_is_served_compressed():
    class Request:
        headers = {"accept-encoding": "gzip, br"}  # noqa: RUF012

    answer = routes.plotly_script(Request())
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    assert len(answer.body) < 2_000_000


@pytest.mark.parametrize(("query", "target"), [("", "/"), ("x=wall_s&box=1%2C2&model=a%20b", "/?{}")])
def test_the_frontier_is_found_under_its_name_too(query, target):
    scope = {"type": "http", "method": "GET", "path": "/frontier", "query_string": query.encode(), "headers": []}
    answer = routes.frontier(Request(scope))
    assert answer.status_code == 302
    assert answer.headers["location"] == target.format(query)


def not_a_database(path):
    path.write_text("this is no database, but a text that is long enough to look like a file\n" * 20)


def newer_version(path):
    with open_store(path) as store:
        store.connection.execute("PRAGMA user_version = 9999")


def of_another_program(path):
    with open_store(path) as store:
        store.connection.execute(f"PRAGMA application_id = {APPLICATION_ID + 1}")


@pytest.mark.parametrize("spoil", [not_a_database, newer_version, of_another_program])
@pytest.mark.parametrize("page", ["", "run", "runs"])
def test_a_database_that_cannot_be_opened_is_said_and_left_alone(tmp_path, monkeypatch, spoil, page):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    path = tmp_path / "isoquant.db"
    spoil(path)
    before = path.read_bytes()
    at = visit(page)
    assert not at.exception
    assert at.title[0].value == "The database cannot be opened"
    assert len(at.error) == 1
    assert "Traceback" not in words(at)
    assert path.read_bytes() == before
