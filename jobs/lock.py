"""One worker per database and device: a file lock that the kernel lets go of however its holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import psutil

from spec.errors import IsoquantError

PATIENCE_S = 5.0


class SlotTaken(IsoquantError):
    """Another worker holds the slot."""


class SlotLock:
    """An exclusive lock on ``path``, which holds the holder's process id.

    The engine process inherits ``fd``: while one that outlived its worker still runs, the slot stays taken, so two
    runs never share the device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def acquire(self, patience_s: float = PATIENCE_S) -> None:
        """Take the lock. Raises SlotTaken at once when its holder lives; waits when only its engine is dying."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + patience_s
        while not _try_lock(fd):
            holder = _holder(fd)
            if psutil.pid_exists(holder) or time.monotonic() > deadline:
                os.close(fd)
                raise SlotTaken(
                    f"Another worker (process {holder}) already serves this database on this device; stop it first, "
                    "or leave it to do the work."
                )
            time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self.fd = fd

    def release(self) -> None:
        """Let go; for after the engine has ended."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> int:
    text = os.pread(fd, 20, 0)
    return int(text) if text.isdigit() else 0
