"""How fast the pages are: importing them, the frontier over 100,000 runs at the server, and its opening in a browser.

    python -m bench.pages [--runs 100000] [--no-browser]

Prints the figures and appends them to ``bench/results/pages.jsonl`` with the machine and the commit. The runs are
made up, in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import against, arguments

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULTS = ROOT / "bench" / "results" / "pages.jsonl"
TARGETS = {"import_s": 1.5, "rerun_s": 0.3, "change_s": 0.3, "open_s": 2.0}
REPEATS = 5
WARM_UP = 3  # Chromium keeps a script in compiled form from its second visit on


def import_seconds() -> float:
    """A new process imports the app and all pages' modules; Python's own start is not counted."""
    code = (
        "import time, sys; t = time.perf_counter(); import app; from ui import boot; boot.preload(); "
        "print(time.perf_counter() - t); assert 'torch' not in sys.modules"
    )
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)]
    runs += [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)]
    return min(float(r.stdout.split()[-1]) for r in runs)


def median_seconds(work: Callable[[int], Any]) -> float:
    """Median of a few goes."""
    found = []
    for number in range(REPEATS):
        begin = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def server_seconds(home: Path) -> dict[str, float]:
    """The script's time at the server: the first visit after results changed, a rerun, and a changed filter."""
    os.environ["ISOQUANT_HOME"] = str(home)
    from apptest import visit

    from ui import boot

    boot.preload()
    begin = time.perf_counter()
    at = visit()
    first = time.perf_counter() - begin
    rerun = median_seconds(lambda _: at.run())

    def change(number: int) -> None:
        at.multiselect(key="fr_precisions").set_value(["bf16"] if number % 2 else ["fp32"])
        at.toggle(key="fr_log_x_flops_per_problem").set_value(number % 3 == 0)
        at.run()

    return {"first_s": first, "rerun_s": rerun, "change_s": median_seconds(change)}


def open_seconds(home: Path) -> dict[str, float]:
    """From the address to the drawn chart, in a warm server: a visitor who was here before, and one who was not."""
    from browser import chrome, context, drawn, returning_visitor, stack

    def visit(profile: Any) -> float:
        page = profile.new_page()
        begin = time.perf_counter()
        page.goto("/")
        drawn(page)
        seconds = time.perf_counter() - begin
        page.close()
        return seconds

    with stack(home, worker=False) as running:
        with returning_visitor(running.url, home / "profile") as profile:
            for _ in range(WARM_UP):
                visit(profile)
            again = statistics.median(visit(profile) for _ in range(REPEATS))
        fresh = []
        with chrome() as browser:
            for _ in range(3):
                new = context(browser, running.url)
                fresh.append(visit(new))
                new.close()
    return {"open_s": again, "open_first_visit_s": statistics.median(fresh)}


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--no-browser", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.no_browser = 2_000, True
    from synthetic import fill_many

    from engine.measure.hardware import fingerprint
    from store import open_store

    found: dict[str, float] = {"import_s": import_seconds()}
    with tempfile.TemporaryDirectory(prefix="isoquant-bench-") as folder:
        home = Path(folder)
        with open_store(home / "isoquant.db") as store:
            fill_many(store, options.runs)
        found |= server_seconds(home)
        if not options.no_browser:
            found |= open_seconds(home)
    for name, value in found.items():
        target = f"  (to reach: {TARGETS[name]:g})" if name in TARGETS else ""
        print(f"{name:20} {value:7.3f}{target}")
    here = fingerprint()
    load = os.getloadavg()[0]
    print(f"load average {load:.1f} on {here['cores']} cores")
    row = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "runs": options.runs, "load": load}
    row |= {"hardware": here["hardware_name"], "commit": here["commit"]} | {k: round(v, 4) for k, v in found.items()}
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if options.json:
        print(against(found, TARGETS))


if __name__ == "__main__":
    main()
