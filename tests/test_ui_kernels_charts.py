"""What the page Kernels draws and says of results: roofline, times, errors, curves, and cases in words."""

import json
import math
import time
from dataclasses import replace

import pytest
from test_store_kernel_results import HARDWARE, a_result
from test_ui_kernels import CASE, SEVERAL, of

from engine.laboratory.cases import OPS, make_case, with_preset
from ui import kernels_chart, kernels_rows, kernels_tables, kernels_words
from ui.kernels_roofline import roofline


def test_those_without_figures_for_one_reason_are_one_sentence():
    rows = [
        replace(SEVERAL[3], side=side, note=note) for side, note in [("sdpa", "old"), ("flex", "no"), ("triton", "no")]
    ]
    assert kernels_tables.without(rows) == [
        "Cannot run: SDPA. Reason: old.",
        "Cannot run: FlexAttention · Isoquant, Triton. Reason: no.",
    ]


def test_a_slower_kernel_takes_longer():
    ours, theirs = of(CASE, "triton", median_s=3e-4), of(CASE, "sdpa", median_s=1e-4)
    assert kernels_words.conclusion([ours, theirs]).startswith(
        "Isoquant, Triton takes 3 times as long as SDPA, the fastest"
    )
    assert kernels_words.conclusion([ours]) == ""
    assert "Its error is 0.5 times that of PyTorch, eager." in kernels_words.conclusion([ours, theirs])
    assert kernels_words.conclusion([replace(ours, error=0.0), theirs]).endswith("It is exact.")


def test_rows_of_several_days_and_commits_are_not_dated_by_one_of_them():
    now = time.time()
    of_one = [replace(r, measured=now - 121) for r in SEVERAL]
    assert kernels_words.provenance(of_one) == (
        "Measured on NVIDIA H200, another machine, commit 0123456789ab, 2 min ago."
    )
    old = replace(of_one[1], measured=now - 90 * 86_400 - 1, environment=HARDWARE | {"commit": "fedcba987654"})
    assert kernels_words.provenance([of_one[0], old]) == (
        "Measured on NVIDIA H200, another machine, at 2 commits (0123456789ab, fedcba987654), "
        "between 90 d and 2 min ago."
    )
    more = [replace(old, environment=HARDWARE | {"commit": name}) for name in ("a", None, "b", "c")]
    assert "at 5 commits, between" in kernels_words.provenance([*more, of_one[0]])
    failed = replace(SEVERAL[2], measured=0.0)
    assert "2 min ago" in kernels_words.provenance([of_one[0], failed]), "those with figures count"
    assert "between" not in kernels_words.provenance([of_one[0], failed])


def test_where_nothing_was_measured_it_does_not_say_so():
    rows = [replace(r, measured=time.time() - 3601) for r in SEVERAL[2:]]
    assert kernels_words.provenance(rows) == (
        "None could be measured on NVIDIA H200, another machine, commit 0123456789ab, 1 h ago."
    )


def test_a_case_is_said_in_words():
    own = make_case(
        "decode", batch=4, context=2048, heads=6, kv_heads=2, dim=64, features={"window": 128, "alibi": True}
    )
    text = "batch 4, context 2,048, query heads 6, key/value heads 2, head width 64, bf16, sliding window 128, ALiBi"
    assert kernels_rows.case_words(of(own, "eager")) == text
    known = with_preset(make_case("decode", batch=4, features={"kv": "fp8"}), "llama-3.1-8b")
    assert kernels_rows.case_words(of(known, "eager")) == "batch 4, context 1,024, bf16, cache fp8  ·  Llama 3.1 8B"
    assert kernels_rows.case_words(a_result(case={}, case_text="decode:new=1,old=2")) == "new=1, old=2"


def test_the_roof_is_drawn_where_the_ceilings_are():
    figure = json.loads(roofline(list(SEVERAL[:2]), []))
    level, roof = figure["data"][:2]
    assert roof["text"][0] == "Measured on NVIDIA H200: 60.0 GB/s copied", "the page may stand on another machine"
    assert roof["y"][1:] == [1e12, 1e12]
    assert roof["x"][1] == pytest.approx(1e12 / 6e10)
    assert roof["y"][0] == pytest.approx(roof["x"][0] * 6e10)
    assert level["y"] == [1e12, 1e12]
    (point, _) = (t for t in figure["data"] if t.get("customdata") == [CASE.key()])
    assert point["y"] == [pytest.approx(CASE.cost().flops / 1e-4)]
    bare = [replace(r, copy_bytes_per_s=None) for r in SEVERAL[:2]]
    assert "copied" not in roofline(bare, [])


@pytest.mark.parametrize(("flops", "names", "slope"), [(10**7, "right", "top left"), (10**11, "left", "bottom right")])
def test_names_and_words_of_the_roofline_stand_where_there_is_room(flops, names, slope):
    figure = json.loads(roofline([replace(r, flops=flops) for r in SEVERAL[:2]], []))
    assert figure["data"][-1]["textposition"] == f"middle {names}"
    assert figure["data"][2]["textposition"][0] == slope


def test_an_implementation_looks_the_same_everywhere_and_like_no_other_beside_it():
    for op in OPS.values():
        looks = [kernels_chart.look(replace(SEVERAL[0], op=op.name, side=s.name)) for s in op.sides]
        assert len(set(looks)) == len(op.sides)
        assert kernels_chart.UNKNOWN not in looks
    assert kernels_chart.look(replace(SEVERAL[0], op="prefill", side="new")) == kernels_chart.UNKNOWN


