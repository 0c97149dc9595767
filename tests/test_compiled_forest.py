"""What the compiler makes of the attention over shared prefixes for GPUs that are not here."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from kernels.compiled import compile_for
from kernels.forest import triton as forest
from tests.exhaustive import EARLIER, GPUS, rare

pytestmark = pytest.mark.slow

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes that a program may have
FLAGS = {"WINDOW": 0, "SOFTCAP": False, "HAS_SLOPES": False, "UPCAST": False}
GEMMA = FLAGS | {"WINDOW": 512, "SOFTCAP": True}
ALIBI = FLAGS | {"HAS_SLOPES": True}
ALL = GEMMA | {"HAS_SLOPES": True}
TYPES = dict.fromkeys(("KEY_SCALES", "VALUE_SCALES", "SLOPES", "SINKS", "LSE", "PARTS", "PART_LSE"), "*fp32")
TYPES |= dict.fromkeys(("TABLES", "LENGTHS", "ITEMS", "ORDER", "STARTS"), "*i32")
TYPES |= dict.fromkeys(("q_row", "q_head", "table_row"), "i32") | dict.fromkeys(("scale", "softcap"), "fp32")
SIZES = {"bf16": 2, "fp32": 4}


def attend(capability, rows, dim, cache, flags=FLAGS, group=4, q="bf16"):
    """The kernel as ``forest`` launches it, with what must be so of all."""
    pad = 1 << (dim - 1).bit_length()
    tuned = forest.tuned(rows, dim, SIZES[q], capability == 90)
    constants = flags | {"GROUP": group, "ROWS": rows, "KV_HEADS": 8, "D": dim, "D_PAD": pad, "DV": dim, "DV_PAD": pad}
    constants |= {"PAGE": 16, "BN": tuned["BN"], "QUANTIZED": cache != q}
    made = compile_for(
        forest._attend, TYPES | {"Q": f"*{q}", "K": f"*{cache}", "V": f"*{cache}"}, constants, capability=capability,
        warps=tuned["num_warps"], stages=tuned["num_stages"], unaligned=frozenset({"table_row"}),
    )  # fmt: skip
    assert made.spills == 0
    assert made.stack == 0
    assert made.registers <= 255
    assert made.shared <= SHARED[capability]
    assert made.count("LDGSTS.E.BYPASS.128") > 0, "keys and values do not come 16 bytes at a time"
    assert made.count("STG.E.128") > 0, "partial results are not written 16 bytes at a time"
    return made


@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize(("dim", "cache"), [(64, "bf16"), (128, "bf16"), (256, "bf16"), (128, "i8"), (128, "fp8e4nv")])
def test_what_a_sequence_has_for_itself_fits_into_registers(capability, dim, cache):
    if cache == "fp8e4nv" and capability < 89:
        pytest.skip("no fp8 before compute capability 8.9")
    assert attend(capability, 16, dim, cache).count("HMMA") > 0


@pytest.mark.parametrize(("rows", "dim"), [(64, 64), (64, 128), (64, 256), (128, 64), (128, 128)])
@pytest.mark.parametrize("cache", ["bf16", rare("i8"), rare("fp8e4nv")])
def test_shared_keys_run_on_the_tensor_cores_of_hopper(rows, dim, cache):
    assert attend(90, rows, dim, cache).count("HGMMA") > 0


@pytest.mark.parametrize("capability", EARLIER)
@pytest.mark.parametrize(("rows", "dim"), [rare(32, 128), rare(64, 64), (64, 128), rare(64, 256)])
@pytest.mark.parametrize("cache", ["bf16", rare("i8")])
def test_shared_keys_run_on_the_tensor_cores_before_hopper(capability, rows, dim, cache):
    assert attend(capability, rows, dim, cache).count("HMMA") > 0


@pytest.mark.parametrize(
    ("capability", "flags"), [(80, GEMMA), (80, ALIBI), (90, ALL)], ids=["A100-gemma", "A100-alibi", "Hopper-all"]
)
@pytest.mark.parametrize(("rows", "dim"), [rare(16, 64), rare(16, 128), (64, 128)])
def test_what_models_ask_for_besides_fits_too(capability, flags, rows, dim):
    attend(capability, rows, dim, "bf16", flags)


@pytest.mark.parametrize("capability", [rare(80), 90])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_full_precision_fits_into_registers_with_few_rows(capability, dim):
    attend(capability, 16, dim, "fp32", q="fp32")


@pytest.mark.parametrize("group", [1, 6, 8])
def test_groups_of_other_sizes(group):
    assert attend(90, 64, 128, "bf16", group=group).count("HGMMA") > 0


@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_merge_is_small(capability, dim):
    constants = {"HEADS": 32, "DV": dim, "DV_PAD": dim, "MANY": forest.MERGED, "HAS_SINKS": True}
    made = compile_for(
        forest._merge, TYPES | {"OUT": "*bf16"}, constants, capability=capability, warps=1 if dim <= 64 else 4
    )  # fmt: skip
    assert (made.spills, made.stack) == (0, 0)
    assert made.registers <= 128
    assert made.count("LDG.E.128") + made.count("LDGSTS.E.BYPASS.128") > 0
