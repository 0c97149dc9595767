"""The kernel laboratory: formulas, reasons, errors that are found, and rows instead of crashes."""

import importlib.util
import json
import math
from dataclasses import replace
from itertools import count

import pytest
import torch

from engine.laboratory import hopper, linear, sampler
from engine.laboratory import measure as bench
from engine.laboratory.cases import OPS, PRESETS, Case, cases_of, make_case, parse_case, with_preset
from engine.laboratory.device import Device
from engine.laboratory.op import Call
from engine.laboratory.prefill import pairs
from engine.measure import timing
from engine.measure.hardware import ROOT
from engine.measure.roofline import Roofline
from spec.errors import SpecError
from spec.kernel_result import KernelResult, KernelStatus

CPU = Device("cpu", "a processor")
H200 = Device("cuda:0", "H200", (9, 0))
CEILINGS = Roofline("cpu", 1, 1, 1, 1e9, {"fp32": 1e10, "bf16": 2e10})
SMALL = {
    "decode": {"batch": 2, "context": 70, "heads": 4, "kv_heads": 2, "dim": 32},
    "prefill": {"batch": 2, "new": 20, "cached": 13, "heads": 4, "kv_heads": 2, "dim": 32},
    "norm": {"tokens": 5, "width": 96},
    "rope": {"tokens": 21, "heads": 4, "kv_heads": 2, "dim": 32},
    "swiglu": {"tokens": 5, "width": 96},
    "shared": {"batch": 3, "prefix": 40, "suffix": 9, "heads": 4, "kv_heads": 2, "dim": 32},
    "linear": {"rows": 3, "inputs": 256, "outputs": 528},
    "sampler": {"rows": 6, "vocabulary": 700},
}


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    """Of the inputs: what rests on them is said by a test of its own."""
    monkeypatch.setattr(timing, "MAX_COPIES", 2)


def small(op, dtype="fp32", **features):
    return make_case(op, dtype, **SMALL[op], features=features)


def measured(case, device=CPU, **how):
    how = {"budget_s": 0.01, "with_compiled": False} | how
    return {r.side: r for r in bench.measure([case], device, **how)}


@pytest.mark.parametrize(
    ("text", "moved", "flops"),
    [
        # q and out: 2 x 2 x 4 x 8 numbers; keys and values: 2 x 2 x 10 x 2 x 8; 2 bytes each
        ("decode:batch=2,context=10,heads=4,kv_heads=2,dim=16,dtype=bf16", 2 * (256 + 1280), 4 * 2 * 4 * 10 * 16),
        (
            "decode:batch=2,context=10,heads=4,kv_heads=2,dim=16,dtype=bf16,window=3",
            2 * (256 + 384),
            4 * 2 * 4 * 3 * 16,
        ),
        # a byte for each number of the cache, and two scales of four bytes for each of 2 x 10 x 2 tokens and heads
        ("decode:batch=2,context=10,heads=4,kv_heads=2,dim=16,dtype=bf16,kv=int8", 512 + 1280 + 320, 5120),
        ("prefill:batch=1,new=3,cached=2,heads=2,kv_heads=1,dim=16,dtype=fp32", 4 * (192 + 160), 4 * 2 * 16 * 12),
        (
            "prefill:batch=1,new=3,cached=2,heads=2,kv_heads=1,dim=16,dtype=fp32,window=2",
            4 * (192 + 128),
            4 * 2 * 16 * 6,
        ),
        # a tree of 3 tokens behind 7: q and out 2 x 3 x 2 x 16, 10 keys; the tokens see 8, 9 and 9
        ("decode:batch=1,context=10,heads=2,kv_heads=1,dim=16,dtype=fp32,tree=3", 4 * (192 + 320), 4 * 2 * 16 * 26),
        # with a window of 4 the first two see 4 each, and the third 3: its sibling has one of its places
        ("decode:batch=1,context=10,heads=2,kv_heads=1,dim=16,dtype=fp32,tree=3,window=4", 4 * (192 + 192), 128 * 11),
        # 20 shared tokens once and 5 own ones of each of 3; q and out 2 x 3 x 4 x 16
        (
            "shared:batch=3,prefix=20,suffix=5,heads=4,kv_heads=2,dim=16,dtype=bf16",
            2 * (384 + 2240),
            4 * 3 * 4 * 25 * 16,
        ),
        (
            "shared:batch=3,prefix=20,suffix=5,heads=4,kv_heads=2,dim=16,dtype=bf16,window=7,kv=int8",
            768 + 2 * 17 * 2 * 16 + 8 * 17 * 2,
            4 * 3 * 4 * 7 * 16,
        ),
        ("shared:batch=3,prefix=20,suffix=5,heads=4,kv_heads=2,dim=16,dtype=bf16,window=4", 768 + 2 * 768, 3072),
        # x and the product, a byte for each weight, four for each of 30 scales; int4: 2 groups in each of 30 rows
        ("linear:rows=2,inputs=256,outputs=30,dtype=bf16", 2 * 2 * 286 + 7680 + 120, 4 * 7680),
        ("linear:rows=2,inputs=256,outputs=30,dtype=fp32,weight=int4", 4 * 2 * 286 + 3840 + 120, 4 * 7680),
        ("sampler:rows=3,vocabulary=100,dtype=bf16", 600 + 72, 1800),
        ("sampler:rows=3,vocabulary=100,dtype=fp32,top_k=5,top_p=90", 1200 + 72 + 24, 1800),
        ("norm:tokens=3,width=10,dtype=bf16", 2 * (120 + 10), 150),
        ("swiglu:tokens=3,width=10,dtype=fp16", 180, 120),
        # q in and out 128, k and v 128 in and out, cos and sin 32
        ("rope:tokens=1,heads=4,kv_heads=2,dim=16,dtype=bf16", 2 * (128 + 64 + 64 + 32), 3 * 96),
        ("rope:tokens=1,heads=4,kv_heads=2,dim=16,dtype=bf16,qk_norm,kv=fp8", 2 * 224 + 64 + 16, 7 * 96 + 128),
    ],
)
def test_formulas_give_what_one_counts_by_hand(text, moved, flops):
    cost = parse_case(text).cost()
    assert (cost.bytes_moved, cost.flops) == (moved, flops)


