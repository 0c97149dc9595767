"""Our runtime against transformers, and llama.cpp where it is installed: ``python -m bench.engine [--quick] [--json]``.

Both sides of each figure run in one process, in turns, on the same weights and the same prompts, and greedy texts must
be equal. Each figure is a ratio of medians. Results are appended with hardware and commit to
``bench/results/engine.jsonl``; on a machine that does other work, trust ratios, not times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench.engine_cases import (
    Figure,
    accounting,
    batch_of_32,
    batch_of_one,
    large_shape,
    llama_cpp,
    majority,
    memory,
    overhead,
    rebase,
    speculative,
)
from bench.record import Report, arguments

GOALS = {
    "greedy_batch_32": 3.0,
    "greedy_batch_1": 3.0,
    "bf16_0.5b_batch_1": 2.0,
    "majority_16_prompt_400": 5.0,
    "rebase_16": 8.0,
    "speculative_passes": 1.5,
    "best_of_64_blocks": 1.0 / 1.2,
    "scheduling_share": 10.0,
    "llama_cpp_batch_32": 2.0,
    "llama_cpp_batch_1": 0.5,
}
CASES: dict[str, Callable[[bool, int], Sequence[Figure]]] = {
    "greedy_batch_32": batch_of_32,
    "greedy_batch_1": batch_of_one,
    "majority_16_prompt_400": majority,
    "rebase_16": rebase,
    "speculative_passes": speculative,
    "best_of_64_blocks": memory,
    "scheduling_share": overhead,
    "accounting": accounting,
    "bf16_0.5b_batch_1": large_shape,
    "llama_cpp": llama_cpp,
}


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=list(CASES), action="append", help="one figure; may be given several times")
    parser.add_argument("--tries", type=int, default=5)
    chosen = parser.parse_args()
    tries = 1 if chosen.quick else chosen.tries
    report = Report("engine", GOALS, quick=chosen.quick, threads=torch.get_num_threads(), tries=tries)
    try:
        for name in chosen.only or list(CASES):
            for figure in CASES[name](chosen.quick, tries):
                report.add(figure)
    finally:  # what was measured until it was interrupted is kept
        report.close(as_json=chosen.json)


if __name__ == "__main__":
    main()
