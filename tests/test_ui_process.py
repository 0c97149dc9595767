"""Work that a page starts as a process of its own: followed, stopped, found again by another web app."""

import json
import signal
import subprocess
import sys
import time

import pytest

from spec.errors import InputError
from ui import process

FAKE = """
import json, signal, sys, time
kind = sys.argv[-1]
print(json.dumps({"say": "Loading <b>"}), flush=True)
if kind == "dies":
    print("first", file=sys.stderr); print("Killed by a bug", file=sys.stderr); sys.exit(9)
if kind == "refuses":
    print(json.dumps({"error": {"type": "SpecError", "message": "No such thing."}}, indent=2)); sys.exit(2)
if kind == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); time.sleep(60)
if kind == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN); print(json.dumps({"say": "deaf"}), flush=True); time.sleep(60)
print("[1, 2]"); print("no json"); print(json.dumps({"id": "x"}), flush=True); print('{"half', end="")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cli.py").write_text(FAKE)
    monkeypatch.setattr(process, "ROOT", tmp_path)
    return tmp_path / "work"


def until(folder, is_so):
    for _ in range(400):
        found = process.newest(folder)
        if found is not None and is_so(found):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def ended(folder):
    return until(folder, lambda s: not s.running)


def test_nothing_was_started(folder):
    assert process.newest(folder) is None
    process.stop(folder)
    process.forget(folder)
    assert not folder.exists()


def test_it_is_followed_to_its_end(folder):
    process.start(folder, ["works"], "busy", {"model": "m"})
    found = ended(folder)
    assert list(found.lines) == [{"say": "Loading <b>"}, {"id": "x"}]
    assert (found.failure, found.last_words, found.asked) == (None, None, {"model": "m"})
    assert abs(found.started - time.time()) < 60
    process.forget(folder)
    assert process.newest(folder) is None


@pytest.mark.parametrize(("kind", "failure", "last"), [("dies", None, "Killed by a bug"), ("refuses", "No such", None)])
def test_why_it_ended_is_told(folder, kind, failure, last):
    process.start(folder, [kind], "busy")
    found = ended(folder)
    assert (found.failure is None) if failure is None else found.failure.startswith(failure)
    assert found.last_words == last


def test_one_at_a_time_and_a_stop_ends_it(folder):
    process.start(folder, ["waits"], "busy")
    until(folder, lambda s: s.lines)
    with pytest.raises(InputError, match="busy"):
        process.start(folder, ["works"], "busy")
    process.forget(folder)  # does nothing while it runs
    process.stop(folder)
    assert ended(folder).stopping
    process.stop(folder)  # nothing there to be stopped
    process.start(folder, ["works"], "busy")
    assert not ended(folder).stopping


def test_a_second_stop_waits_for_nothing(folder):
    process.start(folder, ["deaf"], "busy")
    until(folder, lambda s: len(s.lines) == 2)
    process.stop(folder)
    time.sleep(0.3)
    assert process.newest(folder).running
    process.stop(folder)
    ended(folder)


def test_it_outlives_the_process_that_started_it(folder):
    code = (
        "import sys; from pathlib import Path; from ui import process\n"
        f"process.ROOT = Path({str(folder.parent)!r}); process.start(Path({str(folder)!r}), ['waits'], 'busy')"
    )
    web = subprocess.run([sys.executable, "-c", code], cwd=process.__file__.rpartition("/ui/")[0], check=False)
    assert web.returncode == 0
    assert until(folder, lambda s: s.lines).running
    with pytest.raises(InputError, match="busy"):
        process.start(folder, ["works"], "busy")
    process.stop(folder)
    ended(folder)


def test_a_damaged_note_is_nothing(folder):
    folder.mkdir()
    for text in ("", "[]", '{"pid": "x", "started": 1}', json.dumps({"pid": 1})):
        (folder / "job.json").write_text(text)
        assert process.newest(folder) is None


def test_a_stop_after_the_end_kills_nobody(folder):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"pid": other.pid, "started": 1.0}))
    process.stop(folder)
    time.sleep(0.2)
    assert other.poll() is None
    other.send_signal(signal.SIGKILL)
    other.wait(10)
