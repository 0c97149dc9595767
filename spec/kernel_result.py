"""What was found out about one implementation of one operation on one device."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from spec.errors import InputError, shorten

PLANNED = "planned"  # the first line of `kernels measure --json` says under this name how many results will follow


class KernelStatus(StrEnum):
    """``cannot``: it was not tried, for the reason in the note; ``failed``: it was, and the note says what happened."""

    MEASURED = "measured"
    FAILED = "failed"
    CANNOT = "cannot"


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One row: a case, a side (an implementation), and what was measured.

    Attributes:
        measured: seconds since 1970.
        environment: hardware_id, hardware_name, commit and the rest of ``engine.measure.hardware.fingerprint``.
        device: ``cpu`` or ``cuda:N`` of that machine.
        op, case_key, case_text, case: what was asked; ``case`` is ``engine.laboratory.cases.Case.to_dict``.
        status: what is measured has error, median_s, bytes_moved and flops (see ``lack``).
        error: norm of (found - fp64 reference) / norm of the reference.
        torch_error: the same for plain PyTorch in the same number format on the same inputs.
        median_s, q1_s, q3_s: of one call; ``repeats`` timings are behind them.
        bytes_moved, flops: of one call by the operation's formulas, the same for all sides.
        copy_bytes_per_s, matmul_flop_per_s: the device's measured ceilings, the second in the case's number format or
            in fp32, whichever is faster.
        compiled: what the compiler made of it, one entry for each kernel and kind of GPU; None where nobody asked.
        note: why there is no figure, or what the reader of the figures must know.
    """

    measured: float
    environment: Mapping[str, Any]
    device: str
    op: str
    case_key: str
    case_text: str
    case: Mapping[str, Any]
    side: str
    status: KernelStatus
    error: float | None = None
    torch_error: float | None = None
    median_s: float | None = None
    q1_s: float | None = None
    q3_s: float | None = None
    repeats: int | None = None
    bytes_moved: int | None = None
    flops: int | None = None
    copy_bytes_per_s: float | None = None
    matmul_flop_per_s: float | None = None
    compiled: tuple[Mapping[str, Any], ...] | None = None
    note: str | None = None

    @property
    def bytes_per_s(self) -> float | None:
        """Bytes moved per second."""
        return self.bytes_moved / self.median_s if self.median_s and self.bytes_moved is not None else None

    @property
    def flop_per_s(self) -> float | None:
        """Operations per second."""
        return self.flops / self.median_s if self.median_s and self.flops is not None else None

    @property
    def intensity(self) -> float | None:
        """Operations per byte moved."""
        return self.flops / self.bytes_moved if self.flops is not None and self.bytes_moved else None

    @property
    def share_of_copy(self) -> float | None:
        """Of the rate at which the device copies."""
        return _share(self.bytes_per_s, self.copy_bytes_per_s)

    @property
    def share_of_matmul(self) -> float | None:
        """Of the rate at which the device multiplies matrices of this number format."""
        return _share(self.flop_per_s, self.matmul_flop_per_s)

    @property
    def share(self) -> float | None:
        """Of the ceiling that binds: the larger of the two shares."""
        found = [s for s in (self.share_of_copy, self.share_of_matmul) if s is not None]
        return max(found) if found else None

    def lack(self) -> str | None:
        """What a measured result cannot do without and this one has not; None where it has all of it."""
        if self.status is not KernelStatus.MEASURED:
            return None
        if self.error is None:
            return "figure for error"
        # Every operation takes time, moves bytes and computes something: the pictures have no place for 0 of these.
        names = ("median_s", "bytes_moved", "flops")
        return next((f"figure above 0 for {name}" for name in names if not getattr(self, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; with the derived rates, for those who read the file without us."""
        found = asdict(self)
        derived = ("bytes_per_s", "flop_per_s", "share_of_copy", "share_of_matmul")
        return found | {"status": str(self.status)} | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_dict(cls, data: Any) -> KernelResult:
        """Inverse of ``to_dict``; names that are not known are left out. Raises InputError where it is none."""
        if not isinstance(data, Mapping):
            raise InputError(f"{shorten(data)} is no kernel result; give a file that `kernels measure --json` wrote.")
        found = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        try:
            found["status"] = KernelStatus(found["status"])
            if found.get("compiled") is not None:
                found["compiled"] = tuple(dict(fact) for fact in found["compiled"])
            made = cls(**found)
            made._check()
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise InputError(
                f"This is no kernel result ({shorten(str(error))}); give a file that `kernels measure --json` wrote."
            ) from None
        return made

    def _check(self) -> None:
        for name in ("device", "op", "case_key", "case_text", "side"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is no text")
        for name in ("environment", "case"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} is no object")
        if self.note is not None and not isinstance(self.note, str):
            raise ValueError("note is no text")
        for name in NUMBERS:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if (value is not None or name == "measured") and not (number and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is no number from 0 on")
        if lack := self.lack():
            raise ValueError(f"it says measured and has no {lack}")
        for name in ("bytes_per_s", "flop_per_s"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise ValueError(f"median_s is so small that {name} is no number")


NUMBERS = (
    "measured", "error", "torch_error", "median_s", "q1_s", "q3_s", "repeats", "bytes_moved", "flops",
    "copy_bytes_per_s", "matmul_flop_per_s",
)  # fmt: skip


def _share(rate: float | None, ceiling: float | None) -> float | None:
    return rate / ceiling if rate is not None and ceiling else None


def parse_results(text: str) -> list[KernelResult]:
    """The results in what ``kernels measure --json`` (a line for each) or ``kernels results --json`` (a list) wrote.

    Raises InputError naming the line that is none.
    """
    if text.lstrip().startswith("["):
        try:
            return [KernelResult.from_dict(entry) for entry in json.loads(text)]
        except ValueError as error:
            raise InputError(f"The file is no JSON ({error}); give one that `kernels measure --json` wrote.") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not (isinstance(entry, dict) and PLANNED in entry):
                found.append(KernelResult.from_dict(entry))
        except ValueError as error:
            raise InputError(
                f"Line {number} is no JSON ({error}); give a file that `kernels measure --json` wrote."
            ) from None
        except InputError as error:
            raise InputError(f"Line {number}: {error}") from None
    return found
