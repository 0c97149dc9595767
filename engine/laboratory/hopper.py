"""Sides of prefill for Hopper alone: whole prompts, keys and values one after the other instead of in a paged cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.laboratory import sides
from engine.laboratory.op import Call, Launch, Side, first_rows
from engine.measure.hardware import package_version

if TYPE_CHECKING:
    from engine.laboratory.cases import Case
    from engine.laboratory.device import Device
    from engine.laboratory.paged import Inputs

GLUON_VERSIONS = ("3.6", "3.7")  # of Triton; kernels.prefill.gluon has the same, but imports Triton to say so
GLUON_DIMS = (64, 128)


def _shape(case: Case) -> str | None:
    """What keeps both kernels from a case on any GPU."""
    if case.dtype == "fp32":
        return "it takes bf16 and fp16 only"
    if case["cached"]:
        return "it reads whole prompts, and nothing of a cache"
    if case.feature("kv"):
        return "it reads no cache of one byte"
    if case["dim"] % 8 or not 16 <= case["dim"] <= sides.WIDEST:
        return f"its heads are not 16 to {sides.WIDEST} wide in steps of 8"
    return None


def _narrower(case: Case) -> str | None:
    """What else keeps the Gluon kernel from it."""
    if case["dim"] not in GLUON_DIMS:
        return "its heads are neither 64 nor 128 wide"
    if case.features:
        return "the Gluon kernel is for plain causal attention"
    version = package_version("triton")
    if version is not None and ".".join(version.split(".")[:2]) not in GLUON_VERSIONS:
        return f"it is written for Triton {' and '.join(GLUON_VERSIONS)}, not {version}"
    return None


def reason(case: Case, device: Device) -> str | None:
    """Why the kernel with descriptors cannot run."""
    if (no_triton := sides.triton(case, device)) is not None:
        return no_triton
    if device.capability is None or device.capability[0] != 9:
        return "it needs a GPU of the Hopper generation"
    return _shape(case)


def gluon_reason(case: Case, device: Device) -> str | None:
    """Why the warp-specialised kernel cannot run."""
    return reason(case, device) or _narrower(case)


def _dense(case: Case, x: Inputs, rows: int) -> tuple[Any, ...]:
    """Queries, keys and values [tokens, heads, dim], where sequences begin, and the tiles."""
    import torch

    from kernels.prefill.triton import tiles

    k, v = (y.transpose(1, 2).flatten(0, 1).contiguous() for y in (x.k, x.v))
    starts = torch.arange(case["batch"] + 1, dtype=torch.int32, device=x.q.device) * case["new"]
    cut = tuple(torch.from_numpy(a).to(x.q.device) for a in tiles([case["new"]] * case["batch"], 1, rows))
    return x.q.flatten(0, 1), k, v, starts, cut


def by_descriptors(case: Case, x: Inputs) -> Call:
    """The kernel whose tiles come through the tensor memory accelerator."""
    from kernels.prefill.tma import prefill, shape_for

    where, how = _dense(case, x, shape_for(case["dim"])[0]), x.how(case)
    return Call(lambda: prefill(*where, **how)[0], first_rows)


def specialised(case: Case, x: Inputs) -> Call:
    """The kernel whose warps copy or compute."""
    from kernels.prefill.gluon import ROWS, prefill

    where, scale = _dense(case, x, ROWS), x.how(case)["scale"]
    return Call(lambda: prefill(*where, scale=scale)[0], first_rows)


def launches(case: Case) -> list[Launch]:
    """Both kernels, as far as they take the case."""
    if _shape(case):
        return []
    found = [_launch_by_descriptors(case)]
    return found if _narrower(case) else [*found, _launch_specialised(case)]


def _types(case: Case, rows: int, width: int, dim: int, layout: Any = None) -> dict[str, str]:
    behind = "" if layout is None else f",{layout!r}"
    queries, keys = (f"tensordesc<{case.dtype}[1, 1, 1, {n}, {dim}]{behind}>" for n in (rows, width))
    found = dict.fromkeys(("STARTS", "TILE_SEQUENCE", "TILE_FIRST"), "*i32")
    found |= dict.fromkeys(("SLOPES", "SINKS", "LSE"), "*fp32") | dict.fromkeys(("scale", "softcap"), "fp32")
    return found | {"QUERIES": queries, "KEYS": keys, "VALUES": keys, "OUT": sides.pointer(case.dtype)}


def _launch_by_descriptors(case: Case) -> Launch:
    from kernels.prefill import tma

    dim, pad = case["dim"], sides.power_of_2(case["dim"])
    rows, width, stages = tma.shape_for(dim)
    constants = {
        "GROUP": case["heads"] // case["kv_heads"], "DIM": dim, "D": pad, "BM": rows, "BN": width, "CAUSAL": True,
        "WINDOW": case.feature("window") or 0, "SOFTCAP": bool(case.feature("softcap")),
        "HAS_SINKS": bool(case.feature("sinks")), "HAS_SLOPES": bool(case.feature("alibi")), "UPCAST": False,
    }  # fmt: skip
    types = _types(case, rows, width, pad)
    return Launch(
        tma._prefill, types, constants, 8 if rows > 64 else 4, stages, name="prefill, TMA", capabilities=(90,)
    )


def _launch_specialised(case: Case) -> Launch:
    from kernels.prefill import gluon

    dim = case["dim"]
    constants = {"GROUP": case["heads"] // case["kv_heads"], "D": dim, "BM": gluon.ROWS, "BN": gluon.WIDTH}
    constants |= {"STAGES": gluon.STAGES[dim], "CAUSAL": True}
    types = _types(case, gluon.ROWS // 2, gluon.WIDTH, dim, gluon.gl.NVMMASharedLayout(128, 16, 5))
    return Launch(gluon._prefill, types, constants, 4, registers=168, name="prefill, Gluon", capabilities=(90,))


SIDES = (
    Side("tma", "Isoquant, TMA", True, "Keys and values by descriptors, dense; Hopper only.", reason, by_descriptors),
    Side(
        "gluon", "Isoquant, Gluon", True, "Warps that copy or compute, dense; Hopper only.", gluon_reason, specialised
    ),
)
