"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems, answers as numbers after ``####``.

``gsm8k`` reads the hub's copy (from this machine's cache where it is there), ``gsm8k:PATH`` a file of JSON lines in the
original form, or a folder with ``test.jsonl`` and ``train.jsonl``. The worked examples of few-shot prompts are our
own, written in GSM8K's manner, so that no prompt gives away a problem of the data set.
"""

from __future__ import annotations

import hashlib
import os.path
import re
from collections.abc import Callable
from typing import Any

from spec.choices import Checker
from spec.errors import InputError
from spec.run_spec import TaskSpec
from tasks.files import DISK_ADVICE, BadLine, disk_problem, read_json_lines
from tasks.jsonl import parse as parse_row
from tasks.problem import Problem

SPLITS = ("test", "train")
REPOSITORY = "openai/gsm8k"
TEMPLATE = "Question: {question}\nAnswer:"
INSTRUCTION = (
    "Question: {question}\nThink step by step, then give the final number on a line of its own after ####.\nAnswer:"
)
DEFAULT_CHECKER = Checker.MATH
MAX_NEW_TOKENS = 512
_CALCULATION = re.compile(r"<<[^<>]*>>")

_EXAMPLES = (
    (
        "Noor plants 4 rows of 9 tulips. A storm ruins 7 of them. How many tulips are left?",
        "Noor plants 4 * 9 = 36 tulips.\nAfter the storm 36 - 7 = 29 are left.\n#### 29",
    ),
    (
        "A ferry carries 45 cars on each trip and makes 6 trips a day. On Sunday it makes half as many trips. "
        "How many cars can it carry on Sunday?",
        "On Sunday it makes 6 / 2 = 3 trips.\nIt can carry 3 * 45 = 135 cars.\n#### 135",
    ),
    (
        "Tom buys 3 notebooks at $2.50 each and a pen for $4. He pays with a $20 note. How much change does he get?",
        "The notebooks cost 3 * 2.50 = $7.50.\nWith the pen that is 7.50 + 4 = $11.50.\n"
        "He gets 20 - 11.50 = $8.50 back.\n#### 8.50",
    ),
    (
        "Mira reads 20 pages on Monday, twice as many on Tuesday and 15 fewer than on Tuesday on Wednesday. "
        "How many pages does she read in the three days?",
        "On Tuesday she reads 2 * 20 = 40 pages.\nOn Wednesday she reads 40 - 15 = 25 pages.\n"
        "In all she reads 20 + 40 + 25 = 85 pages.\n#### 85",
    ),
    (
        "A baker has 120 rolls. He sells 3/4 of them in the morning and 20 in the afternoon. How many are left?",
        "In the morning he sells 120 * 3 / 4 = 90 rolls.\nThat leaves 120 - 90 = 30.\n"
        "After the afternoon 30 - 20 = 10 are left.\n#### 10",
    ),
    (
        "A jacket costs $80. In a sale its price falls by 25%. How much does it cost in the sale?",
        "The price falls by 80 * 25 / 100 = $20.\nIt costs 80 - 20 = $60.\n#### 60",
    ),
    (
        "Five friends share the cost of a $90 boat equally, but one pays $6 more than his share for the oars. "
        "How much does he pay?",
        "The share of each is 90 / 5 = $18.\nHe pays 18 + 6 = $24.\n#### 24",
    ),
    (
        "A tank holds 600 litres and is one third full. A pump adds 25 litres a minute. "
        "How many minutes does it take to fill the tank?",
        "The tank holds 600 / 3 = 200 litres.\nThere is room for 600 - 200 = 400 litres.\n"
        "It takes 400 / 25 = 16 minutes.\n#### 16",
    ),
)
EXAMPLES = tuple(
    Problem(f"example-{i}", question, solution.rsplit("#### ", 1)[1], None, solution)
    for i, (question, solution) in enumerate(_EXAMPLES, start=1)
)


def parse(row: dict[str, Any]) -> Problem:
    """A line of the original file as a problem; raises BadLine."""
    raw = parse_row(row)
    solution, mark, answer = str(raw.answer).rpartition("####")
    answer = answer.strip().replace(",", "")
    if not mark or not answer:
        raise BadLine("its 'answer' does not end in #### and a number")
    clean = _CALCULATION.sub("", solution).strip()
    name = hashlib.sha256(raw.question.encode()).hexdigest()[:12]
    return Problem(f"gsm8k-{name}", raw.question, answer, None, f"{clean}\n#### {answer}")


def load(
    task: TaskSpec, download: Callable[[str], list[dict[str, Any]]] | None = None
) -> tuple[list[Problem], list[str]]:
    """The problems of a split, before the limit, and what was skipped; raises InputError.

    A question that stands twice is asked once, for its id is made from its text.
    """
    if task.path is None:
        rows = list(enumerate(map(parse, (download or fetch)(task.split)), start=1))
        skipped: list[str] = []
    else:
        path = os.path.expanduser(task.path)
        if os.path.isdir(path):
            path = os.path.join(path, f"{task.split}.jsonl")
        rows, skipped = read_json_lines(path, parse, skip_bad=task.skip_bad)
    unique: dict[str, Problem] = {}
    for number, problem in rows:
        if unique.setdefault(problem.id, problem) is not problem:
            skipped.append(f"line {number}: repeats the question of an earlier line")
    return list(unique.values()), skipped


def fetch(split: str) -> list[dict[str, Any]]:
    """The rows of a split from the hub, or from the cache of an earlier download; raises InputError."""
    name = f"main/{split}-00000-of-00001.parquet"
    try:
        import pyarrow.parquet as parquet
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

        file = try_to_load_from_cache(REPOSITORY, name, repo_type="dataset")
        if not isinstance(file, str):
            HfApi().dataset_info(REPOSITORY, timeout=5)  # offline this fails at once; the download would go on retrying
            file = hf_hub_download(REPOSITORY, name, repo_type="dataset")
        rows: list[dict[str, Any]] = parquet.read_table(file, columns=["question", "answer"]).to_pylist()
    except Exception as error:  # the errors of the hub, the network and the file format have no base in common
        if words := disk_problem(error):
            raise InputError(f"GSM8K cannot be stored on this machine ({words}); {DISK_ADVICE}") from error
        raise InputError(
            f"GSM8K could not be had from the hub ({type(error).__name__}); give a local file instead: gsm8k:PATH."
        ) from error
    return rows
