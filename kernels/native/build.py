"""Compiles ``forward.cpp`` for this processor, once, and loads it.

Code for the processor at hand is several times faster than code for all of its kind, so no binary is shipped. The
result lies in the user's cache folder under a name that changes with the source, the flags, the compiler and the
processor. Without a compiler there are no native kernels; ``reason`` says so, and the plain PyTorch path runs under
its own name.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("forward.cpp")
# -ffast-math by its parts: as a whole it links start-up code that makes this process round tiny numbers to zero.
# Without -fassociative-math, which gives an unrolled sum another order than the same sum in a loop.
MATH = ("-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math", "-freciprocal-math")
FLAGS = ("-O2", *MATH, "-ffp-contract=fast", "-pthread", "-shared", "-fPIC", "-std=c++17")
TUNING = {"x86_64": "-march=native", "AMD64": "-march=native", "aarch64": "-mcpu=native"}
COMPILERS = ("g++", "c++", "clang++")
TIMEOUT_S = 120


class Unavailable(Exception):
    """There are no native kernels here; the text says why, as half a sentence."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled kernels. Raises Unavailable."""
    _check_wanted()
    command = _command()
    path = _folder() / f"native-{_key(command)}.so"
    if not path.exists():
        _compile(command, path)
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the compiled kernels do not load ({error})") from None
    import torch  # here, for whether there is a compiler is asked without it

    found.threads = torch.get_num_threads()  # for good: each has its part of the memory for attention scores
    found.isoquant_threads(found.threads)
    found.isoquant_linear_scratch.restype = found.isoquant_work.restype = ctypes.c_int64
    return found


def reason() -> str | None:
    """Why there are no native kernels here; None where there are."""
    try:
        library()
    except Unavailable as error:
        return str(error)
    return None


def compiler_reason() -> str | None:
    """Why the kernels could not be compiled, as far as that can be told without trying; None where they could."""
    try:
        _check_wanted()
        _compiler()
    except Unavailable as error:
        return str(error)
    return None


def _check_wanted() -> None:
    if os.environ.get("ISOQUANT_NATIVE", "1") == "0":
        raise Unavailable("native kernels are switched off by ISOQUANT_NATIVE=0")


def _command() -> list[str]:
    return [_compiler(), *FLAGS, TUNING.get(platform.machine(), "-O2"), str(SOURCE)]


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    found = next((c for c in ((wanted,) if wanted else COMPILERS) if shutil.which(c)), None)
    if found is None:
        raise Unavailable(f"there is no C++ compiler ({wanted or ', '.join(COMPILERS)})")
    return found


def _folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoquant"
    except RuntimeError:
        raise Unavailable("there is no home folder to keep the compiled kernels in") from None


def _key(command: list[str]) -> str:
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(SOURCE.parent.glob("*.[ch]*"))))
    digest.update(" ".join(command).encode())
    digest.update(_processor().encode())
    version = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    digest.update(version)
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What ``native`` stands for: the processor's abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(command: list[str], path: Path) -> None:
    """Into a name of its own first: two processes may compile at once, and a reader must never find half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, "native.so")
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, timeout=TIMEOUT_S, check=False)
            if done.returncode:
                lines = done.stderr.decode(errors="replace").strip().splitlines()
                raise Unavailable(f"{command[0]} does not compile the kernels ({lines[0] if lines else 'no message'})")
            os.replace(made, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the kernels could not be compiled ({error})") from None
