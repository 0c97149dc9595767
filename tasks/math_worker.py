"""The helper process of ``tasks.math_check``: a pair of expressions per line in, ``true`` or ``false`` per line out."""

from __future__ import annotations

import json
import logging
import signal
import sys
from typing import Any


def equal(a: str, b: str) -> bool:
    """Whether two expressions are equal. No time limit of its own: the process is ended by its timer."""
    from math_verify import verify

    return any(verify(x, y, timeout_seconds=None) for x in _readings(b) for y in _readings(a))


def _readings(text: str) -> list[Any]:
    """The expression read as LaTeX, and as plain text: ``x^2`` needs its dollars, ``1/2 dollars`` must not get any."""
    from math_verify import parse

    bare = text.strip().strip("$").strip()
    return [parsed for form in (f"${bare}$", bare) if (parsed := parse(form, parsing_timeout=None))]


def main() -> None:
    """Answer until the input ends. An expression that takes too long ends the process (default action of SIGPROF).

    The limit is on processor time, so that a verdict does not depend on what else the machine is doing.
    """
    limit_s = float(sys.argv[1])
    logging.disable(logging.WARNING)  # it warns on every call that timeouts are ours to make
    equal("1", "1")  # imports, outside the limit
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        a, b = json.loads(line)
        try:
            same = equal(a, b)
        except Exception:  # SymPy raises whatever it likes on odd input; odd input equals nothing
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("true" if same else "false", flush=True)


if __name__ == "__main__":
    main()