@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize("cached", [0, 5])
@pytest.mark.parametrize("window", [0, 1, 4, 7, 50])
def test_pairs_are_counted_one_by_one(new, cached, window):
    seen = [(i, j) for i in range(cached, cached + new) for j in range(i + 1) if not window or j > i - window]
    assert pairs(new, cached, window) == len(seen)


@pytest.mark.parametrize("op", OPS)
def test_a_case_survives_text_and_json_and_has_a_name(op):
    case = make_case(op, "fp16", features={f.name: (f.choices or (f.usual or True,))[0] for f in OPS[op].features})
    assert parse_case(str(case)) == case
    assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case
    assert case.key() == parse_case(str(case)).key() != replace(case, dtype="bf16").key()


def test_the_name_of_a_case_never_changes():
    assert make_case("norm", tokens=1, width=64).key() == "d13d06062195268d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("decod:", "did you mean 'decode'"),
        ("decode:bach=1", "did you mean 'batch'"),
        ("decode:batch=0", "from 1 to 4096"),
        ("decode:batch=x", "whole number"),
        ("decode:dtype=bf8", "bf16"),
        ("decode:heads=6,kv_heads=4", "divides 6"),
        ("decode:window=0", "whole number from 1"),
        ("decode:kv=int4", "int8"),
        ("decode:sinks=3", "takes no value"),
        ("swiglu:tokens=2,window=3", "width"),
        ("rope:dim=33", "even"),
        ("decode:batch=4096,context=1000000", "smaller shape"),
        ("decode:tree=64", "at most 63"),
        ("decode:context=4,tree=5", "no more than the context of 4"),
        ("shared:batch=4096,prefix=1000000", "smaller shape"),
        ("linear:weight=int5", "did you mean 'int8'"),
        ("linear:inputs=200,weight=int4", "multiple of 128"),
        ("linear:inputs=200,weight=nf4", "multiple of 128"),
        ("linear:weight=int4,activations=int8", "a weight in int8"),
        ("sampler:top_p=101", "at most 100"),
    ],
)
def test_a_wrong_case_says_what_to_do(text, words):
    with pytest.raises(SpecError, match=words):
        parse_case(text)
    with pytest.raises(SpecError, match="no case"):
        Case.from_dict({"op": "decode"})