def test_bars_carry_their_quartiles_fastest_on_top():
    bars = json.loads(kernels_chart.times(SEVERAL))["data"][0]
    assert bars["y"] == ["PyTorch, eager", "Isoquant, Triton"]
    assert bars["x"] == [5e-4, 1e-4]
    assert bars["width"] == pytest.approx(0.4), "two bars are no walls"
    assert bars["error_x"]["array"] == pytest.approx([4e-4, 2e-5])
    assert bars["error_x"]["arrayminus"] == pytest.approx([1e-4, 1e-5])


def test_the_error_of_pytorch_and_twice_that_are_marked():
    figure = json.loads(kernels_chart.errors(SEVERAL))
    band, line = figure["layout"]["shapes"]
    assert (band["x1"], line["x0"]) == (4e-3, 2e-3)
    assert figure["layout"]["annotations"][0]["x"] == pytest.approx(math.log10(2e-3))
    assert figure["layout"]["annotations"][0]["text"] == "PyTorch, eager"
    assert kernels_chart.figure(0.00163) == "1.6e-3"


def test_an_error_of_0_stands_beside_the_log_scale():
    exact, other = replace(SEVERAL[0], error=0.0), replace(SEVERAL[1], error=2e-3)
    figure = json.loads(kernels_chart.errors([exact, other]))
    across, (points,) = figure["layout"]["xaxis"], figure["data"]
    assert points["y"] == ["PyTorch, eager", "Isoquant, Triton"]
    zero = points["x"][1]
    assert points["x"][0] == 2e-3
    assert dict(zip(across["tickvals"], across["ticktext"], strict=True))[zero] == "0"
    assert across["title"]["text"] == "Error against fp64, log scale right of 0   <b>← better</b>"
    band, edge, line = figure["layout"]["shapes"]
    assert 10 ** across["range"][0] == pytest.approx(band["x0"])
    assert band["x0"] < zero < edge["x0"] < min(across["tickvals"][1:])
    assert line["x0"] == 2e-3
    plain = json.loads(kernels_chart.errors(SEVERAL))["layout"]["xaxis"]
    assert "0" not in plain["ticktext"], "nobody is exact there"
    assert plain["title"]["text"] == "Error against fp64, log scale   <b>← better</b>"


def test_an_exact_pytorch_stands_at_0_and_has_no_twice():
    rows = [replace(SEVERAL[0], torch_error=0.0), replace(SEVERAL[1], error=0.0, torch_error=0.0)]
    layout = json.loads(kernels_chart.errors(rows))["layout"]
    edge, line = layout["shapes"]
    assert line["x0"] < edge["x0"]
    assert layout["xaxis"]["tickvals"][0] == line["x0"]
    assert [note["text"] for note in layout["annotations"]] == ["PyTorch, eager"]
    assert layout["annotations"][0]["x"] == pytest.approx(math.log10(line["x0"]))


def test_there_is_nothing_to_draw_where_all_are_exact():
    exact = [replace(r, error=0.0, torch_error=0.0) for r in SEVERAL[:2]]
    assert not kernels_chart.has_errors(exact)
    assert not kernels_chart.has_errors([replace(r, torch_error=None) for r in exact])
    ours = [replace(exact[0], torch_error=2e-3)]
    assert kernels_chart.has_errors(ours), "PyTorch is not exact"
    assert json.loads(kernels_chart.errors(ours))["data"][0]["x"][0] > 0


def test_cases_that_differ_in_one_field_make_a_curve():
    rows = [of(c, "triton", median_s=1e-4 * c["batch"]) for c in CASE.sweep("batch", [16, 1, 4])]
    rows += [of(c, "eager") for c in CASE.sweep("context", [64])]
    rows.append(of(make_case("decode", batch=7, context=99), "triton"))
    found = {s.field: s for s in kernels_rows.sweeps(rows, CASE.key())}
    assert set(found) == {"batch", "context"}
    assert [x for x, _ in found["batch"].lines["triton"]] == [1, 4, 16]
    slow = kernels_rows.Sweep("batch", {"eager": ((1, of(CASE, "eager", median_s=9.0)),)} | dict(found["batch"].lines))
    drawn = json.loads(kernels_chart.curves(slow, "decode", shares=False))["data"]
    assert [line["name"] for line in drawn] == ["Isoquant, Triton", "PyTorch, eager"], "the fastest first"
    figure = json.loads(kernels_chart.curves(found["batch"], "decode", shares=False))
    assert figure["data"][0]["y"] == pytest.approx([1e-4, 4e-4, 16e-4])
    shares = json.loads(kernels_chart.curves(found["batch"], "decode", shares=True))["data"][0]["y"]
    assert shares == pytest.approx([r.share for _, r in found["batch"].lines["triton"]])
    assert kernels_rows.sweeps(rows, "unknown") == []


def test_a_curve_that_begins_at_0_has_a_linear_axis():
    case = make_case("prefill", batch=1, new=64, cached=0)
    cases = case.sweep("cached", [0, 64, 512, 8192, 65_536, 131_072])
    (sweep,) = kernels_rows.sweeps([of(c, "eager") for c in cases], case.key())
    figure = json.loads(kernels_chart.curves(sweep, "prefill", shares=False))
    across = figure["layout"]["xaxis"]
    assert figure["data"][0]["x"] == [0, 64, 512, 8192, 65_536, 131_072]
    assert (across["type"], across["title"]["text"]) == ("linear", "Cached tokens")
    assert across["tickvals"] == [0, 65_536, 131_072], "others would stand on top of each other"
    (sweep,) = kernels_rows.sweeps([of(c, "eager") for c in cases[1:]], cases[1].key())
    across = json.loads(kernels_chart.curves(sweep, "prefill", shares=False))["layout"]["xaxis"]
    assert (across["type"], across["title"]["text"]) == ("log", "Cached tokens, log scale")
    assert across["tickvals"] == [64, 512, 8192, 65_536, 131_072]
