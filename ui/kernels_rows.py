"""Which results the page Kernels shows: the stored ones and those that come with Isoquant. No Streamlit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from engine.laboratory.cases import OPS, PRESETS, Case
from engine.measure.hardware import ROOT, fingerprint
from spec.errors import InputError, IsoquantError
from spec.kernel_result import KernelResult, KernelStatus, parse_results
from store import Store

SHIPPED = ROOT / "bench" / "results" / "kernels.jsonl"
Machine = tuple[str, str]  # hardware id and device


@dataclass(frozen=True, slots=True)
class Sweep:
    """Cases that differ in one field: ``lines`` maps a side to (value of the field, result) in ascending order."""

    field: str
    lines: Mapping[str, tuple[tuple[int, KernelResult], ...]]


def load(store: Store, op: str) -> list[KernelResult]:
    """The newest result of each machine, case and side, the newest first."""
    found: dict[tuple[str, ...], KernelResult] = {}
    rows = [*store.kernel_results.latest(op), *(r for r in shipped(SHIPPED, _changed(SHIPPED)) if r.op == op)]
    for result in sorted(rows, key=lambda r: -r.measured):
        found.setdefault((*machine_of(result), result.case_key, result.side), result)
    return list(found.values())


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@lru_cache(maxsize=2)
def shipped(path: Path, changed: float) -> tuple[KernelResult, ...]:
    """Results that come with Isoquant; none where there is no such file, or what is in it is none."""
    try:
        return tuple(parse_results(path.read_text()))
    except (OSError, UnicodeDecodeError, InputError):
        return ()


def machine_of(result: KernelResult) -> Machine:
    """Hardware id and device."""
    return str(result.environment.get("hardware_id")), result.device


def machines(results: Iterable[KernelResult]) -> dict[Machine, str]:
    """Every machine with its name; this one comes first, then the one that measured last."""
    found: dict[Machine, str] = {}
    for result in sorted(results, key=lambda r: (not is_here(r), -r.measured)):
        on_cpu = " (its processor)" if result.device == "cpu" and result.environment.get("gpus") else ""
        index = result.device.partition(":")[2]
        number = f", GPU {index}" if index not in ("", "0") else ""
        name = hardware(result) + on_cpu + number
        found.setdefault(machine_of(result), f"{name} (this machine)" if is_here(result) else name)
    return found


def is_here(result: KernelResult) -> bool:
    """Whether it was measured on this machine."""
    return machine_of(result)[0] == fingerprint()["hardware_id"]


def cases(results: Iterable[KernelResult]) -> dict[str, str]:
    """Key and words of every case, the one measured last first."""
    found: dict[str, str] = {}
    for result in sorted(results, key=lambda r: -r.measured):
        if result.case_key not in found:
            found[result.case_key] = case_words(result)
    return found


def of_case(results: Iterable[KernelResult], key: str) -> list[KernelResult]:
    """The results of one case: measured ones first, the fastest first, then failed ones, then the rest."""
    order = list(KernelStatus)
    return sorted(
        (r for r in results if r.case_key == key), key=lambda r: (order.index(r.status), r.median_s or 0.0, r.side)
    )


def sweeps(results: Iterable[KernelResult], key: str) -> list[Sweep]:
    """Along which fields there are other cases that are else equal to this one, as the operation orders them."""
    measured = [r for r in results if r.status is KernelStatus.MEASURED]
    here = next((case for r in measured if r.case_key == key and (case := case_of(r))), None)
    if here is None:
        return []
    found = []
    for field, _ in here.shape:
        lines: dict[str, list[tuple[int, KernelResult]]] = {}
        for r in measured:
            case = case_of(r)
            if case is not None and _without(case, field) == _without(here, field):
                lines.setdefault(r.side, []).append((case[field], r))
        values = {value for line in lines.values() for value, _ in line}
        if len(values) > 1:
            found.append(Sweep(field, {side: tuple(sorted(line, key=lambda p: p[0])) for side, line in lines.items()}))
    return found


def _without(case: Case, field: str) -> tuple[object, ...]:
    return case.dtype, case.features, tuple((n, v) for n, v in case.shape if n != field)


def case_of(result: KernelResult) -> Case | None:
    """The case; None for one that this version does not know."""
    try:
        return Case.from_dict(result.case)
    except IsoquantError:
        return None


def label(result: KernelResult) -> str:
    """The name of a side for people."""
    found = {s.name: s.label for s in OPS[result.op].sides} if result.op in OPS else {}
    return found.get(result.side, result.side)


def baseline(op: str) -> str:
    """The name of the implementation whose error others are held against."""
    return OPS[op].side(OPS[op].baseline).label if op in OPS else "plain PyTorch"


def hardware(result: KernelResult) -> str:
    """The name of the machine that measured it."""
    return str(result.environment.get("hardware_name") or "unknown hardware")


def case_words(result: KernelResult) -> str:
    """A case for people: whose shape, what else, in what format, with which features."""
    case = case_of(result)
    if case is None:  # of another version
        return result.case_text.partition(":")[2].replace(",", ", ")
    op, shape = OPS[case.op], dict(case.shape)
    alike = [p for p in PRESETS.values() if (some := p.fields(op.name)) and some.items() <= shape.items()]
    model = alike[0] if len(alike) == 1 else None
    inside = model.fields(op.name) if model else {}
    own = [f"{_lower(f.label)} {shape[f.name]:,}" for f in op.fields if f.name not in inside and shape[f.name]]
    labels = {f.name: _lower(f.label) for f in op.features}
    features = [labels[n] if value == 1 else f"{labels[n]} {value}" for n, value in case.features]
    return "  ·  ".join([", ".join([*own, case.dtype, *features]), *([model.title] if model else [])])


def _lower(name: str) -> str:
    """A label inside a sentence; abbreviations stay."""
    return name if name[1:2].isupper() else name[0].lower() + name[1:]


def is_ours(result: KernelResult) -> bool:
    """Whether Isoquant itself is measured."""
    return result.op in OPS and any(s.name == result.side and s.ours for s in OPS[result.op].sides)