def test_sweeps_and_presets():
    case = make_case("decode")
    assert [c["batch"] for c in case.sweep("batch", [1, 4])] == [1, 4]
    found = cases_of("decode", ["bf16", "fp32"], {"window": 9}, {"batch": [1, 2], "context": [64]}, False)
    assert [(c.dtype, c["batch"], c["context"], c.feature("window")) for c in found] == [
        ("bf16", 1, 64, 9), ("bf16", 2, 64, 9), ("fp32", 1, 64, 9), ("fp32", 2, 64, 9),
    ]  # fmt: skip
    qwen = with_preset(case, "qwen2.5-0.5b")
    assert (qwen["heads"], qwen["kv_heads"], qwen["dim"], qwen["batch"]) == (14, 2, 64, case["batch"])
    assert with_preset(make_case("swiglu"), "llama-3.1-8b")["width"] == 14_336
    up = with_preset(make_case("linear", features={"weight": "int4"}), "llama-3.1-8b")
    assert (up["inputs"], up["outputs"], up.feature("weight")) == (4096, 14_336, "int4")
    assert with_preset(make_case("sampler"), "llama-3.1-8b")["vocabulary"] == 128_256
    assert set(PRESETS) >= {"llama-3.1-8b", "llama-3.2-1b", "qwen2.5-0.5b"}


def test_each_side_says_why_it_cannot_run():
    plain, gqa = small("decode", "bf16"), make_case("decode", "bf16", heads=4, kv_heads=4)
    said = {
        ("triton", plain, CPU): "no NVIDIA GPU",
        ("triton", plain, replace(H200, capability=(7, 5))): "7.5 is below 8.0",
        ("triton", plain, replace(H200, triton="Triton is not installed")): "not installed",
        ("triton", make_case("decode", dim=512), H200): "wider than 256",
        ("triton", small("decode", "bf16", kv="fp8"), replace(H200, capability=(8, 0))): "fp8",
        ("native", plain, H200): "processors only",
        ("native", plain, replace(CPU, native="there is no C++ compiler")): "C++ compiler",
        ("native", small("decode", alibi=True), CPU): "ALiBi",
        ("gathered", small("decode", kv="int8"), CPU): "one byte",
        ("sdpa", small("decode", sinks=True), H200): "sinks",
        ("sdpa-flash", small("decode"), H200): "bf16 and fp16 only",
        ("sdpa-flash", small("prefill", "bf16"), H200): "no mask",
        ("sdpa-efficient", plain, H200): "grouped heads",
        ("flex", plain, CPU): "GPUs only",
        ("native", small("decode", tree=5), CPU): "no trees",
        ("gathered", small("decode", tree=5), CPU): "no trees",
        ("flex", small("decode", "bf16", tree=5), H200): "tree",
        ("sdpa-flash", small("decode", "bf16", tree=5), H200): "no mask",
        ("unshared", small("shared", "bf16"), CPU): "no NVIDIA GPU",
        ("triton", small("linear", "bf16", weight="fp8"), replace(H200, capability=(8, 0))): "fp8",
        ("packed", small("linear"), H200): "processors only",
        ("packed", small("linear", activations="int8"), H200): "more than 16 rows",
        ("unquantized", small("linear", activations="int8"), CPU): "rounded",
        ("packed", small("linear", weight="fp8"), CPU): "no packed product of fp8",
        ("packed", small("linear", weight="nf4"), CPU): "no packed product of nf4",
        ("packed", make_case("linear", outputs=100, features={"weight": "int4"}), CPU): "multiples of 16",
        ("triton", small("sampler"), CPU): "no NVIDIA GPU",
    }
    for (side, case, device), words in said.items():
        assert words in OPS[case.op].side(side).reason(case, device)
    for side in OPS["decode"].sides:
        if side.name not in ("native",):
            assert side.reason(gqa, H200) is None, side.name
    assert OPS["norm"].side("native").reason(small("norm"), CPU)


PLAIN = make_case("prefill", "bf16")


