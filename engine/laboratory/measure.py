"""Measures cases: for each side its error against fp64, its time, and how near that comes to the hardware's limits.

    device = here("auto")
    for result in measure([make_case("decode", batch=8)], device, ceilings=calibrate(device.name)):
        print(result.side, result.error, result.median_s, result.note)

A side that cannot run, fails, or runs out of memory is a result with its reason in words; the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine.devices import is_out_of_memory, release
from engine.laboratory import compiled
from engine.laboratory.cases import OPS, Case, refusal
from engine.laboratory.device import Device, look
from engine.laboratory.op import Call, Op, Side
from engine.measure import timing
from engine.measure.hardware import fingerprint
from engine.measure.roofline import Roofline
from kernels.native import build
from spec.errors import unknown
from spec.kernel_result import KernelResult, KernelStatus

CHECKED = {"decode": 16, "shared": 16, "prefill": 16, "sampler": 64}  # rows held against fp64 where that is slow
CHECKED_ROWS = 512


def here(wanted: str = "auto") -> Device:
    """The device as torch and the compiler of this machine see it; SpecError where there is no such GPU."""
    found = look(wanted)
    return found if found.on_gpu else replace(found, native=build.reason())


def sides_of(op: str, names: Sequence[str] | None = None) -> list[Side]:
    """The sides of an operation, all or those named. Raises SpecError for a name that is none."""
    known = {s.name: s for s in OPS[op].sides}
    for name in names or ():
        if name not in known:
            raise unknown(f"side of {op}", name, known, field="sides")
    return [s for s in known.values() if not names or s.name in names]


def planned(cases: Sequence[Case], sides: Sequence[str] | None = None) -> int:
    """How many results ``measure`` will give."""
    return sum(len(sides_of(case.op, sides)) for case in cases)


def measure(
    cases: Sequence[Case],
    device: Device,
    *,
    sides: Sequence[str] | None = None,
    ceilings: Roofline | Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    budget_s: float = timing.BUDGET_S,
    with_compiled: bool = True,
    seed: int = 0,
) -> Iterator[KernelResult]:
    """Yield a result for each case and side, as they come.

    Args:
        sides: names; None for all.
        ceilings: of the device, from ``engine.measure.roofline``; without them there are no shares.
        stop: asked before each result; True ends it.
        budget_s: seconds of timing for each side.
        with_compiled: also ask the compiler about the Triton kernels of each case.
    """
    for case in cases:
        yield from _case(case, device, sides_of(case.op, sides), _limits(ceilings, case), stop, budget_s,
                         with_compiled, seed)  # fmt: skip


def _limits(ceilings: Roofline | Mapping[str, Any] | None, case: Case) -> dict[str, float | None]:
    """Copying, and multiplying in the case's format or in fp32: a processor that emulates bf16 had better convert."""
    found: Mapping[str, Any] = ceilings.to_dict() if isinstance(ceilings, Roofline) else ceilings or {}
    rates = found.get("matmul_flop_per_s") or {}
    known = [rate for rate in (rates.get(case.dtype), rates.get("fp32")) if rate is not None]
    return {"copy_bytes_per_s": found.get("copy_bytes_per_s"), "matmul_flop_per_s": max(known, default=None)}


def _case(
    case: Case, device: Device, sides: Sequence[Side], limits: dict[str, float | None], stop: Callable[[], bool],
    budget_s: float, with_compiled: bool, seed: int,
) -> Iterator[KernelResult]:  # fmt: skip
    op, cost = OPS[case.op], case.cost()
    blank = KernelResult(
        measured=time.time(),
        environment=fingerprint(),
        device=device.name,
        op=case.op,
        case_key=case.key(),
        case_text=str(case),
        case=case.to_dict(),
        side="",
        status=KernelStatus.CANNOT,
        bytes_moved=cost.bytes_moved,
        flops=cost.flops,
        **limits,
    )
    # Asked of all sides beforehand: from the first one on the inputs are there, and are no longer free memory.
    reasons = {side.name: refusal(case, device, side) for side in (*sides, op.side(op.baseline))}
    bench = Bench(op, case, torch.device(device.name), seed, reasons[op.baseline] is None)
    for side in sides:
        if stop():
            return
        row = replace(blank, side=side.name, measured=time.time())
        if with_compiled and side.name == "triton" and compiled.reason() is None:
            row = replace(row, compiled=tuple(compiled.facts(case)))
        reason = reasons[side.name]
        yield replace(row, note=reason) if reason else _side(row, bench, side, budget_s)
    bench.close()


