"""Which settings of our kernels are fastest on this GPU: stages of the pipeline, splits of the keys, rows to a kernel.

    python -m bench.gpu_settings [--out settings.jsonl]

What the kernels choose by themselves (`kernels.attention.stages_for`, `kernels.decode.triton.splits_for`,
`kernels.linear.triton.ROWS` and `MANY`) was chosen by what the compiler makes of it. This measures it: each line is one
setting of one case, and the fastest is marked beside what is chosen.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.gpu_kernels import LLAMA, QWEN
from engine.laboratory.cases import OPS, Case, make_case
from engine.laboratory.measure import words_of
from engine.measure import timing
from engine.measure.hardware import fingerprint
from engine.runtime import vectors
from engine.runtime.products import Product

STAGES = (None, 2, 3, 5, 7)  # None: as chosen
SPLITS = (None, 1, 2, 4, 8, 16, 32)
# The rows up to which a kernel takes few, and up to which one takes many; behind them the weight is made whole.
ROWS = {"few rows": (2**30, 2**30), "many rows": (1, 2**30), "the weight made whole": (1, 1)}
MATRIX = {"inputs": 4096, "outputs": 14336}
CASES = (
    *(("decode", {"batch": b, "context": c} | LLAMA, {}) for b, c in ((32, 4096), (8, 4096), (1, 32768), (1, 1024))),
    ("decode", {"batch": 32, "context": 4096} | QWEN, {}),
    *(("prefill", {"batch": b, "new": n} | LLAMA, {}) for b, n in ((4, 4096), (1, 512))),
    ("shared", {"batch": 64, "prefix": 8192, "suffix": 128} | LLAMA, {}),
    *(("linear", {"rows": n} | MATRIX, {"weight": w}) for w in ("int4", "int8") for n in (16, 32, 64, 128, 256, 512)),
)
# Queries with keys and values, output, gate with up, and down of Llama 3.1 8B.
MATRICES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
Setting = dict[str, int | str | None]


def settings_of(op: str) -> Iterator[Setting]:
    """What is tried of an operation; None leaves the choice to the kernels, which is tried first."""
    if op == "linear":
        yield from ({"rows": rows} for rows in (None, *ROWS))
    else:
        for stages, splits in itertools.product(STAGES, SPLITS if op == "decode" else (None,)):
            yield {"stages": stages, "splits": splits}


@contextlib.contextmanager
def chosen(op: str, setting: Mapping[str, Any]) -> Iterator[None]:
    """The kernels of an operation launch themselves so."""
    module = {"shared": "forest"}.get(op, op)
    with contextlib.ExitStack() as stack:
        if (stages := setting.get("stages")) is not None:
            name = "stages_for_decoding" if op == "decode" else "stages_for"
            stack.enter_context(mock.patch(f"kernels.{module}.triton.{name}", return_value=stages))
        if (splits := setting.get("splits")) is not None:
            stack.enter_context(mock.patch("kernels.decode.triton.splits_for", return_value=splits))
        if (rows := setting.get("rows")) is not None:
            for name, value in zip(("ROWS", "MANY"), ROWS[rows], strict=True):
                stack.enter_context(mock.patch(f"kernels.linear.triton.{name}", value))
        yield


def sweep(cases: Sequence[Case], budget_s: float = 0.1, out: Path | None = None) -> int:
    """Print a line for each setting, and the fastest of each case; how many failed."""
    return sum(_case(case, budget_s, out) for case in cases)


def _case(case: Case, budget_s: float, out: Path | None) -> int:
    op, device, failed = OPS[case.op], torch.device("cuda", 0), 0
    size, usual, found = case.cost().bytes_moved, math.nan, list[tuple[float, str]]()
    try:
        inputs = [op.inputs(case, device, i) for i in range(timing.copies_for(size, device, op.held(case)))]
    except Exception as error:  # e.g. out of memory
        print(f"{case!s:72} {words_of(error)}", flush=True)
        return 1
    for setting in settings_of(case.op):
        how = ", ".join(f"{name} {value or 'as chosen'}" for name, value in setting.items())
        try:
            with chosen(case.op, setting), torch.inference_mode():
                calls = [op.side("triton").prepare(case, x).run for x in inputs]
                timed = timing.time_calls(calls, device, budget_s)
        except Exception as error:  # e.g. out of shared memory: the other settings go on
            failed += 1
            print(f"{case!s:72} {how:40} {words_of(error)}", flush=True)
            continue
        found.append((timed.median_s, how))
        usual = usual if any(setting.values()) else timed.median_s
        rate = size / timed.median_s / 1e12
        print(f"{case!s:72} {how:40} {timed.median_s * 1e6:9.1f} us {rate:6.2f} TB/s", flush=True)
        if out:
            machine = fingerprint()
            row = {"hardware": machine["hardware_name"], "commit": machine["commit"], "case": str(case)}
            with out.open("a") as file:
                file.write(json.dumps(row | setting | {"median_s": timed.median_s}) + "\n")
    if found:
        best, how = min(found)
        print(f"  fastest: {how}: {best / usual:.2f} of what is chosen takes")
    return failed


def single_rows(device: torch.device) -> None:
    """Print what our kernel for a single row takes beside PyTorch's product, for the matrices of Llama 3.1 8B."""
    for n, k in MATRICES:
        copies = timing.copies_for(2 * n * k, device)
        try:
            layers = [torch.nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16) for _ in range(copies)]
            chosen = vectors.choose([part for layer in layers for part in Product([layer]).plain], device)
        except Exception as error:  # e.g. out of memory
            print(f"one row times {n} x {k}: {words_of(error)}", flush=True)
            continue
        for shape, rows in chosen.rows.items():
            what = f"our kernel, {rows} rows" if rows else "PyTorch"
            print(f"one row times {shape}: {what}, {chosen.shares[shape]:.2f} of PyTorch's time", flush=True)


def main() -> int:
    """Sweep the usual cases. A setting that fails is a line, for none but the chosen one has to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="append each line to this file, as JSON")
    options = parser.parse_args()
    cases = [make_case(op, "bf16", features=features, on_gpu=True, **shape) for op, shape, features in CASES]
    sweep(cases, out=options.out)
    with torch.inference_mode():
        single_rows(torch.device("cuda", 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
