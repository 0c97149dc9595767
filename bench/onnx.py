"""Decoding in ONNX Runtime beside our runtime and transformers: ``python -m bench.onnx [--quick] [--json]``.

One table from one run: tokens a second while decoding, all sides in one process, in turns, on the same weights and
prompts. Figures are appended with hardware and commit to ``bench/results/onnx.jsonl``; on a machine that does other
work, trust ratios, not speeds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.record import Figure, Report, arguments
from bench.sides import HOST, in_turns, model, ours, prompts, rows, theirs
from engine.backends.onnxruntime import OnnxBackend
from engine.backends.rows import Backend
from engine.onnx.loading import get_onnx
from engine.run import never
from spec.choices import Dtype
from spec.recipe import parse_recipe
from spec.run_spec import Precision, RunSpec, Runtime

RECIPES = ("", "int8", "int8-dynamic", "int4")
BATCHES = (1, 8)
MODELS = {"lab-m": 96, "shape:qwen2.5-0.5b": 16}  # tokens decoded of each sequence


def onnx(name: str, batch_size: int, recipe: str) -> OnnxBackend:
    """ONNX Runtime on a model, exported first where that was not done."""
    runtime = Runtime(backend="onnxruntime", device="cpu", batch_size=batch_size)
    spec = RunSpec(name, Precision(Dtype.FP32), runtime, compression=parse_recipe(recipe))
    return OnnxBackend(get_onnx(HOST, spec, never, lambda text: print(text, flush=True)), batch_size)


def decoding(backend: Backend, contexts: list[tuple[int, ...]], limit: int) -> float:
    """Seconds of one decoding step: from each sequence's first token to its last, divided by the tokens between."""
    backend.forget()
    backend.submit(rows(contexts, limit, stop=()))
    grown = []
    while backend.busy:
        grown += [g for _, g in backend.step(lambda tokens: None)]
    longest = max(grown, key=lambda g: len(g.token_s))
    return (longest.token_s[-1] - longest.token_s[0]) / (len(longest.token_s) - 1)


def measure(report: Report, name: str, limit: int, tries: int) -> None:
    """All sides on one model, at each batch size."""
    loaded = model(name)
    stops, loaded.tokenizer.stop_ids = loaded.tokenizer.stop_ids, frozenset()
    try:
        for batch in BATCHES:
            contexts = prompts(name, batch)
            mine = ours(name, batch)
            sides: dict[str, Backend] = {"isoquant": mine, "transformers": theirs(name, batch)}
            for recipe in RECIPES:
                side = onnx(name, batch, recipe)
                side.loaded.tokenizer.stop_ids = frozenset()
                side = OnnxBackend(side.loaded, batch)
                sides[f"onnxruntime {recipe}".strip()] = side
            for side in sides.values():
                decoding(side, contexts, 4)
            calls: list[Callable[[], float]] = [lambda s=s, c=contexts: decoding(s, c, limit) for s in sides.values()]
            seconds = dict(zip(sides, in_turns(tries, *calls), strict=True))
            mine.close()
            for side, each in seconds.items():
                figure = f"{name} batch {batch} {side}"
                peer = seconds["transformers"]
                report.add(
                    Figure(figure, batch / each, batch / peer, peer / each, "tokens/s", "peer: transformers fp32")
                )
    finally:
        loaded.tokenizer.stop_ids = stops


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=list(MODELS), action="append", help="one model; may be given several times")
    parser.add_argument("--tries", type=int, default=3)
    chosen = parser.parse_args()
    report = Report("onnx", {}, quick=chosen.quick, threads=torch.get_num_threads(), tries=chosen.tries)
    try:
        for name in chosen.only or (list(MODELS)[:1] if chosen.quick else list(MODELS)):
            measure(report, name, MODELS[name], 1 if chosen.quick else chosen.tries)
    finally:  # what was measured until it was interrupted is kept
        HOST.clear()
        report.close(as_json=chosen.json)


if __name__ == "__main__":
    main()