@pytest.mark.parametrize(
    ("case", "device", "tma", "gluon"),
    [
        (PLAIN, H200, None, None),
        (PLAIN, CPU, "no NVIDIA GPU", "no NVIDIA GPU"),
        (PLAIN, replace(H200, triton="Triton is not installed"), "not installed", "not installed"),
        (PLAIN, replace(H200, capability=(8, 9)), "Hopper", "Hopper"),
        (make_case("prefill", "fp32"), H200, "bf16 and fp16 only", "bf16 and fp16 only"),
        (make_case("prefill", cached=16), H200, "nothing of a cache", "nothing of a cache"),
        (make_case("prefill", features={"kv": "int8"}), H200, "one byte", "one byte"),
        (make_case("prefill", dim=36), H200, "steps of 8", "steps of 8"),
        (make_case("prefill", dim=80), H200, None, "64 nor 128"),
        (make_case("prefill", features={"window": 9}), H200, None, "plain causal"),
    ],
)
def test_the_prompt_kernels_for_hopper_say_why_they_cannot_run(case, device, tma, gluon, monkeypatch):
    monkeypatch.setattr("engine.laboratory.hopper.package_version", lambda name: "3.6.0")
    for name, words in (("tma", tma), ("gluon", gluon)):
        found = OPS["prefill"].side(name).reason(case, device)
        assert found is None if words is None else words in found
    monkeypatch.setattr("engine.laboratory.hopper.package_version", lambda name: "4.0.0")
    assert (OPS["prefill"].side("tma").reason(case, device) is None) == (tma is None)
    assert OPS["prefill"].side("gluon").reason(case, device)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_reasons_of_the_gluon_kernel_are_its_own():
    from kernels.prefill import gluon

    assert (hopper.GLUON_VERSIONS, set(hopper.GLUON_DIMS)) == (gluon.VERSIONS, set(gluon.STAGES))


ASKED = [("decode", f) for f in ({}, {"window": 9}, {"softcap": 3}, {"sinks": True}, {"alibi": True}, {"kv": "int8"})]
ASKED += [("decode", {"one": True})]
ASKED += [("prefill", f) for f in ({}, {"window": 9}, {"softcap": 3, "sinks": True}, {"alibi": True})]
ASKED += [("decode", {"tree": 7}), ("decode", {"tree": 5, "window": 4, "softcap": 3, "sinks": True, "alibi": True})]
ASKED += [("shared", f) for f in ({}, {"window": 7}, {"window": 20, "softcap": 3, "sinks": True}, {"kv": "int8"})]
ASKED += [
    ("linear", {}),
    *(("linear", {"weight": w}) for w in ("int4", "nf4", "fp8")),
    ("linear", {"activations": "int8"}),
]
ASKED += [
    ("sampler", f) for f in ({}, {"top_k": 9}, {"top_p": 80}, {"min_p": 5}, {"top_k": 99, "top_p": 90, "min_p": 1})
]
ASKED += [("rope", {}), ("rope", {"qk_norm": True}), ("norm", {}), ("swiglu", {})]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("op", "features"), ASKED)
def test_every_side_computes_the_same(op, features, dtype):
    case = small(op, dtype, **features) if "one" not in features else make_case(op, dtype, **(SMALL[op] | {"batch": 1}))
    rows = measured(case, bench.here("cpu"), ceilings=CEILINGS)
    assert set(rows) == {s.name for s in OPS[op].sides}
    ran = [r for r in rows.values() if r.status is KernelStatus.MEASURED]
    assert "eager" in {r.side for r in ran}
    for r in ran:
        assert r.error < {"fp32": 2e-6, "bf16": 1e-2}[dtype], r.side
        assert r.torch_error == rows["eager"].error
        assert r.q1_s <= r.median_s <= r.q3_s
        assert r.share_of_copy == pytest.approx(r.bytes_moved / r.median_s / 1e9)
        assert KernelResult.from_dict(json.loads(json.dumps(r.to_dict()))) == r
    assert all(r.note for r in rows.values() if r.status is not KernelStatus.MEASURED)


def with_side(monkeypatch, op, run):
    """The operation with a side more, which does what ``run`` does with the plain side's result."""

    def prepare(case, x):
        plain = OPS[op].side("eager").prepare(case, x)
        return Call(lambda: run(plain.run()), plain.read)

    odd = replace(OPS[op].side("eager"), name="odd", prepare=prepare)
    monkeypatch.setitem(OPS, op, replace(OPS[op], sides=(odd, *OPS[op].sides)))


