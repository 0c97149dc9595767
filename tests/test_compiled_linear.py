"""What the compiler makes of quantized linear layers: no spills, wide loads, tensor cores, no integer converted."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from kernels.compiled import compile_for
from kernels.linear import dense, launching, mixed
from kernels.linear import triton as linear
from kernels.linear.weight import Kind
from tests.exhaustive import rare

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes that a program may have
NUMBERS = dict.fromkeys(("x_row", "M", "N", "K", "chunks", "each", "splits"), "i32")
UNALIGNED = frozenset({"M", "chunks", "splits"})
KINDS = [
    (Kind.INT8, -1, False),
    (Kind.FP8, -1, False),
    (Kind.INT4, 128, 0),
    (Kind.INT4, 32, 1),
    (Kind.NF4, 64, 0),
    *(rare(Kind.NF4, g, 0) for g in (32, 128, -1)),
    *(rare(Kind.INT4, g, z) for g, z in ((32, 0), (64, 0), (64, 1), (128, 1), (-1, 0), (-1, 1))),
]
pytestmark = pytest.mark.slow


def types(kind, group, dtype, words="*i16"):
    pointers = dict.fromkeys(("X", "BIAS", "OUT"), f"*{dtype}") | {"PARTS": "*fp32", "ZEROS": "*bf16"}
    pointers |= {"W": "*fp8e4nv" if kind == Kind.FP8 else words, "SCALES": "*fp32" if group == -1 else "*bf16"}
    return NUMBERS | pointers


def compiled(kernel, given, how, capability, **options):
    if given.get("W") == "*fp8e4nv" and capability < 89:
        pytest.skip("no fp8 before compute capability 8.9")
    made = compile_for(kernel, given, how, capability=capability, unaligned=UNALIGNED, **options)
    assert made.spills == 0
    assert made.stack == 0
    assert made.registers <= 255
    assert made.shared <= SHARED[capability]
    assert made.count("I2F") == 0, "integers are converted, at a quarter of the speed"
    assert made.sass.count(".FTZ") == 0, "codes are subnormal numbers"
    return made


@pytest.mark.parametrize(("capability", "dtype"), [rare(80, "bf16"), rare(89, "bf16"), (90, "bf16"), rare(90, "fp32")])
@pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
def test_a_vector(capability, kind, group, zeros, dtype):
    how = launching.constants(kind, group, bool(zeros)) | {"HAS_BIAS": True, "BN": 4, "BC": 128, "UPCAST": False}
    made = compiled(linear._vector, types(kind, group, dtype, "*i32"), how, capability, warps=4)
    if dtype == "bf16":
        assert made.registers <= 168, "fewer than three programs to a multiprocessor"
    if kind == Kind.NF4:
        assert made.count("SHFL") <= 4 * 32 + 32, "more than one shuffle a weight, and those of the sum"
    assert made.count("LDG.E.EF.128") >= 4, "weights do not come 16 bytes at a time, to be forgotten first"


@pytest.mark.parametrize(
    ("capability", "dtype", "rows"),
    [(90, "bf16", 16), rare(80, "bf16", 16), rare(89, "bf16", 16), rare(80, "bf16", 32), rare(89, "bf16", 32),
     rare(90, "bf16", 32), rare(90, "fp16", 16)],
)  # fmt: skip
@pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
def test_a_few_rows(capability, kind, group, zeros, dtype, rows):
    how = launching.constants(kind, group, bool(zeros)) | {"HAS_BIAS": False, "UPCAST": False, "BM": rows}
    piece, times = linear.pieces(kind, group)
    how |= {"BN": 128 if group in (-1, 128) else 64, "PIECE": piece, "PIECES": times}
    given = types(kind, group, dtype) | {"OUT": "*fp32"}
    made = compiled(linear._rows, given, how, capability, warps=4, stages=linear.stages(rows, group))
    assert made.count("LDGSTS.E.BYPASS.128") > 0, "weights do not come 16 bytes at a time"
    assert made.count("HMMA") > 0
    if kind == Kind.NF4:
        assert made.count("SHFL") <= how["BN"] * piece * times * how["PLANES"] // 128
    elif kind != Kind.FP8:
        pairs = how["BN"] * piece * times * how["PLANES"] // 256  # of weights, of each thread and turn
        steps = 1 + zeros + 2 * (group == 32)
        found = made.count("HFMA2") + made.count("HADD2") + made.count("HMUL2")
        assert found <= pairs * steps + 32, "weights are converted one by one"


@pytest.mark.parametrize(
    ("capability", "dtype", "rows"),
    [(90, "bf16", 128), (90, "bf16", 64), rare(80, "bf16", 128), rare(89, "bf16", 128), rare(90, "fp16", 128)],
)
@pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
def test_many_rows(capability, kind, group, zeros, dtype, rows):
    tile = mixed.tile(rows, capability == 90)
    how = launching.constants(kind, group, bool(zeros)) | {"HAS_BIAS": False, "UPCAST": False, "SPAN": tile.bk}
    how |= {"BM": tile.bm, "BN": tile.bn}
    options = {"warps": tile.warps, "stages": tile.stages, "registers": tile.registers}
    given = {name: t for name, t in types(kind, group, dtype).items() if name in mixed._mixed.arg_names}
    made = compiled(mixed._mixed, given | {"OUT": "*fp32"}, how, capability, **options)
    assert made.count("LDGSTS.E.BYPASS.128") > 0, "weights do not come 16 bytes at a time"
    assert made.count("HGMMA" if capability == 90 else "HMMA") > 0
    if kind is not Kind.FP8 and group in (-1, 128):
        assert made.count("LDSM") >= 2, "codes do not come as the tensor cores want them"
        assert made.count("STS") <= 2 * tile.bm // 16, "weights go back to shared memory once they are converted"


@pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
def test_the_dequantized_weight(kind, group, zeros):
    how = launching.constants(kind, group, bool(zeros)) | {"BC": 128, "UPCAST": False}
    made = compiled(linear._dequantize, types(kind, group, "bf16"), how, 90, warps=4)
    assert made.count("STG.E.128") > 0


@pytest.mark.parametrize("capability", [90, rare(80), rare(89)])
@pytest.mark.parametrize("rows", dense.ROWS)
def test_a_vector_times_an_unquantized_weight(rows, capability):
    given = dict.fromkeys(("X", "W", "BIAS", "OUT"), "*bf16") | dict.fromkeys(("w_row", "N", "K"), "i32")
    made = compiled(dense._vector, given, {"HAS_BIAS": True, "BN": rows, "BK": dense.SPAN}, capability, warps=4)
    assert made.count("LDG.E.EF.128") == rows, "the weight does not come 16 bytes at a time, to be forgotten first"
    assert made.registers <= 128, "fewer than four programs to a multiprocessor"


def test_the_sum_of_the_splits():
    given = types(Kind.INT8, -1, "bf16")
    compiled(launching._sum, given, {"HAS_BIAS": True, "BN": 256}, 90, warps=2)
