"""Time limits that hold on a machine of its own, stretched by how busy this one is."""

import os
import time


def slack() -> float:
    """How much longer things take here now: 1 on an idle machine, the load per core on a busy one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(condition, timeout_s=15.0):
    """What ``condition()`` returns once it is true; AssertionError when it does not become so in time."""
    deadline = time.monotonic() + timeout_s * slack()
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that in time")