def test_a_side_that_is_wrong_is_seen(monkeypatch):
    with_side(monkeypatch, "swiglu", lambda out: out * 1.01)
    rows = measured(small("swiglu"), sides=["odd", "eager"])
    assert rows["odd"].error == pytest.approx(0.01, rel=1e-3)
    assert rows["eager"].error < 1e-6


@pytest.mark.parametrize(
    ("op", "features", "run"),
    [
        ("shared", {}, lambda out: out * 1.01),
        ("decode", {"tree": 5}, lambda out: out * 1.01),
        ("linear", {"weight": "int4"}, lambda out: out * 1.01),
        ("sampler", {"top_k": 9}, lambda out: (out[0], out[1] * 1.01)),
    ],
)
def test_an_error_of_a_hundredth_is_seen(monkeypatch, op, features, run):
    with_side(monkeypatch, op, run)
    rows = measured(small(op, **features), sides=["odd"])
    assert rows["odd"].error == pytest.approx(0.01, rel=1e-3)


def test_a_tree_is_no_chain():
    """What a side computes that sees all tokens before each one, as without a tree."""
    case = small("decode", tree=5)
    x = OPS["decode"].inputs(case, torch.device("cpu"), 0)
    rows = torch.arange(10)
    (right,) = OPS["decode"].reference(case, x, rows)
    call = (
        OPS["prefill"]
        .side("eager")
        .prepare(make_case("prefill", "fp32", **(SMALL["prefill"] | {"new": 5, "cached": 65})), x)
    )
    (chain,) = call.read(call.run(), rows)
    differ = (right - chain).norm(dim=(1, 2)) > 1e-3
    assert differ.tolist() == 2 * [False, False, True, True, True]  # the third token's parent is the first


def test_a_prefix_is_the_same_blocks_for_all():
    case = small("shared")
    x = OPS["shared"].inputs(case, torch.device("cpu"), 0)
    tables = x.pages().tables
    assert tables.shape == (3, 4)  # 49 tokens
    assert (tables[:, :2] == tables[0, :2]).all()  # of 40 shared tokens the whole blocks
    assert len(tables[:, 2:].unique()) == 6
    assert torch.equal(x.k[0, :, :40], x.k[2, :, :40])
    assert not torch.equal(x.k[0, :, 40:], x.k[2, :, 40:])


def test_a_wrong_token_is_a_failure_and_not_a_small_error(monkeypatch):
    with_side(monkeypatch, "sampler", lambda out: (out[0].roll(1), out[1]))
    rows = measured(small("sampler", top_k=9))
    assert rows["odd"].status is KernelStatus.FAILED
    assert "where fp64 draws" in rows["odd"].note
    assert rows["eager"].status is KernelStatus.MEASURED


def test_a_token_on_a_border_is_right():
    case = make_case("sampler", "fp32", vocabulary=4, rows=1, features={"top_p": 75})
    row = torch.tensor([0.4, 0.3, 0.2, 0.1]).log() * sampler.TEMPERATURE  # 0.9 with the third, 0.7 without
    kept = 0.4 / 0.9
    assert sampler.on_a_border(case, row, kept + 1e-6, 0)
    assert sampler.on_a_border(case, row, kept - 1e-6, 1)
    assert not sampler.on_a_border(case, row, kept / 2, 3)  # filtered out
    assert not sampler.on_a_border(case, row, 0.01, 1)
    assert not sampler.on_a_border(case, row, 0.01, 4)


def test_which_of_equal_logits_top_p_keeps_is_left_open():
    case = make_case("sampler", "fp32", vocabulary=5, rows=1, features={"top_p": 70})
    row = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2]).log()
    assert all(sampler.on_a_border(case, row, 0.5, token) for token in range(5))


def test_a_vocabulary_of_one_token_has_an_error_too():
    assert measured(make_case("sampler", "fp32", vocabulary=1, rows=2), sides=["eager"])["eager"].error == 0.0


