"""What the compiler makes of the prompt kernels for Hopper: copies by descriptors, warpgroup products, no spills."""

import functools
import importlib.util
import re

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl

from kernels.compiled import compile_for
from kernels.prefill import gluon, tma
from kernels.prefill.triton import tiles

SHARED = 227 * 1024  # bytes that a program may have
POINTERS = dict.fromkeys(("STARTS", "TILE_SEQUENCE", "TILE_FIRST"), "*i32")
POINTERS |= dict.fromkeys(("SLOPES", "SINKS", "LSE"), "*fp32") | {"scale": "fp32", "softcap": "fp32"}
FEATURES = {
    "causal": {},
    "full": {"CAUSAL": False},
    "window": {"WINDOW": 1024},
    "all": {"WINDOW": 1024, "SOFTCAP": True, "HAS_SINKS": True, "HAS_SLOPES": True},
}


def described(dtype, rows, dim, layout=None):
    return f"tensordesc<{dtype}[1, 1, 1, {rows}, {dim}]{'' if layout is None else f',{layout!r}'}>"


def by_descriptors(dtype, rows, width, dim, layout=None):
    keys = described(dtype, width, dim, layout)
    return POINTERS | {"QUERIES": described(dtype, rows, dim, layout), "KEYS": keys, "VALUES": keys, "OUT": f"*{dtype}"}


def check(made):
    assert made.spills == 0
    assert made.stack == 0
    assert made.registers <= 255
    assert made.shared <= SHARED
    assert made.count("UTMALDG.5D") > 0, "keys and values do not come by descriptors"
    assert made.count("HGMMA") > 0
    assert made.count("HMMA") == 0
    assert made.count("LDG.E.128") == 0


def by_tma(dim, padded, **features):
    rows, width, stages = tma.shape_for(dim)
    constants = {"GROUP": 4, "DIM": dim, "D": padded, "BM": rows, "BN": width, "CAUSAL": True, "WINDOW": 0}
    constants |= dict.fromkeys(("SOFTCAP", "HAS_SINKS", "HAS_SLOPES", "UPCAST"), False) | features
    types = by_descriptors("bf16", rows, width, padded)
    return compile_for(tma._prefill, types, constants, warps=8, stages=stages)


@functools.cache
def by_gluon(dim, causal, dtype="bf16", stages=0):
    constants = {"GROUP": 4, "D": dim, "BM": gluon.ROWS, "BN": gluon.WIDTH, "CAUSAL": causal}
    constants["STAGES"] = stages or gluon.STAGES[dim]
    types = by_descriptors(dtype, gluon.ROWS // 2, gluon.WIDTH, dim, gl.NVMMASharedLayout(128, 16, 5))
    return compile_for(gluon._prefill, types, constants, warps=4, registers=168)


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(("dim", "registers"), [(64, 200), (128, 168), (256, 248)])
def test_a_prompt_by_descriptors_fits_into_registers(dim, registers, feature):
    made = by_tma(dim, dim, **FEATURES[feature])
    check(made)
    assert made.registers <= registers


@pytest.mark.slow
def test_heads_of_any_width_come_by_descriptors():
    check(by_tma(80, 128))


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "causal", "dtype"), [(64, True, "bf16"), (128, True, "bf16"), (128, False, "fp16")])
def test_warps_are_specialised(dim, causal, dtype):
    made = by_gluon(dim, causal, dtype)
    check(made)
    assert made.registers == 168  # to begin with: three warpgroups of them fill the register file
    asked = re.findall(r"USETMAXREG\.(TRY_ALLOC|DEALLOC)\S*\s+(?:UP\d+, )?(0x[0-9a-f]+)", made.sass)
    assert {int(n, 16) for _, n in asked} >= {240, 24}
    assert sum(kind == "TRY_ALLOC" and int(n, 16) == 240 for kind, n in asked) >= 1  # the second consumer's
    most = max(int(n) for n in re.findall(r"\bR(\d+)\b", made.sass))
    assert 168 <= most < 240, "the consumers do not use what the producer gave away"


@pytest.mark.slow
def test_a_softmax_runs_while_the_block_before_is_summed_up():
    """Between the wait for the scores and the one for the sums stand the exponentials of 64 x 128 weights."""
    sass = by_gluon(128, True, "bf16").sass
    overlaps = [
        len(re.findall(r"MUFU\.EX2", between))
        for between in re.findall(
            r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1(.*?)WARPGROUP\.DEPBAR\.LE gsb0, 0x0", sass, re.DOTALL
        )
    ]
    assert len(overlaps) == 4  # two consumers, each with a loop for whole blocks and one for masked ones
    assert min(overlaps) >= 64


def test_a_ring_of_one_place_is_refused():
    with pytest.raises(triton.compiler.errors.CompileTimeAssertionFailure):
        by_gluon(64, True, stages=1)


class Hopper:
    """As much of a driver as a launch asks before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.mark.slow
def test_a_launch_compiles_for_the_tensors_that_it_is_given(monkeypatch):
    """All of a launch but the launch: its arguments bind, and what it compiles has their layouts."""
    made = []
    launch = triton.runtime.jit.JITFunction.run
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    monkeypatch.setattr(
        triton.runtime.jit.JITFunction, "run", lambda *a, **kw: made.append(launch(*a, **kw | {"warmup": True}))
    )
    starts = torch.tensor([0, 5, 150], dtype=torch.int32)
    cut = tuple(torch.from_numpy(a) for a in tiles([5, 145], 1, gluon.ROWS))
    q, k, v = (torch.zeros(150, heads, 128, dtype=torch.bfloat16) for heads in (8, 2, 2))
    out, lse = gluon.prefill(q, k, v, starts, cut, scale=0.1)
    assert (out.shape, lse.shape) == (q.shape, (150, 8))
    (one,) = made
    assert one.metadata.num_warps == 12
    assert [(x["block_size"], x["swizzle"]) for x in one.metadata.tensordesc_meta] == [
        ([1, 1, 1, 64, 64], 3), ([1, 1, 1, 128, 64], 3), ([1, 1, 1, 128, 64], 3)
    ]  # fmt: skip
