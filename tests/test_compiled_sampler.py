"""What the compiler makes of the sampler for GPUs that are not here: no spills, wide loads, whole-number sums."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from kernels.compiled import compile_for
from kernels.sampler import filters
from kernels.sampler import triton as sampler
from tests.exhaustive import GPUS

POINTERS = {"UNIFORM": "*fp64", "TOP_K": "*i32", "PLACES": "*i32", "TIES": "*i32", "KEYS": "*i32", "ROOM": "*fp64"}
POINTERS |= dict.fromkeys(("TEMPERATURE", "TOP_P", "MIN_P", "PEAKS", "RAW", "LOGPROBS"), "*fp32")
POINTERS |= dict.fromkeys(("TOTALS", "EDGES", "ABOVE", "SUMS", "TOKENS"), "*i64")
NUMBERS = dict.fromkeys(("logits_row", "vocabulary", "chunks", "rows", "step"), "i32")
PLAIN = {"HAS_K": False, "HAS_P": False, "HAS_MIN": False}
FILTERED = {"HAS_K": True, "HAS_P": True, "HAS_MIN": True}
BITS = {"fp32": 32, "fp16": 16, "bf16": 16}
KINDS = {
    "measure": (sampler._measure, {}, 4),
    "narrow top-k": (filters.narrow, {"HAS_K": True, "BY_MASS": False}, 8),
    "narrow top-p": (filters.narrow, {"HAS_K": True, "BY_MASS": True}, 8),
    "sum": (sampler._sum, FILTERED, 4),
    "draw": (sampler._draw, PLAIN, 4),
    "draw filtered": (sampler._draw, FILTERED, 4),
}


def compiled(kind, dtype, capability, vocabulary=151_936, **fixed):
    """One of the kernels for a vocabulary like Qwen's; ``fixed`` arguments are 1, which a launch makes constants."""
    kernel, constants, warps = KINDS[kind]
    chunks = -(-vocabulary // sampler.CHUNK)
    possible = {"BITS": BITS[dtype], "CHUNK": sampler.CHUNK, "CHUNKS": max(16, 1 << (chunks - 1).bit_length())}
    constants = constants | {n: v for n, v in (possible | fixed).items() if n in kernel.arg_names}
    types = {n: t for n, t in (POINTERS | NUMBERS | {"LOGITS": f"*{dtype}"}).items() if n not in constants}
    unaligned = frozenset({"chunks", "rows", "step"} | ({"logits_row", "vocabulary"} if vocabulary % 16 else set()))
    made = compile_for(
        kernel, {n: t for n, t in types.items() if n in kernel.arg_names}, constants,
        capability=capability, warps=warps, unaligned=unaligned,
    )  # fmt: skip
    assert made.spills == 0
    assert made.stack == 0
    assert made.registers <= 128, "fewer than four programs of 128 threads on a multiprocessor"
    assert made.shared <= 16 * 1024
    return made


@pytest.mark.slow
@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_launch_fits_into_registers(kind, dtype, capability):
    made = compiled(kind, dtype, capability)
    assert made.count("LDG.E.128") > 0, "logits do not come 16 bytes at a time"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fp16_and_vocabularies_that_no_power_divides(kind):
    compiled(kind, "fp16", 90, vocabulary=50_257)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_row_of_a_single_chunk(kind):
    """A launch makes constants of arguments that are 1."""
    compiled(kind, "bf16", 90, vocabulary=1024, rows=1, chunks=1)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_first_pass_has_a_short_path_for_each_logit(capability):
    """What bounds it beside memory: two exponentials and one conversion of each logit, no division, no fp64."""
    made = compiled("measure", "bf16", capability)
    each = sampler.CHUNK // 128
    assert each <= made.count("MUFU.EX2") <= 2 * each
    assert made.count("F2I.S64") == each
    assert made.count("DADD") + made.count("DMUL") + made.count("DFMA") == 0
    assert made.count("FCHK") <= 1


@pytest.mark.slow
def test_a_threshold_adds_whole_numbers_only():
    """Their sum is the same in any order; one of floats would not be."""
    for kind in ("narrow top-k", "narrow top-p"):
        made = compiled(kind, "bf16", 90)
        assert made.count("RED.E.ADD.64") + made.count("REDG.E.ADD.64") > 0
        for floats in ("RED.E.ADD.F", "REDG.E.ADD.F", "ATOMG.E.ADD.F", "DADD"):
            assert made.count(floats) == 0
