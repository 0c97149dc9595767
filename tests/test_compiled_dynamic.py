"""What the compiler makes of products of bytes: tensor cores for bytes, wide loads, no spills."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from kernels.compiled import compile_for
from kernels.linear import dynamic
from tests.exhaustive import rare

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes that a program may have
TYPES = dict.fromkeys(("x_row", "M", "N", "K", "FILLED", "each", "splits"), "i32")
TYPES |= {"X": "*i8", "W": "*i8", "CODES": "*i8", "STEPS": "*fp32", "STEP": "*fp32", "SCALES": "*fp32", "BIAS": "*bf16"}
UNALIGNED = frozenset({"M", "splits"})
pytestmark = pytest.mark.slow


def compiled(kernel, given, how, capability, **options):
    made = compile_for(kernel, TYPES | given, how, capability=capability, unaligned=UNALIGNED, **options)
    assert made.spills == 0
    assert made.stack == 0
    assert made.shared <= SHARED[capability]
    return made


@pytest.mark.parametrize(("rows", "whole"), [(16, False), (64, True), (512, True), rare(16, True), rare(64, False)])
@pytest.mark.parametrize("capability", [80, 89, 90])
def test_products(capability, rows, whole):
    how = dynamic.tile(rows)
    constants = {"HAS_BIAS": whole, "WHOLE": whole, "BM": how.bm, "BN": how.bn, "BK": how.bk}
    given = {"OUT": "*bf16" if whole else "*i32"}
    made = compiled(dynamic._multiply, given, constants, capability, warps=how.warps, stages=how.stages)
    assert made.count("LDGSTS.E.BYPASS.128") > 0, "bytes do not come 16 at a time"
    assert made.count("IGMMA" if capability == 90 and how.bm >= 64 else "IMMA") > 0


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_codes(dtype, static):
    made = compiled(dynamic._quantize, {"X": f"*{dtype}"}, {"STATIC": static, "BK": 2048}, 90, warps=4)
    assert made.count("F2I") == made.count("I2F") == 0, "numbers are converted, at a quarter of the speed"
    assert made.count("LDG.E.128") > 0


@pytest.mark.parametrize("bias", [False, True])
def test_sums_of_the_splits(bias):
    compiled(dynamic._sum, {"PARTS": "*i32", "OUT": "*bf16"}, {"HAS_BIAS": bias, "BN": 256}, 90, warps=2)
