"""The residual sum and RMSNorm behind it: the seam between two parts of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.laboratory import sides
from engine.laboratory.op import Call, Cost, Field, Launch, Op, Side, first_rows

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case

EPS = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """``x`` and ``residual`` [tokens, width], ``weight`` [width]."""

    x: torch.Tensor
    residual: torch.Tensor
    weight: torch.Tensor


def cost(case: Case) -> Cost:
    """Reads x, residual and weight, writes the norm and the sum: (4 T n + n) e bytes; 5 T n operations.

    For each number one addition, one square and its sum, one product with the scale and one with the weight.
    """
    numbers = case["tokens"] * case["width"]
    return Cost((4 * numbers + case["width"]) * case.element, 5 * numbers)


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random numbers."""
    make = sides.random(device, seed, case.dtype)
    shape = case["tokens"], case["width"]
    return Inputs(make(*shape), make(*shape), make(case["width"]))


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In fp64."""
    from kernels.norm import reference as plain

    return plain.add_rms_norm(x.x[rows], x.weight, EPS, x.residual[rows])


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernel."""
    from kernels.norm.triton import add_rms_norm

    return Call(lambda: add_rms_norm(x.x, x.weight, EPS, x.residual), first_rows)


def eager(case: Case, x: Inputs) -> Call:
    """As transformers' Llama module has it: in fp32, rounded before the weight."""
    import torch

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        total = x.x + x.residual
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return x.weight * wide.to(total.dtype), total

    return Call(run, first_rows)


def fused(case: Case, x: Inputs) -> Call:
    """PyTorch's own rms_norm behind an addition."""
    from torch.nn.functional import rms_norm

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        total = x.x + x.residual
        return rms_norm(total, (total.shape[-1],), x.weight, EPS), total

    return Call(run, first_rows)


def launches(case: Case) -> list[Launch]:
    """The one kernel."""
    from kernels.norm import triton as norm

    block = sides.power_of_2(case["width"])
    kind = sides.pointer(case.dtype)
    types = dict.fromkeys(("X", "RESIDUAL", "WEIGHT", "OUT", "TOTAL"), kind)
    types |= {"x_row": "i32", "eps": "fp32", "offset": "fp32"}
    constants = {"N": case["width"], "BLOCK": block, "HAS_RESIDUAL": True, "WIDE": False}
    return [Launch(norm._add_rms_norm, types, constants, norm.warps_for(block))]


OP = Op(
    name="norm",
    label="Norm",
    help="The residual sum and the norm of it, which stands before attention and before the MLP.",
    fields=(
        Field("tokens", "Tokens", "Tokens of a step.", 512, 4096, high=2**17),
        Field("width", "Width", "Numbers in a row: the model's hidden size.", 2048, 4096, high=2**15, model="hidden"),
    ),
    features=(),
    rows=lambda case: case["tokens"],
    cost=cost,
    inputs=inputs,
    reference=reference,
    sides=(
        Side("triton", "Isoquant, Triton", True, "One launch.", sides.triton, ours),
        Side("native", "Isoquant, C++", True, "Our own kernel for processors.", sides.inside_native, ours),
        Side("eager", "PyTorch, eager", False, "As transformers has it: seven operations.", sides.always, eager),
        Side("rms-norm", "PyTorch, rms_norm", False, "An addition and torch's own norm.", sides.always, fused),
    ),
    launches=launches,
    sweeps=("tokens", "width"),
)
