"""Our C++ products by format, beside PyTorch's packed ones, and decoding by format: ``python -m bench.native_linear``.

Products run at the shapes of a layer of Qwen2.5 0.5B and of its output head, over so many copies of the weight that
none is found in a cache; formats take turns, so that other work on the machine meets all of them alike. Each time is a
median, each ratio against our bf16. Decoding runs the whole model with random weights through the native forward pass.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.record import Figure, Report, arguments
from engine import random_weights
from engine.compress.linears import QuantizedEmbedding, QuantizedLinear
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.family import linears_of
from engine.runtime.native_runner import NativeRunner
from engine.shapes import SHAPES
from kernels.linear.weight import Kind, QuantizedWeight, codes_of, quantize
from kernels.native import matrix

SHAPE = SHAPES["qwen2.5-0.5b"]
LAYER = {"q, o": (896, 896), "k, v": (128, 896), "gate, up": (4864, 896), "down": (896, 4864)}
HEAD = {"head": (151_936, 896)}
FORMATS: dict[str, tuple[Kind, int]] = {"int8": (Kind.INT8, -1), "int4": (Kind.INT4, 64), "nf4": (Kind.NF4, 64)}
GOALS = {"decode_int8_batch_1": 1.4, "decode_int4_batch_1": 1.7}
CACHE_BYTES = 100_000_000  # of copies, more than any cache holds
CONTEXT = 64


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=["products", "decoding"])
    chosen = parser.parse_args()
    if chosen.only != "decoding":
        products(chosen.quick)
    if chosen.only != "products":
        report = Report("native_linear", GOALS, quick=chosen.quick, threads=torch.get_num_threads())
        try:
            for figure in decoding(chosen.quick):
                report.add(figure)
        finally:
            report.close(as_json=chosen.json)


def products(quick: bool) -> None:
    """Print one line for each shape, number of rows and format."""
    for name, (n, k) in (LAYER if quick else LAYER | HEAD).items():
        made = ways(torch.randn(n, k) * 0.02)
        for m in (1, 4, 16, 64):
            x = torch.randn(m, k)
            seconds = in_turns([partial(way.run, x) for way in made], 5 if quick else 9, 0.02)
            for way, s in zip(made, seconds, strict=True):
                print(
                    f"{name:9} {n:6}x{k:<5} m={m:<3} {way.name:22} {s * 1e6:10.1f} us"
                    f"  {seconds[0] / s:6.2f} x bf16  {way.size_bytes / s / 1e9:6.1f} GB/s",
                    flush=True,
                )


class Way:
    """One way to multiply with one weight, over ``copies`` of it in turn."""

    def __init__(self, name: str, size_bytes: int, copies: list[Any], call: Callable[[torch.Tensor, Any], Any]) -> None:
        self.name, self.size_bytes = name, size_bytes
        self._copies, self._call = itertools.cycle(copies), call

    def run(self, x: torch.Tensor) -> None:
        """One product."""
        self._call(x, next(self._copies))


def ways(weight: torch.Tensor) -> list[Way]:
    """bf16 first."""
    made = [_ours("bf16", weight.bfloat16()), _ours("fp32", weight)]
    int8, int4 = quantize(weight, Kind.INT8), quantize(weight, Kind.INT4, group=64)
    made += [_ours("int8", int8), _ours("int4, groups of 64", int4)]
    made.append(_ours("int4, zero points", quantize(weight, Kind.INT4, group=32, zero_points=True)))
    made.append(_ours("nf4, groups of 64", quantize(weight, Kind.NF4, group=64)))
    made += [_ours("fp8", quantize(weight, Kind.FP8)), _ours("int8 by int8", int8, "dynamic")]
    bf16 = torch.bfloat16
    copies = _copies(int8.size_bytes)
    codes, scales = [int8.codes.clone() for _ in range(copies)], int8.scales[:, 0].to(bf16)
    made.append(
        Way(
            "torch int8, bf16 in",
            int8.size_bytes,
            codes,
            lambda x, c: torch.ops.aten._weight_int8pack_mm(x.to(bf16), c, scales),
        )
    )
    half = int4.scales.T.to(bf16)
    zeros = torch.stack([half, torch.zeros_like(half)], -1).contiguous()
    wide = codes_of(int4).to(torch.int32) + 8
    fours = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1) for _ in range(_copies(int4.size_bytes))]
    made.append(
        Way(
            "torch int4, bf16 in",
            int4.size_bytes,
            fours,
            lambda x, c: torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(bf16), c, 64, zeros),
        )
    )
    return made


def _ours(name: str, weight: torch.Tensor | QuantizedWeight, activation: matrix.Activation = None) -> Way:
    size = matrix.pack(weight, activation).size_bytes
    return Way(f"ours {name}", size, [matrix.pack(weight, activation) for _ in range(_copies(size))], matrix.linear)


def _copies(size_bytes: int) -> int:
    return max(1, min(64, CACHE_BYTES // size_bytes))


def decoding(quick: bool) -> list[Figure]:
    """Tokens a second of each format at batch 1 and 8, against bf16 in turns."""
    made = {name: _runner(name) for name in ("bf16", *FORMATS)}
    figures = []
    for size in (1, 8):
        seconds = in_turns([step_of(runner, size) for runner in made.values()], 3 if quick else 15, 0.3)
        rates = dict(zip(made, (size / s for s in seconds), strict=True))
        figures += [
            Figure(f"decode_{n}_batch_{size}", r, rates["bf16"], r / rates["bf16"], "tokens/s", made[n].name)
            for n, r in rates.items()
        ]
    return figures


def _runner(name: str) -> NativeRunner:
    config = AutoConfig.for_model(SHAPE.model_type, **SHAPE.config)
    model = random_weights.fill(
        lambda: AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval(), torch.device("cpu")
    )
    if name in FORMATS:
        quantize_model(model, *FORMATS[name])
    runner = NativeRunner(model, torch.bfloat16, sole=True)
    runner.allocate(8 * (CONTEXT // BLOCK + 1))
    return runner


def quantize_model(model: Any, kind: Kind, group: int) -> None:
    """Every matrix of a Llama-like model by rounding to nearest; head and embedding become one."""
    for layer in model.base_model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, module in list(parent.named_children()):
                if module in linears_of(layer):
                    weight = quantize(module.weight.detach(), kind, group=group)
                    setattr(parent, name, QuantizedLinear.from_weight(weight, module.bias))
    head = QuantizedLinear.from_weight(quantize(model.get_output_embeddings().weight.detach(), kind, group=group))
    model.base_model.embed_tokens = QuantizedEmbedding(head.quantized, torch.bfloat16)
    model.lm_head = head


def step_of(runner: NativeRunner, size: int) -> Callable[[], None]:
    """One decoding step of ``size`` sequences behind CONTEXT tokens each."""
    width = CONTEXT // BLOCK + 1
    tables = np.arange(size * width, dtype=np.int32).reshape(size, width)
    slots = np.arange(size, dtype=np.int32)
    tokens, positions = np.full(size, 7, dtype=np.int32), np.full(size, CONTEXT, dtype=np.int32)
    batch = Batch(tokens, positions, slots, tables, slots)
    return lambda: runner.greedy(batch) and None


def in_turns(calls: list[Callable[[], None]], rounds: int, seconds: float) -> list[float]:
    """The median over ``rounds`` of each call's time, each repeated for about ``seconds`` in a round."""
    found: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, times in zip(calls, found, strict=True):
            count, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < seconds or not count:
                call()
                count += 1
            times.append(spent / count)
    return [statistics.median(t) for t in found]


if __name__ == "__main__":
    main()
