"""Starts the processes of the Procfile and stops them together; `make run` calls this.

Checks first what would otherwise fail in a confusing way: the port, and the folder for measurements.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def port_from_environment() -> int:
    """The port of PORT (default 8501); exits with a sentence where it is no port."""
    text = os.environ.get("PORT", "8501")
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"PORT must be a number from 1 to 65535, not {text!r}.")
    return int(text)


def is_free(port: int) -> bool:
    """Whether this machine can listen on the port now."""
    with socket.socket() as probe:
        # As the server does it: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def home_from_environment() -> Path:
    """The folder of ISOQUANT_HOME (default ./data), created; exits with a sentence where that cannot be."""
    try:
        home = Path(os.environ.get("ISOQUANT_HOME") or ROOT / "data").expanduser().resolve()
    except (RuntimeError, ValueError):
        sys.exit("The home folder in ISOQUANT_HOME is not known; write the path out in full.")
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        sys.exit(f"Cannot write to {home} ({error.strerror}); set ISOQUANT_HOME to a folder of yours.")
    return home


def main() -> int:
    """Run until Ctrl-C or until a process ends."""
    port, home = port_from_environment(), home_from_environment()
    if not is_free(port):
        sys.exit(f"Port {port} is in use. Stop what uses it, or choose another: make run PORT={port + 1}")
    env = dict(os.environ, PORT=str(port), ISOQUANT_HOME=str(home), PYTHONUNBUFFERED="1")
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    print(f"Isoquant: http://127.0.0.1:{port}   (measurements in {home}; Ctrl-C stops)", flush=True)
    command = [sys.executable, "-m", "honcho", "start", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    # A service manager ends this process alone; without word from it web app and worker would go on, and hold the port.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