def _side(row: KernelResult, bench: Bench, side: Side, budget_s: float) -> KernelResult:
    try:
        with torch.inference_mode():
            bench.open()
            error = bench.error(side)
            timed = bench.time(side, budget_s)
            against = bench.torch_error()
    except Exception as error:  # whatever PyTorch, Triton or a driver raises: the other sides go on
        failed = replace(row, status=KernelStatus.FAILED, note=words_of(error))
        del error  # it holds the frames that hold the tensors
        release(bench.device)
        return failed
    return replace(
        row,
        status=KernelStatus.MEASURED,
        error=error,
        torch_error=against,
        median_s=timed.median_s,
        q1_s=timed.q1_s,
        q3_s=timed.q3_s,
        repeats=timed.repeats,
        note="; ".join(filter(None, (side.note(bench.case), timed.note or bench.note))) or None,
    )


def words_of(error: BaseException) -> str:
    """One line for a result's note."""
    if is_out_of_memory(error):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


class NotFiniteError(Exception):
    """A side gave numbers that are none; the text says so."""


@dataclass
class Bench:
    """One case's inputs and fp64 reference, made when the first side needs them."""

    op: Op
    case: Case
    device: torch.device
    seed: int
    has_baseline: bool = True

    def __post_init__(self) -> None:
        self._copies: list[Any] = []
        self._rows: torch.Tensor | None = None
        self._reference: tuple[torch.Tensor, ...] = ()
        self._torch_error: float | None = None
        self.note: str | None = None

    def open(self) -> None:
        """Make inputs and reference."""
        if self._copies:
            return
        size = self.case.cost().bytes_moved
        count = timing.copies_for(size, self.device, self.case.memory())
        first = self.op.inputs(self.case, self.device, self.seed)
        total = self.op.rows(self.case)
        some = min(total, CHECKED.get(self.op.name, CHECKED_ROWS))
        self._rows = torch.linspace(0, total - 1, some, dtype=torch.float64).round().long().unique().to(self.device)
        self._reference = self.op.reference(self.case, first, self._rows)
        self._copies = [first, *(self.op.inputs(self.case, self.device, self.seed + i) for i in range(1, count))]
        self.note = timing.fits_cache_note(size, count, self.device)

    def error(self, side: Side) -> float:
        """Norm of the difference over the norm of the reference, or the operation's own error, over the checked rows.

        Raises NotFiniteError, ValueError for other shapes, and what the operation's own error raises.
        """
        assert self._rows is not None
        call: Call = side.prepare(self.case, self._copies[0])
        found = call.read(call.run(), self._rows)
        if len(found) != len(self._reference):
            raise ValueError(f"{len(found)} results where the reference has {len(self._reference)}")
        wrong = right = 0.0
        for one, other in zip(found, self._reference, strict=True):
            if not torch.isfinite(one).all():
                raise NotFiniteError("the result has numbers that are not finite")
            if one.shape != other.shape:
                raise ValueError(f"a result of shape {tuple(one.shape)} where the reference has {tuple(other.shape)}")
            wrong += float((one.double() - other).square().sum())
            right += float(other.double().square().sum())
        error = math.sqrt(wrong / right) if right else math.sqrt(wrong)
        if self.op.error is not None:
            error = self.op.error(self.case, self._copies[0], self._rows, found, self._reference)
        if not math.isfinite(error):
            raise NotFiniteError("its error is not finite: the reference is zero")
        return error

    def torch_error(self) -> float | None:
        """The error of the operation's plain PyTorch side; None where that fails here or was refused."""
        if self._torch_error is None and self.has_baseline:
            try:
                self._torch_error = self.error(self.op.side(self.op.baseline))
            except (RuntimeError, NotFiniteError):  # e.g. out of memory, which others need not be
                return None
        return self._torch_error

    def time(self, side: Side, budget_s: float) -> timing.Timed:
        """Seconds of a call."""
        calls = [side.prepare(self.case, x).run for x in self._copies]
        return timing.time_calls(calls, self.device, budget_s)

    def close(self) -> None:
        """Let go of all tensors."""
        self._copies, self._reference, self._rows = [], (), None
        release(self.device)
