"""Time and processes as leases need them: one clock for all processes of a machine, and whether a process still lives.

Leases use the monotonic clock, which is the same in every process, does not jump with NTP and stands still while the
machine sleeps (the worker sleeps too, so nothing expires). It starts anew at each boot, so every reading belongs to a
boot id. The wall clock is for display only.
"""

from __future__ import annotations

import functools
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


class Clock:
    """The real clock; tests put a fake in its place."""

    def now(self) -> float:
        """Seconds since some point of this boot, the same in every process of the machine."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970, for display."""
        return time.time()

    def boot_id(self) -> str:
        """Names this boot of this machine."""
        return _boot_id()


@functools.cache
def _boot_id() -> str:
    linux = Path("/proc/sys/kernel/random/boot_id")
    if linux.exists():
        return linux.read_text().strip()
    asked = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one boot. ``start`` is None where the system does not tell it (outside Linux)."""

    pid: int
    start: int | None
    namespace: str

    def is_dead(self) -> bool:
        """True only when it is certain: same process namespace, and no such process or another one under its number."""
        if self.start is None or self.namespace != _namespace():
            return False
        return _start(self.pid) != self.start


def this_process() -> Process:
    """The calling process."""
    return Process(os.getpid(), _start(os.getpid()), _namespace())


def _start(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None when it is gone, a zombie, or cannot be asked."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
