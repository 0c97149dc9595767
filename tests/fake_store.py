"""A clock that tests turn by hand, and plausible specs, answers and results for the store."""

import functools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from spec.measures import MEASURES
from spec.results import Answer, Candidate, Progress, RunResult
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority
from store import Clock, open_store

ROOT = Path(__file__).resolve().parents[1]


class FakeClock(Clock):
    """Stands still until told otherwise."""

    def __init__(self, now=1000.0, boot="boot-1"):
        self.time, self.boot, self.offset = now, boot, 1.7e9

    def now(self):
        return self.time

    def wall(self):
        return self.time + self.offset

    def boot_id(self):
        return self.boot

    def pass_time(self, seconds):
        self.time += seconds

    def reboot(self):
        """The machine starts anew: another boot id, and the clock begins near zero."""
        self.offset += self.time
        self.time, self.boot = 5.0, self.boot + "'"


@functools.cache
def _blank():
    with tempfile.TemporaryDirectory() as folder:
        open_store(f"{folder}/blank.db").close()
        return Path(folder, "blank.db").read_bytes()


def new_store(folder, clock=None):
    """A store on a new database in ``folder``; copied, for making one anew each time takes most of a test."""
    path = Path(folder) / "isoquant.db"
    path.write_bytes(_blank())
    return open_store(path, clock=clock)


def a_spec(model="lab-s", n=None, **more):
    strategy = Greedy() if n is None else Majority(n=n)
    return RunSpec(model, strategy=strategy, task=TaskSpec(limit=100), runtime=Runtime(batch_size=8), **more)


def an_answer(problem_id="p1", repeat=0, correct=True, **more):
    candidates = (
        Candidate("6 + 7 = 13\n#### 13", "13", correct, 9, "stop", 0.75, (0.5, 0.75)),
        Candidate("nothing to read", None, None, 4, "length"),
    )
    values = {
        "problem_id": problem_id,
        "repeat": repeat,
        "question": f"How many apples in {problem_id}?",
        "reference": "13",
        "level": 1,
        "answer": "13",
        "correct": correct,
        "chosen": 0,
        "candidates": candidates,
        "tokens_prompt": 12,
        "tokens_generated": 13,
        "tokens_verifier": 9,
        "latency_s": 0.25,
        "ttft_s": 0.125,
    }
    return Answer(**(values | more))


def a_progress(done=5, total=100):
    return Progress(done=done, total=total, correct=done - 1, checked=done, tokens=20 * done, elapsed_s=1.5, tok_s=66.0)


def a_result(seed=0, **measures):
    rng = random.Random(seed)
    values = {m.name: rng.randrange(1, 10**6) if m.integer else rng.random() for m in MEASURES.values()}
    return RunResult(
        measures=values | {"energy_j": None} | measures,
        reasons={"energy_j": "there is no energy sensor"},
        by_level={1: {"n": 60, "correct": 40}, 2: {"n": 40, "correct": 10}},
        energy_method="none",
        environment={
            "hardware_id": "0123456789ab",
            "hardware_name": "A processor, 2 cores",
            "cores": 2,
            "gpus": [],
            "commit": "fe7c86fabcde",
            "device": "cpu",
            "dtype": "bf16",
            "attention": "sdpa",
            "model_fingerprint": "00112233445566ff",
            "model_parameters": 1_000_000,
            "task_hash": "ab" * 32,
        },
        samples={"latency_s": [0.1, 0.2, 0.3], "itl_s": []},
        notes=["The run was resumed once."],
    )


def a_finished_run(store, seed=0, spec=None, **measures):
    return store.runs.save(spec or a_spec(seed=seed), a_result(seed, **measures))


def run_script(source, *arguments, **more):
    """Start a Python process with our packages on its path; its stdout and stderr are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


__all__ = [
    "FakeClock",
    "a_finished_run",
    "a_progress",
    "a_result",
    "a_spec",
    "an_answer",
    "new_store",
    "run_script",
]
