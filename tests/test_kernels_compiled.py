"""What the compiler makes of the attention kernels for GPUs that are not here: no spills, wide loads, tensor cores."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from kernels.compiled import compile_for
from kernels.decode import triton as decode
from kernels.prefill import triton as prefill

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes that a program may have
FLAGS = {"WINDOW": 0, "SOFTCAP": False, "HAS_SINKS": False, "HAS_SLOPES": False, "UPCAST": False}
POINTERS = dict.fromkeys(("KEY_SCALES", "VALUE_SCALES", "SLOPES", "SINKS", "LSE", "PARTS", "PART_LSE"), "*fp32")
POINTERS |= dict.fromkeys(("TABLES", "LENGTHS", "STARTS", "TILE_SEQUENCE", "TILE_FIRST"), "*i32") | {"TREE": "*i64"}
NUMBERS = dict.fromkeys(("q_row", "q_new", "q_head", "table_row", "splits"), "i32")
NUMBERS |= {"scale": "fp32", "softcap": "fp32"}


def types(cache):
    return POINTERS | NUMBERS | {"Q": "*bf16", "OUT": "*bf16", "K": f"*{cache}", "V": f"*{cache}"}


def widths(dim, cache):
    return {"D": dim, "D_PAD": dim, "DV": dim, "DV_PAD": dim, "PAGE": 16, "QUANTIZED": cache != "bf16"}


def check(made, capability):
    assert made.spills == 0
    assert made.stack == 0
    assert made.registers <= 255
    assert made.shared <= SHARED[capability]
    assert made.count("LDGSTS.E.BYPASS.128") > 0, "keys and values do not come 16 bytes at a time"


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize(("dim", "cache"), [(64, "bf16"), (128, "bf16"), (256, "bf16"), (128, "i8"), (128, "fp8e4nv")])
def test_a_decoding_step_fits_into_registers(capability, dim, cache):
    if cache == "fp8e4nv" and capability < 89:
        pytest.skip("no fp8 before compute capability 8.9")
    constants = FLAGS | widths(dim, cache) | {"GROUP": 4, "NEW": 1, "ROWS": 16, "KV_HEADS": 8, "BN": decode.TILE}
    constants |= {"HAS_TREE": False, "SINGLE": False}
    made = compile_for(
        decode._attend, types(cache), constants, capability=capability, warps=4, stages=3 if dim <= 128 else 2,
        unaligned=frozenset({"splits", "table_row"}),
    )  # fmt: skip
    check(made, capability)
    assert made.count("HMMA") > 0


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "cache"), [(64, "bf16"), (128, "bf16"), (256, "bf16"), (128, "i8")])
def test_a_prompt_runs_on_the_tensor_cores_of_hopper(dim, cache):
    rows = prefill.rows_for(dim, 4)
    constants = FLAGS | widths(dim, cache) | {"GROUP": 4, "KV_HEADS": 8, "BM": rows, "BN": 64 if dim <= 128 else 32}
    made = compile_for(
        prefill._prefill, types(cache), constants, capability=90, warps=8, stages=3 if dim <= 128 else 2,
        unaligned=frozenset({"table_row"}),
    )  # fmt: skip
    check(made, 90)
    assert made.count("HGMMA") > 0
