"""``kernels ops | measure | compiled | results | import``: how near to the hardware each kernel is, and how exact."""

from __future__ import annotations

import json as jsonlib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.format import duration, percent, si
from commands.database import open_database
from commands.kernel_options import DeviceName, takes_cases
from commands.options import Db, Json
from commands.output import note, print_json, print_table, say
from engine.laboratory.cases import OPS, Case, make_case
from engine.laboratory.device import look
from engine.measure.hardware import ceilings_key
from spec.choices import JobState
from spec.errors import Cancelled, InputError, SpecError
from spec.kernel_result import PLANNED, KernelResult, KernelStatus, parse_results
from spec.paths import expand
from store import Store

Sides = Annotated[str | None, typer.Option("--sides", help="Only these implementations, with commas between.")]
Save = Annotated[bool, typer.Option("--save/--no-save", help="Keep the results in the database.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.01, max=60, help="Time to spend on timing each one.")]
WithCompiled = Annotated[
    bool, typer.Option("--compiled/--no-compiled", help="Also ask the compiler about our kernels.")
]
Capabilities = Annotated[str, typer.Option("--capability", help="Compute capabilities of GPUs: 80, 89, 90.")]
OpName = Annotated[str | None, typer.Option("--op", help="Only this operation.")]
File = Annotated[
    Path, typer.Argument(help="What `kernels measure --json` wrote on another machine.", show_default=False)
]
COLUMNS = ("side", "time", "quartiles", "bytes/s", "of copy", "FLOP/s", "of matmul", "error", "PyTorch's", "")
RIGHT = COLUMNS[1:-1]

app = typer.Typer(no_args_is_help=True, help="Measure single kernels: error against fp64, time, share of the hardware.")


@app.command()
def ops(device: DeviceName = "auto", json: Json = False) -> None:
    """List the operations, their shape, features and implementations, and why one cannot run here."""
    found = look(device)
    rows = []
    for op in OPS.values():
        case = make_case(op.name, on_gpu=found.on_gpu)
        rows.append(
            {
                "op": op.name,
                "label": op.label,
                "help": op.help,
                "fields": {f.name: f.default(found.on_gpu) for f in op.fields},
                "features": {f.name: list(f.choices) or f.usual or True for f in op.features},
                "sides": [{"name": s.name, "label": s.label, "reason": s.reason(case, found)} for s in op.sides],
                "cost": " ".join((op.cost.__doc__ or "").split()),
            }
        )
    if json:
        print_json(rows)
        return
    for row in rows:
        say(f"{row['op']}: {row['help']}")
        say(f"  shape     {', '.join(f'{n}={v}' for n, v in row['fields'].items())}")
        say(f"  features  {', '.join(row['features']) or 'none'}")
        for side in row["sides"]:
            say(f"  {side['name']:16}{side['label']}" + (f" (cannot run: {side['reason']})" if side["reason"] else ""))
        say(f"  {row['cost']}")
        say("")


@app.command()
@takes_cases
def measure(
    cases: list[Case], device: str, sides: Sides = None, seconds: Seconds = 1.0, save: Save = True,
    compiled: WithCompiled = True, db: Db = None, json: Json = False,
) -> None:  # fmt: skip
    """Measure cases on this machine. With --json each result is one line, written as it comes.

    Ctrl-C stops after the result at hand; what was measured is kept.
    """
    from engine.laboratory.measure import here, planned, sides_of
    from engine.laboratory.measure import measure as measured

    names = [name.strip() for name in sides.split(",")] if sides else None
    total = planned(cases, names)
    for case in cases:
        sides_of(case.op, names)
    machine = here(device)
    found: list[KernelResult] = []
    with open_database(db) as store, _stopping() as stop:
        _warn_of_runs(store)
        if json:
            _line({PLANNED: total})
        limits = ceilings(store, machine.name)
        for result in measured(cases, machine, sides=names, ceilings=limits, stop=stop, budget_s=seconds,
                               with_compiled=compiled):  # fmt: skip
            found.append(result)
            if save:
                store.kernel_results.add([result])
            if json:
                _line(result.to_dict())
            else:
                note(f"{len(found)} of {total}  {result.case_text}  {result.side}")
    if not json:
        show(found)
    if len(found) < total:
        kept = " and kept" if save else ""
        raise Cancelled(f"Stopped; {len(found)} of {total} results were measured{kept}.")


def ceilings(store: Store, device: str) -> dict[str, Any]:
    """The device's measured ceilings; measured now, for good, where nobody did so yet."""
    known = list(store.settings.get(ceilings_key(), []))
    if found := next((c for c in known if c.get("device") == device), None):
        return dict(found)
    from engine.measure.roofline import calibrate

    note("Measuring how fast this machine copies and multiplies; that takes up to a minute, once.")
    made = calibrate(device).to_dict()
    store.settings.set(ceilings_key(), [*(c for c in known if c.get("device") != device), made])
    return made


def _warn_of_runs(store: Store) -> None:
    for busy in store.jobs.list([JobState.RUNNING]):
        note(f"note: run {busy.run_id} is being measured too; both will look slower than they are.")


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second Ctrl-C does not wait for the result at hand."""
    came = False

    def take(number: int, _frame: object) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = True

    before = {n: signal.signal(n, take) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(value: dict[str, Any]) -> None:
    print(jsonlib.dumps(value, allow_nan=False), flush=True)


@app.command("compiled")
@takes_cases
def show_compiled(cases: list[Case], device: str, capability: Capabilities = "80,89,90", json: Json = False) -> None:
    """Say what Triton's compiler makes of our kernels for GPUs that need not be here: registers, spills, loads."""
    from engine.laboratory import compiled

    if reason := compiled.reason():
        raise InputError(f"Nothing can be compiled here: {reason}.")
    words = [word.strip() for word in capability.split(",")]
    if not all(word in map(str, compiled.CAPABILITIES) for word in words):
        raise SpecError(f"--capability takes {', '.join(map(str, compiled.CAPABILITIES))}, not {capability!r}.")
    rows = [
        {"case": str(case)} | fact for case in cases for fact in compiled.facts(case, [int(word) for word in words])
    ]
    if json:
        print_json(rows)
        return
    keys = ("case", "kernel", "capability", "registers", "spills", "shared", "tensor_core", "wide_loads", "error")
    print_table([key.replace("_", " ") for key in keys], [[row.get(key) for key in keys] for row in rows])


@app.command()
def results(op: OpName = None, db: Db = None, json: Json = False) -> None:
    """Show what is stored: the newest result of each case, implementation and machine."""
    if op is not None:
        make_case(op)  # says which operations there are
    with open_database(db) as store:
        found = store.kernel_results.latest(op)
    if json:
        print_json([result.to_dict() for result in found])
    elif found:
        show(found)
    else:
        say("No kernel was measured yet; `python cli.py kernels measure` does so.")


@app.command("import")
def import_results(file: File, db: Db = None, json: Json = False) -> None:
    """Take over the results of another machine; its hardware is named wherever they are shown."""
    try:
        text = expand(file).read_text()
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text; give a file that `kernels measure --json` wrote.") from None
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}); give a file that `kernels measure --json` wrote."
        ) from None
    found = parse_results(text)
    with open_database(db) as store:
        new = store.kernel_results.add(found, source="imported")
    if json:
        print_json({"results": len(found), "new": new})
    else:
        say(f"{new} new results of {len(found)}.")


