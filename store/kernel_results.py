"""What the kernel laboratory measured: one row for each case, side and measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from spec.errors import StoreError
from spec.kernel_result import KernelResult, KernelStatus
from store.connection import Connection, Row
from store.run_rows import save_hardware
from store.values import integer, number, text, to_json

_REAL = ("error", "torch_error", "median_s", "q1_s", "q3_s", "copy_bytes_per_s", "matmul_flop_per_s")
_WHOLE = ("repeats", "bytes_moved", "flops")
_TEXT = ("device", "op", "case_key", "case_text", "side", "note")


class KernelResults:
    """``store.kernel_results``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, results: Iterable[KernelResult], source: str = "measured") -> int:
        """Save results, all or none; returns how many are new. ``source``: ``measured`` here, or ``imported``.

        A result that is there already (same machine, device, case, side and moment) is left as it is. Raises
        StoreError for a number that is no measurement, and for hardware without an id.
        """
        before = self.version()
        with self._connection.write():
            for result in results:
                if not result.environment.get("hardware_id"):
                    raise StoreError(
                        "A kernel result does not say on which hardware it was measured; nothing was saved."
                    )
                save_hardware(self._connection, dict(result.environment), result.measured)
                row = _row(result, source)
                names = ", ".join(row)
                self._connection.execute(
                    f"INSERT INTO kernel_results ({names}) VALUES ({', '.join('?' * len(row))}) "
                    "ON CONFLICT (hardware_id, device, case_key, side, measured) DO NOTHING",
                    list(row.values()),
                )
            counted = self._connection.value("SELECT count(*) FROM kernel_results WHERE id > ?", (before,))
        return int(counted)

    def latest(self, op: str | None = None, hardware_id: str | None = None) -> list[KernelResult]:
        """The newest result of each machine, device, case and side, the newest first; of one operation or machine."""
        wanted = {"op": op, "hardware_id": hardware_id}
        filters = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in filters) or "1"
        # SQLite takes the other columns from the row that holds the maximum.
        rows = self._connection.rows(
            f"SELECT *, max(measured) FROM kernel_results WHERE {where} "
            "GROUP BY hardware_id, device, case_key, side ORDER BY measured DESC, id DESC",
            [text(value) for value in filters.values()],
        )
        return [_result(row) for row in rows]

    def version(self) -> int:
        """A number that grows with every result: a key for caches."""
        return int(self._connection.value("SELECT coalesce(max(id), 0) FROM kernel_results"))


def _row(result: KernelResult, source: str) -> Row:
    found: Row = {name: text(getattr(result, name)) for name in _TEXT}
    found |= {name: number(name, getattr(result, name)) for name in _REAL}
    found |= {name: integer(name, getattr(result, name)) for name in _WHOLE}
    return found | {
        "measured": number("measured", result.measured),
        "source": text(source),
        "hardware_id": text(result.environment["hardware_id"]),
        "commit_id": text(result.environment.get("commit")),
        "environment": to_json("environment", dict(result.environment)),
        "case_json": to_json("case", dict(result.case)),
        "status": str(result.status),
        "compiled": None if result.compiled is None else to_json("compiled", [dict(fact) for fact in result.compiled]),
    }


def _result(row: Row) -> KernelResult:
    compiled = row["compiled"]
    found = KernelResult(
        measured=row["measured"],
        environment=json.loads(row["environment"]),
        case=json.loads(row["case_json"]),
        status=KernelStatus(row["status"]),
        compiled=None if compiled is None else tuple(json.loads(compiled)),
        **{name: row[name] for name in (*_TEXT, *_REAL, *_WHOLE)},
    )
    # Imported before such files were refused: no table and no picture could show it as measured.
    if lack := found.lack():
        return replace(found, status=KernelStatus.FAILED, note=f"it was imported with no {lack}; measure it again")
    return found
