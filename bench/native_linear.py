"""Our C++ products by format, beside PyTorch's packed ones: ``python -m bench.native_linear [--quick]``.

Products run at the shapes of a layer of Qwen2.5 0.5B and of its output head, over so many copies of the weight that
none is found in a cache; formats take turns, so that other work on the machine meets all of them alike. Each time is a
median, each ratio against our bf16. What formats do for a whole model: ``python -m bench.compress --only speed``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.decoding import in_turns
from kernels.linear.weight import Kind, QuantizedWeight, codes_of, quantize
from kernels.native import matrix

LAYER = {"q, o": (896, 896), "k, v": (128, 896), "gate, up": (4864, 896), "down": (896, 4864)}
HEAD = {"head": (151_936, 896)}
CACHE_BYTES = 100_000_000  # of copies, more than any cache holds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and not the output head")
    products(parser.parse_args().quick)


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


if __name__ == "__main__":
    main()
