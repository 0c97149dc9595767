"""Answers: what a strategy made of each problem, saved as they come, each exactly once.

The candidates of an answer lie compressed in one blob beside it, not in a table of their own: they are only ever read
together with their answer, and the texts of one problem resemble each other. With 16 scored candidates a blob takes
2.1 KB for each answer where rows of their own take 4.8 KB, and is written at two thirds of their rate, which is
hundreds of answers a second and more than an engine gives. Questions are stored once for all runs that put them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum

from spec.choices import parse_choice
from spec.errors import InputError
from spec.results import Answer, Origin, Progress
from store.clock import Clock
from store.connection import Connection, Row
from store.errors import no_run
from store.job_rows import Lease
from store.leases import hold
from store.run_rows import save_origin, save_progress
from store.values import flag, integer, number, pack_json, text, unpack_json

BATCH = 50
_COLUMNS = (
    "run_id, repeat, problem_id, level, answer, correct, chosen, tokens_prompt, tokens_generated, tokens_verifier, "
    "latency_s, ttft_s, error, candidates, question_id"
)
_INSERT = (
    f"INSERT INTO answers ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?, "
    "(SELECT question_id FROM questions WHERE digest = ?)) ON CONFLICT (run_id, repeat, problem_id) DO NOTHING"
)


ORIGIN = {
    "model_fingerprint": "model has",
    "reward_fingerprint": "reward model has",
    "task_hash": "questions of the task have",
}


class Only(StrEnum):
    """Which answers a page shows."""

    CORRECT = "correct"
    WRONG = "wrong"
    FAILED = "failed"


_CONDITIONS = {
    Only.CORRECT: " AND correct = 1",
    Only.WRONG: " AND correct = 0 AND error IS NULL",
    Only.FAILED: " AND error IS NOT NULL",
}


class Answers:
    """``store.answers``."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection, self._clock = connection, clock

    def begin(self, lease: Lease, origin: Origin) -> None:
        """Keep what the answers of an attempt will come from, before the first of them.

        Raises InputError where answers are kept already that came from something else, and LeaseLost.
        """
        with self._connection.write():
            hold(self._connection, lease, self._clock)
            if self.count(lease.run_id):
                self._check_alike(lease.run_id, origin)
            save_origin(self._connection, lease.run_id, origin, self._clock.wall())

    def _check_alike(self, run_id: str, origin: Origin) -> None:
        names = ", ".join(ORIGIN)
        before = self._connection.rows(f"SELECT {names} FROM runs WHERE run_id = ?", (text(run_id),))[0]
        for name, what in ORIGIN.items():
            # One that nobody wrote down, for an older program measured it, cannot be held against the run.
            if before[name] not in (None, getattr(origin, name)):
                raise InputError(f"The {what} changed since this run gave its first answers; run it again instead.")

    def add(self, owner: Lease | str, answers: Sequence[Answer], progress: Progress | None = None) -> int:
        """Save answers and return how many were new; one that is there already is left as it is.

        ``owner``: the lease under which they were measured (raises LeaseLost when it is no longer the holder's), or
        the run id of a run without a job (raises NotFound when there is none). At most 50 in one transaction; the
        lease is renewed and the progress written in the same one.
        """
        run_id = owner if isinstance(owner, str) else owner.run_id
        added = 0
        for batch in _batches(answers):
            with self._connection.write():
                if isinstance(owner, Lease):
                    hold(self._connection, owner, self._clock)
                elif not self._connection.execute("SELECT 1 FROM runs WHERE run_id = ?", (text(owner),)):
                    raise no_run(owner)
                added += self._insert(run_id, batch)
                if progress is not None:
                    save_progress(self._connection, run_id, progress, self._clock.wall())
        return added

    def _insert(self, run_id: str, answers: Sequence[Answer]) -> int:
        questions = {_digest(a): (text(a.question), text(a.reference)) for a in answers}
        self._connection.execute_many(
            "INSERT INTO questions (digest, question, reference) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING",
            [(digest, *words) for digest, words in questions.items()],
        )
        return self._connection.execute_many(_INSERT, [_values(run_id, answer) for answer in answers])

    def of_run(self, run_id: str) -> list[Answer]:
        """All answers of a run in the order they came, with their candidates; what a resumed run starts from."""
        return [_answer(row) for row in self._rows(run_id, "", -1, 0)]

    def page(self, run_id: str, offset: int = 0, limit: int = 50, only: str | None = None) -> list[Answer]:
        """Some answers of a run in the order they came; ``only`` is one of ``Only``."""
        return [_answer(row) for row in self._rows(run_id, _condition(only), limit, offset)]

    def count(self, run_id: str, only: str | None = None) -> int:
        """How many answers ``page`` has in all."""
        sql = f"SELECT count(*) FROM answers WHERE run_id = ?{_condition(only)}"
        return int(self._connection.value(sql, (text(run_id),)))

    def _rows(self, run_id: str, condition: str, limit: int, offset: int) -> list[Row]:
        return self._connection.rows(
            f"SELECT * FROM answers JOIN questions USING (question_id) WHERE run_id = ?{condition} "
            "ORDER BY id LIMIT ? OFFSET ?",
            (text(run_id), limit, offset),
        )


def _batches(answers: Sequence[Answer]) -> Iterator[Sequence[Answer]]:
    """At most 50 each, and at least one, so that a call without answers still checks the lease."""
    for start in range(0, max(1, len(answers)), BATCH):
        yield answers[start : start + BATCH]


def _condition(only: str | None) -> str:
    return "" if only is None else _CONDITIONS[parse_choice(Only, only)]


def _digest(answer: Answer) -> bytes:
    words = f"{len(answer.question)}:{answer.question}{answer.reference!r}"
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _values(run_id: str, a: Answer) -> tuple[object, ...]:
    name = f"of problem {a.problem_id!r}"
    return (
        run_id,
        integer(f"repeat {name}", a.repeat),
        text(a.problem_id),
        integer(f"level {name}", a.level),
        text(a.answer),
        flag(f"correct {name}", a.correct),
        integer(f"chosen {name}", a.chosen),
        integer(f"tokens_prompt {name}", a.tokens_prompt),
        integer(f"tokens_generated {name}", a.tokens_generated),
        integer(f"tokens_verifier {name}", a.tokens_verifier),
        number(f"latency_s {name}", a.latency_s),
        number(f"ttft_s {name}", a.ttft_s),
        text(a.error),
        pack_json(f"a candidate {name}", [asdict(c) for c in a.candidates]),
        _digest(a),
    )


_PLAIN = (
    "problem_id",
    "repeat",
    "question",
    "reference",
    "level",
    "answer",
    "chosen",
    "tokens_prompt",
    "tokens_generated",
    "tokens_verifier",
    "latency_s",
    "ttft_s",
    "error",
)


def _answer(row: Row) -> Answer:
    correct = None if row["correct"] is None else bool(row["correct"])
    plain = {name: row[name] for name in _PLAIN}
    return Answer.from_dict(plain | {"correct": correct, "candidates": unpack_json(row["candidates"])})