def show(found: Sequence[KernelResult]) -> None:
    """A table for each case and machine."""
    groups: dict[tuple[str, str, str], list[KernelResult]] = {}
    for result in found:
        machine = str(result.environment.get("hardware_name", "unknown hardware"))
        groups.setdefault((result.case_text, machine, result.device), []).append(result)
    for (case, machine, device), some in groups.items():
        say(f"{case}   {machine}, {device}")
        ordered = sorted(some, key=lambda r: (r.status != KernelStatus.MEASURED, r.median_s or 0.0))
        print_table(COLUMNS, [cells(result) for result in ordered], right=RIGHT)
        say("")


def cells(result: KernelResult) -> tuple[str, ...]:
    """One row of the table."""
    if result.status is not KernelStatus.MEASURED:
        word = "failed" if result.status is KernelStatus.FAILED else "cannot run"
        return (result.side, *("" for _ in RIGHT), f"{word}: {result.note}")
    spread = f"{duration(result.q1_s)} - {duration(result.q3_s)}"
    return (
        result.side,
        duration(result.median_s),
        spread,
        si(result.bytes_per_s, "B/s"),
        percent(result.share_of_copy),
        si(result.flop_per_s, "FLOP/s"),
        percent(result.share_of_matmul),
        f"{result.error:.2g}",
        "n/a" if result.torch_error is None else f"{result.torch_error:.2g}",
        result.note or "",
    )
