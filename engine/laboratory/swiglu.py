"""SwiGLU: what stands between the two halves of an MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.laboratory import sides
from engine.laboratory.op import Call, Cost, Field, Launch, Op, Side, first_rows

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """``both`` [tokens, 2 width]: gate and up as one matrix product gives them."""

    both: torch.Tensor

    def halves(self) -> tuple[torch.Tensor, ...]:
        """Gate and up [tokens, width], views."""
        return self.both.chunk(2, -1)


def cost(case: Case) -> Cost:
    """Reads gate and up, writes the product: 3 T n e bytes; 4 T n operations (exponential, sum, division, product)."""
    numbers = case["tokens"] * case["width"]
    return Cost(3 * numbers * case.element, 4 * numbers)


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random numbers."""
    return Inputs(sides.random(device, seed, case.dtype)(case["tokens"], 2 * case["width"]))


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In fp64."""
    from kernels.swiglu import reference as plain

    gate, up = x.halves()
    return (plain.gated(gate[rows], up[rows]),)


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernel."""
    from kernels.swiglu.triton import gated

    gate, up = x.halves()
    return Call(lambda: gated(gate, up), first_rows)


def eager(case: Case, x: Inputs) -> Call:
    """As transformers has it."""
    from torch.nn.functional import silu

    gate, up = x.halves()
    return Call(lambda: silu(gate) * up, first_rows)


def launches(case: Case) -> list[Launch]:
    """The one kernel."""
    from kernels.swiglu import triton as swiglu

    types = dict.fromkeys(("GATE", "UP", "OUT"), sides.pointer(case.dtype))
    types |= dict.fromkeys(("gate_row", "up_row", "n"), "i32")
    return [Launch(swiglu._gated, types, {"SILU": True, "BLOCK": swiglu.BLOCK}, 4)]


OP = Op(
    name="swiglu",
    label="SwiGLU",
    help="silu(gate) x up, between the matrices of an MLP.",
    fields=(
        Field("tokens", "Tokens", "Tokens of a step.", 512, 4096, high=2**17),
        Field(
            "width", "Width", "Numbers in a row: the inner size of the MLP.", 8192, 14_336, high=2**17, model="inner"
        ),
    ),
    features=(),
    rows=lambda case: case["tokens"],
    cost=cost,
    inputs=inputs,
    reference=reference,
    sides=(
        Side("triton", "Isoquant, Triton", True, "One launch.", sides.triton, ours),
        Side("native", "Isoquant, C++", True, "Our own kernel for processors.", sides.inside_native, ours),
        Side("eager", "PyTorch, eager", False, "As transformers has it: two operations.", sides.always, eager),
    ),
    launches=launches,
    sweeps=("tokens", "width"),
)
