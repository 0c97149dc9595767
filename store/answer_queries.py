"""Reading answers: all of a run, some for a list, one problem, and who else was asked the same."""

from __future__ import annotations

from enum import StrEnum

from spec.choices import parse_choice
from spec.errors import shorten
from spec.results import Answer
from store.answer_rows import COLUMNS, read
from store.connection import Connection, Row
from store.errors import NotFound
from store.values import text

SAME_LIMIT = 200
_LISTED = "repeat, problem_id, level, correct, error, tree IS NOT NULL AS has_tree, question"


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


class AnswerQueries:
    """The reading half of ``store.answers``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of_run(self, run_id: str, *, trees: bool = True) -> list[Answer]:
        """All answers of a run in the order they came, with their candidates; what a resumed run starts from."""
        return [read(row) for row in self._rows(run_id, "", -1, 0, trees)]

    def page(
        self, run_id: str, offset: int = 0, limit: int = 50, only: str | None = None, *, trees: bool = True
    ) -> list[Answer]:
        """Some answers of a run in the order they came; ``only`` is one of ``Only``.

        ``trees=False`` leaves the trees of searches unread, which is what a list wants.
        """
        return [read(row) for row in self._rows(run_id, _condition(only), limit, offset, trees)]

    def one(self, run_id: str, problem_id: str, repeat: int = 0) -> Answer:
        """The answer to one problem, with its tree. Raises NotFound."""
        condition, values = " AND problem_id = ? AND repeat = ?", (text(problem_id), repeat)
        found = self._rows(run_id, condition, 1, 0, True, values)
        if not found:
            raise NotFound(f"Run {shorten(run_id)} has no answer to a problem {shorten(problem_id)}; check the link.")
        return read(found[0])

    def count(self, run_id: str, only: str | None = None) -> int:
        """How many answers ``page`` has in all."""
        sql = f"SELECT count(*) FROM answers WHERE run_id = ?{_condition(only)}"
        return int(self._connection.value(sql, (text(run_id),)))

    def titles(self, run_id: str, limit: int = 1000) -> list[Row]:
        """The problems of a run in the order they came, for choosing one of them; no candidate is unpacked.

        Keys: repeat, problem_id, level, correct, error, has_tree, question.
        """
        return self._connection.rows(
            f"SELECT {_LISTED} FROM answers JOIN questions USING (question_id) WHERE run_id = ? ORDER BY id LIMIT ?",
            (text(run_id), limit),
        )

    def same_question(self, run_id: str, problem_id: str, repeat: int = 0) -> list[Row]:
        """The newest other runs that were asked the very same question, whatever they called it; at most 200.

        Keys: run_id, model, weights, strategy_text, created, and of the answer problem_id, repeat, correct, apart.
        """
        return self._connection.rows(
            # Of a run's repeats the one whose number is nearest to ours: bare columns go with the smallest.
            "SELECT runs.run_id, model, weights, strategy_text, created, problem_id, repeat, answers.correct, "
            "min(abs(repeat - ?)) AS apart "
            "FROM answers JOIN runs USING (run_id) WHERE question_id = "
            "(SELECT question_id FROM answers WHERE run_id = ? AND problem_id = ? AND repeat = ?) "
            "AND runs.run_id <> ? AND deleted_at IS NULL "
            f"GROUP BY runs.run_id ORDER BY runs.id DESC LIMIT {SAME_LIMIT}",
            (repeat, text(run_id), text(problem_id), repeat, text(run_id)),
        )

    def _rows(
        self, run_id: str, condition: str, limit: int, offset: int, trees: bool, values: tuple[object, ...] = ()
    ) -> list[Row]:
        names = ", ".join(c for c in COLUMNS if trees or c != "tree")
        return self._connection.rows(
            f"SELECT {names}, question, reference FROM answers JOIN questions USING (question_id) "
            f"WHERE run_id = ?{condition} ORDER BY id LIMIT ? OFFSET ?",
            (text(run_id), *values, limit, offset),
        )


def _condition(only: str | None) -> str:
    return "" if only is None else _CONDITIONS[parse_choice(Only, only)]
