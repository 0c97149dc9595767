"""Equality of mathematical expressions by math-verify, in a process of its own.

math-verify limits its time by a signal, which works in a main thread only, and SymPy can spin for ever on a hostile
expression. So the work is done by a helper process (``tasks.math_worker``) that ends itself after five seconds of
processor time, is killed when even that does not happen, and is started again at the next question.
"""

from __future__ import annotations

import atexit
import json
import selectors
import subprocess
import sys
import threading
from pathlib import Path

from spec.errors import InputError

CPU_LIMIT_S = 5.0
START_WAIT_S = 120.0
ROOT = Path(__file__).resolve().parents[1]


class MathChecker:
    """Asks the helper process. Safe to use from several threads, one question at a time."""

    def __init__(self, cpu_limit_s: float = CPU_LIMIT_S) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def equal(self, a: str, b: str) -> bool:
        """Whether the expressions are equal; False too where this could not be told within the time limit."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            # The helper limits its processor time; on a busy machine that may be twenty times as long by the clock.
            reply = self._ask(json.dumps([a, b]), 20 * self._cpu_limit_s)
            if reply is None:
                self._stop()
            return reply == "true"

    def close(self) -> None:
        """End the helper process."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tasks.math_worker", str(self._cpu_limit_s)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._reply(START_WAIT_S) != "ready":
            self._stop()
            raise InputError(
                "Answers cannot be compared as mathematics because math-verify does not start; reinstall with "
                "`pip install -r requirements.txt`, or choose another checker."
            )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, line: str, wait_s: float) -> str | None:
        """One line out, one line in; None when the helper died or took too long."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self._reply(wait_s)

    def _reply(self, wait_s: float) -> str | None:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(wait_s):
                return None
        return self._process.stdout.readline().decode().strip() or None


_checker = MathChecker()
atexit.register(_checker.close)


def math_equal(a: str, b: str) -> bool:
    """Whether two expressions (LaTeX or plain) are mathematically equal; False where that takes more than 5 s."""
    return _checker.equal(a, b)
