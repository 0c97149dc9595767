"""What the compiler makes of the attention kernels for GPUs that are not here: no spills, wide loads, tensor cores."""

import importlib.util
from dataclasses import replace

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from engine.laboratory.cases import OPS, make_case
from engine.laboratory.compiled import compile_launch
from kernels.attention import padded
from tests.exhaustive import GPUS

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes that a program may have


def compiled(op, capability, dim, cache):
    """The kernel of the laboratory's usual case on a GPU: 32 query heads, 8 key/value heads, bf16."""
    case = make_case(op, on_gpu=True, batch=1, dim=dim, features={} if cache == "bf16" else {"kv": cache})
    return compile_launch(of(op, case, capability), capability)


def of(op, case, capability):
    """The paged kernel as it is launched on such a GPU; behind it come those for prompts in one piece."""
    return next(x for x in OPS[op].launches(case) if not x.capabilities or capability in x.capabilities)


FEATURES = {"bf16": {}, "int8": {"kv": "int8"}, "tree": {"tree": 5}}


def check(made, capability):
    assert made.spills == 0
    assert made.stack == 0
    assert made.registers <= 255
    assert made.shared <= SHARED[capability]
    assert made.count("LDGSTS.E.BYPASS.128") > 0, "keys and values do not come 16 bytes at a time"


@pytest.mark.slow
@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize(("dim", "cache"), [(64, "bf16"), (128, "bf16"), (256, "bf16"), (128, "int8"), (128, "fp8")])
def test_a_decoding_step_fits_into_registers(capability, dim, cache):
    if cache == "fp8" and capability < 89:
        pytest.skip("no fp8 before compute capability 8.9")
    made = compiled("decode", capability, dim, cache)
    check(made, capability)
    assert made.count("HMMA") > 0


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "cache"), [(64, "bf16"), (128, "bf16"), (256, "bf16"), (128, "int8")])
def test_a_prompt_runs_on_the_tensor_cores_of_hopper(dim, cache):
    made = compiled("prefill", 90, dim, cache)
    check(made, 90)
    assert made.count("HGMMA") > 0


@pytest.mark.slow
@pytest.mark.parametrize(("op", "loops"), [("decode", 1), ("shared", 1), ("prefill", 2)])
def test_keys_are_copied_while_others_are_multiplied_on_hopper(op, loops):
    """A loop that waits for every copy before each product has none under way meanwhile."""
    made = compile_launch(of(op, make_case(op, on_gpu=True, dim=128), 90), 90)
    in_loops = [left for left in made.left_under_way if left]
    assert len(in_loops) >= 2 * loops, made.left_under_way


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dim", "cache"), [
    ("decode", 64, "int8"), ("decode", 256, "bf16"), ("prefill", 128, "bf16"), ("prefill", 256, "bf16"),
    ("decode", 64, "tree"), ("decode", 128, "tree"),
])  # fmt: skip
def test_fp32_fits_into_registers(op, dim, cache):
    """Small models are compared in it, and a tile that does not fit is slower by far."""
    case = make_case(op, "fp32", on_gpu=True, batch=1, dim=dim, features=FEATURES[cache])
    assert compile_launch(of(op, case, 90), 90).spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("op", ["decode", "prefill"])
def test_heads_narrower_than_a_product_of_the_tensor_cores_compile(op):
    """The interpreter multiplies anything; the compiler takes sixteen numbers at least."""
    launch = of(op, make_case(op, on_gpu=True, batch=1, dim=16), 90)
    width = {"D": 8, "DV": 8, "D_PAD": padded(8), "DV_PAD": padded(8)}
    assert launch.constants.keys() > width.keys()
    assert compile_launch(replace(launch, constants=launch.constants | width), 90).spills == 0
