"""Which settings of the attention kernels are fastest on this GPU: stages of the pipeline, splits of the keys.

    python -m bench.gpu_settings [--out settings.jsonl]

What the kernels choose by themselves (`kernels.attention.stages_for`, `kernels.decode.triton.splits_for`) was chosen by
what the compiler makes of it. This measures it: each line is one setting of one case, and the fastest is marked beside
what is chosen.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch

from bench.gpu_kernels import LLAMA, QWEN
from engine.laboratory import timing
from engine.laboratory.cases import OPS, Case, make_case
from engine.laboratory.measure import words_of
from engine.measure.hardware import fingerprint

STAGES = (None, 2, 3, 5, 7)  # None: as chosen
SPLITS = (None, 1, 2, 4, 8, 16, 32)
CASES = (
    *(("decode", {"batch": b, "context": c} | LLAMA) for b, c in ((32, 4096), (8, 4096), (1, 32768), (1, 1024))),
    ("decode", {"batch": 32, "context": 4096} | QWEN),
    *(("prefill", {"batch": b, "new": n} | LLAMA) for b, n in ((4, 4096), (1, 512))),
    ("shared", {"batch": 64, "prefix": 8192, "suffix": 128} | LLAMA),
)


@contextlib.contextmanager
def chosen(op: str, stages: int | None, splits: int | None) -> Iterator[None]:
    """The kernels of an operation launch themselves so; None leaves the choice to them."""
    name = {"decode": "kernels.decode.triton", "prefill": "kernels.prefill.triton", "shared": "kernels.forest.triton"}
    with contextlib.ExitStack() as stack:
        if stages is not None:
            target = "stages_for_decoding" if op == "decode" else "stages_for"
            stack.enter_context(mock.patch(f"{name[op]}.{target}", return_value=stages))
        if splits is not None:
            stack.enter_context(mock.patch("kernels.decode.triton.splits_for", return_value=splits))
        yield


def sweep(cases: Sequence[Case], budget_s: float = 0.1, out: Path | None = None) -> int:
    """Print a line for each setting, and the fastest of each case; how many failed."""
    return sum(_case(case, budget_s, out) for case in cases)


def _case(case: Case, budget_s: float, out: Path | None) -> int:
    op, device, failed = OPS[case.op], torch.device("cuda", 0), 0
    size, found = case.cost().bytes_moved, dict[tuple[int | None, int | None], float]()
    try:
        inputs = [op.inputs(case, device, i) for i in range(timing.copies_for(size, device, op.held(case)))]
    except Exception as error:  # e.g. out of memory
        print(f"{case!s:72} {words_of(error)}", flush=True)
        return 1
    for stages, splits in itertools.product(STAGES, SPLITS if case.op == "decode" else (None,)):
        how = f"stages {stages or 'as chosen':<10} splits {splits or 'as chosen':<10}"
        try:
            with chosen(case.op, stages, splits), torch.inference_mode():
                calls = [op.side("triton").prepare(case, x).run for x in inputs]
                timed = timing.time_calls(calls, device, budget_s)
        except Exception as error:  # e.g. out of shared memory: the other settings go on
            failed += 1
            print(f"{case!s:72} {how} {words_of(error)}", flush=True)
            continue
        found[stages, splits] = timed.median_s
        rate = size / timed.median_s / 1e12
        print(f"{case!s:72} {how} {timed.median_s * 1e6:9.1f} us {rate:6.2f} TB/s", flush=True)
        if out:
            machine = fingerprint()
            row = {"hardware": machine["hardware_name"], "commit": machine["commit"], "case": str(case)}
            row |= {"stages": stages, "splits": splits, "median_s": timed.median_s}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if found:
        best = min(found, key=lambda key: found[key])
        usual = found.get((None, None), float("nan"))
        print(f"  fastest: stages {best[0]}, splits {best[1]}: {found[best] / usual:.2f} of what is chosen takes")
    return failed


def main() -> int:
    """Sweep the usual cases. A setting that fails is a line, for none but the chosen one has to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="append each line to this file, as JSON")
    options = parser.parse_args()
    sweep([make_case(op, "bf16", on_gpu=True, **shape) for op, shape in CASES], out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
