"""What compression buys and costs: ``python -m bench.compress [--only CASE] [--quick] [--json]``.

Speed: tokens a second and bytes of Qwen2.5 0.5B with random weights at batch 1, compressed against bf16, in turns in
one process. Cache: the same behind a long context, with keys and values of one byte. Accuracy: the built-in models on
the same problems, each compressed one against the one it is compared with; every figure carries its 95 % interval.
Prepared models are kept in ``$ISOQUANT_HOME`` and found again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from bench.decoding import blocks_of, in_turns, step_of
from bench.record import Figure, Report, arguments
from engine.catalog import resolve
from engine.models import LoadedModel, ModelHost, load
from engine.run import execute
from engine.runtime.native_runner import NativeRunner
from engine.runtime.way import CACHE_TYPES
from spec.choices import Dtype, KvDtype
from spec.recipe import parse_recipe
from spec.run_spec import RunSpec, TaskSpec
from spec.statistics import wilson

LARGE, LAB, STUDENT = "shape:qwen2.5-0.5b", "lab-m", "lab-xs"
FAST = {"int8": "int8", "int4": "int4:group=128", "neurons": "prune:structure=neurons,level=0.5"}
LONG, ROWS = 8192, 8
BUDGET = "steps=2500,rate=0.003,batch=24"
TRAINED = f"recover:start=random,{BUDGET}"
TAUGHT = f"distill:teacher={LAB},start=random,{BUDGET}"
LEVELS = (0.5, 0.7)
GOALS = {
    "int8_batch_1": 1.4,
    "int4_batch_1": 1.7,
    "neurons_batch_1": 1.25,
    "int8_bytes": 1 / 0.55,
    "int4_bytes": 1 / 0.32,
}
HOST = ModelHost()


@dataclass(frozen=True, slots=True)
class Score:
    """Correct answers of some problems, and what the record of the prepared model says."""

    correct: int
    problems: int
    divergence: float | None

    @property
    def share(self) -> float:
        """The accuracy."""
        return self.correct / self.problems

    def __str__(self) -> str:
        low, high = wilson(self.correct, self.problems)
        away = "" if self.divergence is None else f", {self.divergence:.3g} nats away"
        return f"{self.share:.1%} ({low:.1%} to {high:.1%}){away}"


@lru_cache(maxsize=64)
def score(model: str, recipe: str, problems: int, precision: str = "auto") -> Score:
    """Greedy accuracy on the first problems of the test split."""
    spec = RunSpec(model, task=TaskSpec(limit=problems), compression=parse_recipe(recipe))
    if precision != "auto":
        spec = RunSpec.from_dict(spec.to_dict() | {"precision": {"weights": precision}})
    found = execute(spec, host=HOST).measures
    return Score(int(found["n_correct"] or 0), int(found["n_problems"] or 0), found["logit_kl"])


def speed(quick: bool) -> list[Figure]:
    """Decoding and size of the large shape, compressed against bf16."""
    made = {name: _loaded(recipe) for name, recipe in {"bf16": "", **FAST}.items()}
    runners = {name: _runner(loaded) for name, loaded in made.items()}
    seconds = in_turns([step_of(runner, 1) for runner in runners.values()], 3 if quick else 15, 0.3)
    rates = dict(zip(made, (1 / s for s in seconds), strict=True))
    whole = made["bf16"].weights_bytes
    figures = []
    for name in FAST:
        note, size = runners[name].name, made[name].weights_bytes
        figures.append(
            Figure(f"{name}_batch_1", rates[name], rates["bf16"], rates[name] / rates["bf16"], "tokens/s", note)
        )
        figures.append(
            Figure(f"{name}_bytes", size / 1e6, whole / 1e6, whole / size, "MB", f"{size / whole:.3f} of it")
        )
    return figures


def cache(quick: bool) -> list[Figure]:
    """Decoding behind a long context with a KV cache of one byte a number, against one in bf16."""
    loaded, context = _loaded(""), LONG // 8 if quick else LONG
    runners = {str(kind or "bf16"): _long_runner(loaded, kind, context) for kind in (None, KvDtype.INT8, KvDtype.FP8)}
    steps = [step_of(runner, ROWS, context) for runner in runners.values()]
    seconds = in_turns(steps, 3 if quick else 9, 0.5)
    rates = dict(zip(runners, (ROWS / s for s in seconds), strict=True))
    figures = []
    for name in ("int8", "fp8"):
        size, whole = (runners[n].block_bytes * blocks_of(ROWS, context) / 1e6 for n in (name, "bf16"))
        note = f"{ROWS} sequences behind {context} tokens"
        figures.append(
            Figure(f"cache_{name}", rates[name], rates["bf16"], rates[name] / rates["bf16"], "tokens/s", note)
        )
        figures.append(Figure(f"cache_{name}_bytes", size, whole, whole / size, "MB", f"{size / whole:.3f} of it"))
    return figures


def precision(quick: bool) -> list[Figure]:
    """bf16 against fp32, and quantized against whole."""
    n = _problems(quick)
    whole = score(LAB, "", n)
    found = [_against("bf16_accuracy", score(LAB, "", n, "bf16"), score(LAB, "", n, "fp32"))]
    for name in ("int8", "int8-dynamic", "int8-static", "fp8", "nf4", "int4"):
        found.append(_against(f"{name}_accuracy", score(LAB, name, n), whole))
    nearest = score(LAB, "int4", n)
    for name in ("gptq", "awq"):
        found.append(_against(f"int4_{name}_over_nearest", score(LAB, f"int4:rounding={name}", n), nearest))
    return found


def pruning(quick: bool) -> list[Figure]:
    """Wanda against magnitude, both ways of comparing, and fine-tuning: at half, and where there is much to lose."""
    n = _problems(quick)
    whole, found = score(LAB, "", n), []
    for level in LEVELS:
        step, name = f"prune:level={level}", f"{level:.0%}".replace("%", "_percent")
        magnitude = score(LAB, step, n)
        found.append(_against(f"pruned_{name}_over_whole", magnitude, whole))
        for scope in ("output", "layer"):
            wanda = score(LAB, f"{step},method=wanda,scope={scope}", n)
            found.append(_against(f"wanda_{scope}_{name}_over_magnitude", wanda, magnitude))
        if not quick:
            recovered = score(LAB, f"{step},recover=400,rate=0.0005", n)
            lost, back = whole.share - magnitude.share, recovered.share - magnitude.share
            note = f"{back / lost:.0%} of the loss regained" if lost > 0 else "nothing was lost"
            found.append(_against(f"recovered_{name}_over_pruned", recovered, magnitude, note))
    return found


def distillation(quick: bool) -> list[Figure]:
    """A new small model taught by the largest against the same one trained alone for as many steps."""
    n = _problems(quick)
    if quick:
        return []
    return [_against("taught_over_alone", score(STUDENT, TAUGHT, n), score(STUDENT, TRAINED, n))]


CASES: dict[str, Callable[[bool], Sequence[Figure]]] = {
    "speed": speed,
    "cache": cache,
    "precision": precision,
    "pruning": pruning,
    "distillation": distillation,
}


def _problems(quick: bool) -> int:
    return 40 if quick else 1000


def _against(name: str, ours: Score, peer: Score, more: str = "") -> Figure:
    ratio = ours.share / max(peer.share, 1 / peer.problems)
    return Figure(name, 100 * ours.share, 100 * peer.share, ratio, "% right", f"{ours} against {peer} {more}".strip())


def _loaded(recipe: str) -> LoadedModel:
    return load(resolve(LARGE), torch.device("cpu"), Dtype.BF16, recipe=parse_recipe(recipe))


def _long_runner(loaded: LoadedModel, kind: KvDtype | None, context: int) -> NativeRunner:
    runner = NativeRunner(loaded.model, torch.bfloat16, cache=CACHE_TYPES.get(kind) if kind else None)
    runner.allocate(blocks_of(ROWS, context))
    assert runner._kv is not None
    for tensor in (t for i in range(runner.layers) for t in runner._kv.tensors(i)):
        tensor.view(torch.uint8).fill_(0x30)  # written memory, and numbers of usual size in all formats
    return runner


def _runner(loaded: LoadedModel) -> NativeRunner:
    runner = NativeRunner(loaded.model, torch.bfloat16, sole=True)
    runner.allocate(blocks_of(1))
    return runner


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=list(CASES), action="append", help="one case; may be given several times")
    chosen = parser.parse_args()
    report = Report("compress", GOALS, quick=chosen.quick, threads=torch.get_num_threads())
    try:
        for name in chosen.only or list(CASES):
            for figure in CASES[name](chosen.quick):
                report.add(figure)
    finally:  # what was measured until it was interrupted is kept
        report.close(as_json=chosen.json)


if __name__ == "__main__":
    main()
