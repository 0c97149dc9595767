"""How an answer becomes a row of the database, and a row an answer.

The candidates of an answer lie compressed in one blob beside it, not in a table of their own: they are only ever read
together with their answer, and the texts of one problem resemble each other. With 16 scored candidates a blob takes
2.1 KB for each answer where rows of their own take 4.8 KB, and is written at two thirds of their rate, which is
hundreds of answers a second and more than an engine gives. The tree of a search and the layers of early exits are kept
the same way, in columns that stay NULL for answers without them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from spec.results import Answer, Candidate
from store.connection import Row
from store.values import flag, integer, number, pack_json, text, unpack_json

COLUMNS = (
    "run_id",
    "repeat",
    "problem_id",
    "level",
    "answer",
    "correct",
    "chosen",
    "tokens_prompt",
    "tokens_cached",
    "tokens_generated",
    "tokens_drafted",
    "tokens_accepted",
    "target_passes",
    "tokens_verifier",
    "flops_generated",
    "flops_total",
    "flops_no_reuse",
    "latency_s",
    "ttft_s",
    "error",
    "candidates",
    "exits",
    "tree",
)
_TEXTS = ("problem_id", "answer", "error")
_NUMBERS = ("flops_generated", "flops_total", "flops_no_reuse", "latency_s", "ttft_s")
_BLOBS = ("candidates", "exits", "tree")
_PLAIN = ("question", "reference", *(c for c in COLUMNS if c not in ("run_id", "correct", *_BLOBS)))


def digest(answer: Answer) -> bytes:
    """Names the question and its reference."""
    words = f"{len(answer.question)}:{answer.question}{answer.reference!r}"
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def values(run_id: str, answer: Answer) -> tuple[object, ...]:
    """What ``COLUMNS`` hold for an answer. Raises StoreError naming the field that is no measurement."""
    made = {"run_id": run_id} | {name: _value(name, answer) for name in COLUMNS[1:]}
    return tuple(made[name] for name in COLUMNS)


def _value(name: str, answer: Answer) -> object:
    what, found = f"{name} of problem {answer.problem_id!r}", getattr(answer, name)
    if name in _TEXTS:
        return text(found)
    if name in _NUMBERS:
        return number(what, found)
    if name == "correct":
        return flag(what, found)
    if name == "candidates":
        return pack_json(f"a candidate of problem {answer.problem_id!r}", [_candidate(c) for c in found])
    if name == "exits":
        return pack_json(what, [[integer(what, part) for part in pair] for pair in found]) if found else None
    if name == "tree":
        return pack_json(what, [asdict(node) for node in found]) if found else None
    return integer(what, found)


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """A candidate without what only searches and cascades fill in."""
    return {k: v for k, v in asdict(candidate).items() if v is not None or k not in ("model", "node")}


def read(row: Row) -> Answer:
    """The answer in a row of ``answers`` joined with ``questions``; one without the column ``tree`` has no tree."""
    blobs = {name: unpack_json(data) if (data := row.get(name)) else () for name in _BLOBS}
    correct = None if row["correct"] is None else bool(row["correct"])
    return Answer.from_dict({name: row[name] for name in _PLAIN} | blobs | {"correct": correct})
