"""The start script says plainly what is wrong before it starts anything; the keeper restarts only what was killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def start(tmp_path, **env):
    env = dict(os.environ, ISOQUANT_HOME=str(tmp_path / "home")) | env
    return subprocess.run(
        [sys.executable, "scripts/start.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


def test_a_port_in_use_is_a_clear_message(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = start(tmp_path, PORT=str(port))
    assert done.returncode == 1
    assert f"Port {port} is in use" in done.stderr
    assert f"PORT={port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ending_the_script_ends_what_it_started(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = dict(os.environ, ISOQUANT_HOME=str(tmp_path), PORT=str(port))
    process = subprocess.Popen(
        [sys.executable, "scripts/start.py"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: is_open(port))
        process.terminate()
        wait_for(lambda: not is_open(port) and process.poll() is not None)
    finally:
        process.kill()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "80.5", ""])
def test_a_port_that_is_none_is_a_clear_message(tmp_path, port):
    done = start(tmp_path, PORT=port)
    assert done.returncode == 1
    assert "PORT must be a number from 1 to 65535" in done.stderr


def test_a_home_that_is_a_file_is_a_clear_message(tmp_path):
    (tmp_path / "file").write_text("x")
    done = start(tmp_path, PORT="65000", ISOQUANT_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "set ISOQUANT_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_in_the_folder_of_nobody_is_a_clear_message(tmp_path):
    done = start(tmp_path, PORT="65000", ISOQUANT_HOME="~nobody-of-this-name/x")
    assert done.returncode == 1
    assert "ISOQUANT_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def keeper(code, **popen):
    return subprocess.Popen(
        [sys.executable, "scripts/keep.py", sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, **popen
    )


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_command_that_ends_by_itself_is_not_started_again(code):
    process = keeper(f"raise SystemExit({code})")
    assert process.wait(20) == code
    assert b"starting it again" not in process.stderr.read()


def test_a_killed_command_is_started_again(tmp_path):
    log = tmp_path / "starts"
    code = (
        f"import os, signal; f = open({str(log)!r}, 'a'); f.write('x'); f.close();"
        f"os.kill(os.getpid(), signal.SIGKILL) if os.path.getsize({str(log)!r}) < 2 else None"
    )
    process = keeper(code)
    assert process.wait(20) == 0
    assert log.read_text() == "xx"
    assert b"SIGKILL; starting it again" in process.stderr.read()


def test_stopping_the_keeper_stops_the_command(tmp_path):
    ready = tmp_path / "ready"
    process = keeper(f"import time; open({str(ready)!r}, 'w').close(); time.sleep(60)")
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def test_a_signal_during_the_pause_before_a_restart_ends_the_keeper(tmp_path):
    log = tmp_path / "starts"
    process = keeper(
        f"import os, signal; f = open({str(log)!r}, 'a'); f.write('x'); f.close(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert b"starting it again" in process.stderr.readline()
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGKILL
    assert log.read_text() == "x"


def test_a_signal_while_the_command_is_being_started_reaches_it():
    code = (
        "import os, signal, subprocess, sys; sys.path.insert(0, 'scripts'); import keep\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, *args):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        super().__init__(*args)\n"
        "subprocess.Popen = Popen\n"
        "sys.exit(keep.keep(['sleep', '60']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    assert process.wait(20) == 128 + signal.SIGTERM
