"""Runs a command and starts it again when it is killed: ``python scripts/keep.py python cli.py worker``.

The process manager stops everything when one process ends, so a killed worker would take the web app with it. The
worker loses nothing when it is killed (its run goes on where it stopped), so all it needs is to be started again.
A command that ends by itself, with any exit code, said what it had to say and is not started again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

RESTART_DELAY_S = 1.0
MAX_RESTARTS = 10
WINDOW_S = 300.0


def keep(command: list[str], *, delay_s: float = RESTART_DELAY_S) -> int:
    """Run ``command`` until it ends by itself; return its exit code. Gives up after too many kills in a row."""
    stopping = False
    process: subprocess.Popen[bytes] | None = None

    def stop(signum: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if process is not None and process.poll() is None:
            process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    killed_at: list[float] = []
    while True:
        process = subprocess.Popen(command)
        if stopping:  # the signal came while the process was being started, and reached nobody
            process.terminate()
        code = process.wait()
        if code >= 0 or stopping:
            return code if code >= 0 else 128 - code
        now = time.monotonic()
        killed_at = [t for t in killed_at if now - t < WINDOW_S] + [now]
        name = signal.Signals(-code).name
        if len(killed_at) > MAX_RESTARTS:
            print(f"{command[-1]} was killed {len(killed_at)} times in {WINDOW_S:.0f} s; giving up.", file=sys.stderr)
            return 128 - code
        print(f"{command[-1]} was killed by {name}; starting it again.", file=sys.stderr, flush=True)
        time.sleep(delay_s)
        if stopping:
            return 128 - code


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Use: python scripts/keep.py COMMAND [ARGUMENT ...]")
    sys.exit(keep(sys.argv[1:]))