def test_a_note_says_what_an_unquantized_weight_moves():
    rows = measured(small("linear", "bf16", weight="int4"), sides=["unquantized", "eager"])
    whole = 2 * (3 * (256 + 528) + 256 * 528) / 1e3
    assert f"it moves {whole:.1f} kB, 3." in rows["unquantized"].note
    assert "it moves" not in (rows["eager"].note or "")


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 4, 8), "88 B"), ((1, 128, 64), "16.8 kB"), ((1, 2048, 8192), "33.6 MB"), ((1, 2**15, 2**16), "4.3 GB")],
)
def test_a_note_says_bytes_in_the_unit_that_fits(shape, words):
    case = make_case("linear", rows=shape[0], inputs=shape[1], outputs=shape[2])
    assert case.dtype == "bf16"
    assert linear.other_bytes(case).startswith(f"it moves {words}, ")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda out: out / 0, "not finite"),
        (lambda out: 1 / 0, "ZeroDivisionError"),
        (lambda out: out[:, :3], "shape"),
        (lambda out: torch.empty(2**60), "memory"),
    ],
)
def test_a_side_that_fails_is_a_row_and_the_others_go_on(monkeypatch, run, words):
    with_side(monkeypatch, "swiglu", run)
    rows = measured(small("swiglu"))
    assert rows["odd"].status is KernelStatus.FAILED
    assert words in rows["odd"].note
    assert rows["odd"].median_s is None
    assert rows["eager"].status is KernelStatus.MEASURED


def test_what_the_inputs_take_is_not_counted_twice(monkeypatch):
    """From the first implementation on they are there, and are no longer free memory."""
    opened, open_ = [], bench.Bench.open
    monkeypatch.setattr(bench.Bench, "open", lambda self: opened.append(self) or open_(self))
    monkeypatch.setattr("engine.laboratory.cases.memory_of", lambda *_: 0 if opened else 10**12)
    rows = measured(small("decode"))
    assert opened
    sides = ("eager", "sdpa", "sdpa-math")
    assert [rows[name].status for name in sides] == [KernelStatus.MEASURED] * len(sides)


def test_an_error_that_is_no_number_fails_one_row(monkeypatch):
    errors = iter((math.nan, 0.0))
    monkeypatch.setitem(OPS, "sampler", replace(OPS["sampler"], error=lambda *_: next(errors, 0.0)))
    first, second = bench.measure(
        [small("sampler"), small("sampler")], CPU, sides=["eager"], budget_s=0.01, with_compiled=False
    )
    assert (first.status, second.status) == (KernelStatus.FAILED, KernelStatus.MEASURED)
    assert "not finite" in first.note


def test_what_does_not_fit_into_memory_is_not_tried(monkeypatch):
    case = small("decode")
    monkeypatch.setattr("engine.laboratory.cases.memory_of", lambda *_: case.memory() - 1)
    rows = measured(case)
    assert {r.status for r in rows.values()} == {KernelStatus.CANNOT}
    assert "are free" in rows["eager"].note
    assert "NVIDIA" in rows["triton"].note, "what no memory would help comes first"
    monkeypatch.setattr("engine.laboratory.cases.memory_of", lambda *_: case.memory())
    rows = measured(case)
    assert rows["sdpa"].status is KernelStatus.MEASURED
    assert rows["sdpa"].torch_error is None, "not even for the error may it be tried"
    assert (rows["eager"].status, rows["sdpa-math"].status) == (KernelStatus.CANNOT, KernelStatus.CANNOT)


def test_eager_attention_counts_its_scores():
    case = parse_case("prefill:new=20000,batch=1,heads=32,kv_heads=32,dim=64")
    assert OPS["prefill"].side("eager").memory(case) == 32 * 20000**2 * (2 + 4)
    assert OPS["prefill"].side("sdpa").memory(case) == 0


@pytest.mark.parametrize("text", ["decode:context=4096", "prefill:new=16,cached=4080", "shared:prefix=4000,suffix=96"])
def test_keys_that_a_window_hides_take_memory_too(text):
    window = "" if text.startswith("shared") else ",window=16"
    assert parse_case(text + window).memory() >= 4 * 4096 * 8 * 64 * 2, "keys and values, dense and in blocks"


def test_a_stop_is_asked_for_before_each_row():
    asked = count()
    found = list(
        bench.measure([small("decode"), small("norm")], CPU, stop=lambda: next(asked) >= 2, with_compiled=False)
    )
    assert len(found) == 2
    assert bench.planned([small("decode"), small("norm")]) == len(OPS["decode"].sides) + len(OPS["norm"].sides)


