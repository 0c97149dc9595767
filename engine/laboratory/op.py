"""What an operation is to the laboratory: its shape, its formulas, its fp64 reference, and who computes it.

To add one, write a module like ``engine/laboratory/swiglu.py`` with an ``Op`` in it and name it in
``engine.laboratory.cases.OPS``. Such a module imports torch and kernels only inside its functions: the web process
reads names, formulas and reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case
    from engine.laboratory.device import Device

    Found = tuple[torch.Tensor, ...]

PAGE = 16  # tokens of a block of the cache, as in engine.runtime
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Field:
    """One number of a shape. ``model``: what of a model's configuration it is, for presets; empty for none."""

    name: str
    label: str
    help: str
    cpu: int
    gpu: int
    low: int = 1
    high: int = 2**20
    model: str = ""

    def default(self, on_gpu: bool) -> int:
        """What suits the device."""
        return self.gpu if on_gpu else self.cpu


@dataclass(frozen=True, slots=True)
class Feature:
    """Something an operation may be asked for besides. ``choices``: its words; without them a number, or nothing.

    ``usual``: the number that a form starts from; None where the feature is just there or not. ``always``: there is no
    doing without; the first of the words where none is named.
    """

    name: str
    label: str
    help: str
    choices: tuple[str, ...] = ()
    usual: int | None = None
    always: bool = False


WINDOW = Feature("window", "Sliding window", "How many tokens each one sees, itself included.", usual=128)
SOFTCAP = Feature("softcap", "Softcap", "Scores s become c tanh(s / c), as in Gemma 2.", usual=50)
SINKS = Feature(
    "sinks", "Sinks", "A score for each head that takes a share of the weights and gives nothing (gpt-oss)."
)
ALIBI = Feature("alibi", "ALiBi", "Scores fall with the distance, by a slope for each head (Press et al. 2021).")
KV = Feature("kv", "Cache", "A cache of one byte to a number, with a scale for each token and head.", ("int8", "fp8"))
TREE = Feature(
    "tree", "Draft tree", "So many new tokens of each sequence, a binary tree: each sees its ancestors.", usual=8
)
QK_NORM = Feature("qk_norm", "QK-norm", "RMSNorm of each query and key head before the rotation (Qwen3).")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call cannot do without: bytes read and written once, and operations."""

    bytes_moved: int
    flops: int


@dataclass(frozen=True, slots=True)
class Call:
    """A side made ready. ``run`` is what is timed; ``read`` picks rows of what it gave, to be held against fp64."""

    run: Callable[[], Any]
    read: Callable[[Any, torch.Tensor], Found]


def first_rows(found: Any, rows: torch.Tensor) -> Found:
    """The usual ``read``: what was returned has the rows in front."""
    parts = found if isinstance(found, tuple) else (found,)
    return tuple(part[rows] for part in parts)


@dataclass(frozen=True, slots=True)
class Side:
    """One implementation. ``reason``: half a sentence on why it cannot run a case on a device; None where it can.

    ``prepare`` takes a case and one set of its inputs and gives a Call; what it does itself is not timed. ``note``:
    what a reader of its result must know. ``memory``: bytes that it takes beside the inputs, where these are many.
    """

    name: str
    label: str
    ours: bool
    help: str
    reason: Callable[[Case, Device], str | None]
    prepare: Callable[[Case, Any], Call]
    note: Callable[[Case], str | None] = field(default=lambda case: None)
    memory: Callable[[Case], int] = field(default=lambda case: 0)


@dataclass(frozen=True, slots=True)
class Launch:
    """A Triton kernel as its wrapper launches it: what ``kernels.compiled.compile_for`` takes.

    ``name``: where that of the function does not say which it is; ``capabilities``: of the GPUs that it is launched on,
    empty for all.
    """

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    unaligned: frozenset[str] = frozenset()
    registers: int | None = None
    name: str = ""
    capabilities: tuple[int, ...] = ()


HOPPER = (((90,), True), ((80, 89), False))
"""Compute capabilities on which attention is launched alike, and whether they are Hopper's."""


@dataclass(frozen=True, slots=True)
class Op:
    """An operation.

    Attributes:
        fields, features: what a case may say.
        rows: how many rows a case has, of which some are held against fp64.
        cost: bytes and operations of one call.
        inputs: (case, device, seed) -> one set of inputs.
        reference: (case, inputs, rows) -> those rows in fp64, in the parts that a Call reads.
        baseline: the side that is plain PyTorch; its error is what others are held against.
        launches: the Triton kernels of a case; empty without one.
        sweeps: fields along which one is curious, the first one first.
        check: raises SpecError for fields that clash.
        held: bytes of one set of inputs with what a side keeps of it, where that is more than a call moves.
        error: (case, inputs, rows, found, reference) -> error, where it is not the norm of the difference over that of
            the reference. Raises RuntimeError for what is not inexact but wrong.
    """

    name: str
    label: str
    help: str
    fields: tuple[Field, ...]
    features: tuple[Feature, ...]
    rows: Callable[[Case], int]
    cost: Callable[[Case], Cost]
    inputs: Callable[[Case, torch.device, int], Any]
    reference: Callable[[Case, Any, torch.Tensor], Found]
    sides: tuple[Side, ...]
    launches: Callable[[Case], Sequence[Launch]]
    baseline: str = "eager"
    sweeps: tuple[str, ...] = ()
    check: Callable[[Case], None] = field(default=lambda case: None)
    held: Callable[[Case], int] = field(default=lambda case: case.cost().bytes_moved)
    error: Callable[[Case, Any, torch.Tensor, Found, Found], float] | None = None

    def side(self, name: str) -> Side:
        """By name; KeyError where there is none."""
        return {s.name: s for s in self.sides}[name]
