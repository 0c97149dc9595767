"""What the compiler makes of a case's Triton kernels for GPUs that need not be here; about a second for each."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from typing import Any

from engine.laboratory.cases import OPS, Case
from engine.laboratory.op import Launch

CAPABILITIES = {80: "A100", 89: "L40, RTX 4090", 90: "H100, H200"}
FIRST_FP8 = 89
# Products on the tensor cores; loads of 16 bytes for each thread, or of a whole tile.
TENSOR = re.compile(r"\s(?:HMMA|HGMMA|QGMMA|QMMA|IMMA|IGMMA)\b")
WIDE = re.compile(r"\s(?:(?:LDG|LDGSTS)\S*\.128\b|UTMALDG)")


def reason() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    return None if importlib.util.find_spec("triton") else "Triton is not installed"


def facts(case: Case, capabilities: Sequence[int] = tuple(CAPABILITIES)) -> Iterator[dict[str, Any]]:
    """One entry for each kernel and kind of GPU: ``kernel``, ``capability``, and either ``error`` or what was made.

    That is ``registers`` of a thread, ``spills`` (loads and stores of local memory), ``shared`` bytes of a program,
    and how many instructions are ``tensor_core`` products and ``wide_loads``. Equal kernels are compiled once, and only
    for the GPUs that they are launched on.
    """
    for capability in capabilities:
        if case.has_fp8 and capability < FIRST_FP8:
            yield {"kernel": None, "capability": capability, "error": "this GPU has no fp8"}
            continue
        for launch in OPS[case.op].launches(case):
            if not launch.capabilities or capability in launch.capabilities:
                yield _made(_frozen(launch), capability)


def compile_launch(launch: Launch, capability: int) -> Any:
    """``kernels.compiled.Compiled`` of one launch. Raises what Triton raises."""
    from kernels.compiled import compile_for

    return compile_for(
        launch.kernel,
        launch.types,
        launch.constants,
        capability=capability,
        warps=launch.warps,
        stages=launch.stages,
        registers=launch.registers,
        unaligned=launch.unaligned,
    )


Pairs = tuple[tuple[str, Any], ...]
Frozen = tuple[Any, Pairs, Pairs, int, int, frozenset[str], int | None, str]


def _frozen(launch: Launch) -> Frozen:
    types, constants = tuple(sorted(launch.types.items())), tuple(sorted(launch.constants.items()))
    rest = launch.warps, launch.stages, launch.unaligned, launch.registers, launch.name
    return launch.kernel, types, constants, *rest


@functools.lru_cache(maxsize=256)
def _made(launch: Frozen, capability: int) -> dict[str, Any]:
    kernel, types, constants, *rest, name = launch
    found = {"kernel": name or kernel.__name__.strip("_"), "capability": capability}
    try:
        made = compile_launch(Launch(kernel, dict(types), dict(constants), *rest), capability)
    except Exception as error:  # Triton's, LLVM's and the assembler's errors have no base in common
        words = str(error).strip().splitlines()
        return found | {"error": f"it does not compile ({words[-1] if words else type(error).__name__})"[:300]}
    return found | {
        "registers": made.registers,
        "spills": made.spills,
        "shared": made.shared,
        "tensor_core": len(TENSOR.findall(made.sass)),
        "wide_loads": len(WIDE.findall(made.sass)),
    }