def test_an_unknown_side_is_named():
    with pytest.raises(SpecError, match="did you mean 'sdpa'"):
        list(bench.measure([small("decode")], CPU, sides=["sdpaa"]))


def test_the_faster_of_two_formats_is_the_ceiling():
    for rates, limit in (({"fp32": 5.0, "bf16": 9.0}, 9.0), ({"fp32": 5.0, "bf16": 2.0}, 5.0), ({"fp16": 1.0}, None)):
        ceilings = {"copy_bytes_per_s": 1.0, "matmul_flop_per_s": rates}
        assert measured(small("norm", "bf16"), sides=["triton"], ceilings=ceilings)["triton"].matmul_flop_per_s == limit


def test_without_ceilings_there_are_no_shares():
    row = measured(small("norm"), sides=["eager"])["eager"]
    assert row.copy_bytes_per_s is row.share is None


def test_the_clock_takes_inputs_in_turn_and_gives_quartiles():
    seen = []
    timed = timing.time_calls([lambda: seen.append(0), lambda: seen.append(1)], torch.device("cpu"), 0.005)
    assert seen[:4] == [0, 1, 0, 1]
    assert timed.repeats >= 3
    assert timing.of([4.0, 1.0, 2.0, 3.0, 5.0]) == timing.Timed(3.0, 2.0, 4.0, 5)
    assert timing.copies_for(2**60, torch.device("cpu")) == timing.copies_for(1, torch.device("cpu"), 2**60) == 1
    assert timing.copies_for(1, torch.device("cpu")) == timing.MAX_COPIES
    assert "cache" in timing.fits_cache_note(1, 2, torch.device("cpu"))


MORE_COMPILED = {
    "decode": [make_case("decode", on_gpu=True, features={"tree": 8})],
    "linear": [
        make_case("linear", on_gpu=True, rows=n, features={"weight": w})
        for w, n in (("int4", 1), ("int4", 16), ("int4", 64), ("int4", 512), ("nf4", 1), ("nf4", 16), ("nf4", 512))
    ]
    + [make_case("linear", on_gpu=True, rows=n, features={"activations": "int8"}) for n in (1, 64, 512)],
    "sampler": [make_case("sampler", on_gpu=True, features={"top_k": 50, "top_p": 95, "min_p": 5})],
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("op", OPS)
def test_the_compiler_is_asked_about_each_operation(op):
    from engine.laboratory.compiled import facts

    for case in [make_case(op, on_gpu=True), *MORE_COMPILED.get(op, ())]:
        found = list(facts(case))
        for fact in found:
            assert fact["spills"] == 0
            assert 16 <= fact["registers"] <= 255
        assert {fact["capability"] for fact in found} == {80, 89, 90}
        tensor = op in ("decode", "shared", "prefill") or (op == "linear" and 1 < case["rows"] <= 64)
        tensor |= case.feature("activations") is not None
        assert any(fact["tensor_core"] > 0 for fact in found) == tensor


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_are_compiled_for_the_gpus_that_they_are_launched_on():
    from engine.laboratory.compiled import facts

    for op, feature in (("decode", "kv"), ("linear", "weight")):
        (old,) = facts(make_case(op, features={feature: "fp8"}), [80])
        assert "fp8" in old["error"]
    launches = OPS["prefill"].launches(make_case("prefill", on_gpu=True))
    assert [(x.name, x.capabilities) for x in launches] == [
        ("", (90,)), ("", (80, 89)), ("prefill, TMA", (90,)), ("prefill, Gluon", (90,))
    ]  # fmt: skip
    assert [x.name for x in OPS["prefill"].launches(make_case("prefill", features={"window": 9}))] == [
        "", "", "prefill, TMA",
    ]  # fmt: skip
    assert {x.name for x in OPS["prefill"].launches(make_case("prefill", cached=9))} == {""}
    rows = {x.capabilities: x.constants["ROWS"] for x in OPS["shared"].launches(make_case("shared", on_gpu=True))
            if x.name == "shared keys"}  # fmt: skip
    assert rows == {(90,): 128, (80, 89): 64}


def test_the_documentation_has_the_formulas_of_each_operation():
    section = (ROOT / "docs" / "metrics.md").read_text().partition("## Single kernels")[2]
    assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == list(OPS)
