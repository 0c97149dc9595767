"""What Triton's compiler makes of a kernel, for a GPU that need not be there: registers, spills, instructions.

Triton brings NVIDIA's assembler and object dumper along, so all of this works on any machine with Triton.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel for one kind of GPU.

    Attributes:
        registers: of each thread; stack: bytes of local memory of each thread, where registers did not suffice.
        shared: bytes of shared memory of a program.
        sass: the machine code; ttgir: what it was made of, Triton's form for GPUs.
    """

    registers: int
    stack: int
    shared: int
    sass: str
    ttgir: str

    def count(self, instruction: str) -> int:
        """How often an instruction occurs, by the beginning of its name: ``HGMMA``, ``LDGSTS.E.BYPASS.128``."""
        return len(re.findall(rf"\s{re.escape(instruction)}", self.sass))

    @property
    def left_under_way(self) -> tuple[int, ...]:
        """For each wait for asynchronous copies, how many it leaves under way."""
        return tuple(int(n) for n in re.findall(r"async_wait.*?num = (\d+)", self.ttgir))

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count("STL") + self.count("LDL")


def compile_for(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    capability: int = 90,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
    unaligned: frozenset[str] = frozenset(),
) -> Compiled:
    """Compile a ``triton.jit`` or ``gluon.jit`` function.

    Args:
        kernel: the function.
        types: of its arguments that are not constants, as Triton writes them: ``*bf16``, ``i32``, ``fp32``,
            ``tensordesc<bf16[64, 128]>``; Gluon's descriptors name their layout behind the shape.
        constants: its ``constexpr`` arguments.
        capability: of the GPU: 80 (A100), 89 (L40, RTX 4090), 90 (H100, H200).
        registers: at most so many for each thread; where warps are specialised, so many to begin with.
        unaligned: pointers and integers that are no multiples of 16; all others are taken to be, as at most launches.

    Raises what Triton raises where it does not compile.
    """
    names = list(kernel.arg_names)
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    values = {(names.index(n),): v for n, v in constants.items()}
    aligned = [i for i, n in enumerate(names) if n not in constants and n not in unaligned]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned if signature[names[i]][0] in "*i"}
    source = _source(kernel)(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return read(made)


def read(made: Any) -> Compiled:
    """What stands in a kernel as ``triton.compile`` or a launch made it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(made.asm["cubin"])
        usage = _dump("--dump-resource-usage", file)
        sass = _dump("--dump-sass", file)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Compiled(int(found[1]), int(found[2]), int(made.metadata.shared), sass, str(made.asm["ttgir"]))


def _source(kernel: Any) -> type[ASTSource]:
    if not kernel.is_gluon():
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource  # experimental: other kernels must not depend on it

    return GluonASTSource


def _dump(what: str, file: Path) -> str:
    tool = _tool()
    path = f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # it calls its neighbour nvdisasm
    done = subprocess.run(
        [tool, what, file], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    return done.stdout


@functools.cache
def _tool() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
