"""The page Kernels: what it teaches when empty, what is grey and why, what is drawn, and the measurement it starts."""

import json
import os
import time
from dataclasses import replace

import pytest
from apptest import button, visit, words
from test_store_kernel_results import HARDWARE, a_result

from engine.laboratory.cases import make_case
from engine.laboratory.device import Device
from engine.measure.hardware import fingerprint
from spec.choices import JobState
from spec.errors import InputError
from spec.kernel_result import KernelStatus
from spec.run_spec import RunSpec
from store import open_store
from ui import kernels_chart, kernels_job, kernels_rows, kernels_words, process
from ui.kernels_job import Job
from ui.kernels_roofline import roofline

HOSTILE = "<script>alert(1)</script> **bold** [x](http://evil.example)"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kernels_rows, "SHIPPED", tmp_path / "shipped.jsonl")
    monkeypatch.setattr("ui.kernels_page.look", lambda: Device("cpu", "a processor"))
    return tmp_path / "home"


def of(case, side, **changes):
    """A measured result of a case on an H200."""
    cost = case.cost()
    found = a_result(
        op=case.op, case_key=case.key(), case_text=str(case), case=case.to_dict(), side=side,
        bytes_moved=cost.bytes_moved, flops=cost.flops, note=None,
    )  # fmt: skip
    return replace(found, **changes)


def fill(*results):
    with open_store() as store:
        store.kernel_results.add(results)


CASE = make_case("decode", batch=4, context=512)
SEVERAL = (
    of(CASE, "triton", median_s=1e-4, q1_s=0.9e-4, q3_s=1.2e-4),
    of(CASE, "eager", median_s=5e-4, q1_s=4e-4, q3_s=9e-4, compiled=None),
    of(CASE, "sdpa-cudnn", status=KernelStatus.FAILED, median_s=None, error=None, note="out of memory"),
    of(CASE, "flex", status=KernelStatus.CANNOT, median_s=None, error=None, note="no GPU"),
)


def test_an_empty_page_says_what_will_be_here_and_offers_the_button():
    at = visit("kernels")
    assert not at.exception
    assert "point under the roof" in words(at).replace("**", "")
    assert "Nothing has been measured here yet." in words(at)
    assert "kernels import" in words(at)
    assert not button(at, "Measure").disabled


def test_what_cannot_run_is_grey_with_its_reason():
    at = visit("kernels")
    boxes = {box.label: box for box in at.checkbox}
    assert words(at).count("Cannot run: there is no NVIDIA GPU here.") == 1, "once for all of them"
    assert boxes["Isoquant, Triton"].disabled
    assert not boxes["Isoquant, Triton"].value
    assert boxes["PyTorch, eager"].value
    assert "Cannot run: there is no NVIDIA GPU here." in words(at)
    at.pills(key="kn_decode_features").set_value(["sinks"]).run()
    assert "Cannot run: SDPA offers no attention sinks." in words(at)
    assert {box.label: box for box in at.checkbox}["SDPA"].disabled
    for box in at.checkbox:
        if not box.disabled:
            box.uncheck()
    at.run()
    assert button(at, "Measure").disabled


def test_what_is_wrong_in_the_form_stands_beside_the_button():
    at = visit("kernels")
    for box in at.checkbox:
        if not box.disabled:
            box.uncheck()
    at.run()
    assert [e.value for e in at.main.error] == ["Tick at least one implementation at the side."]
    assert not at.sidebar.error


def test_the_time_left_is_reckoned_from_the_results(monkeypatch):
    begun = time.time()
    rows = tuple(replace(SEVERAL[0], side=s, measured=begun - ago) for s, ago in [("a", 30), ("b", 20), ("c", 10)])
    monkeypatch.setattr(kernels_job, "newest", lambda: job(started=begun - 3000, planned=13, results=rows))
    (bar,) = visit("kernels").get("progress")
    assert "2 min left (of about 2)" in bar.proto.text
    rows = (*(replace(SEVERAL[3], side=side, measured=begun - 9) for side in "xyz"), rows[0])
    (bar,) = visit("kernels").get("progress")
    assert bar.proto.text == "4 of 13", "what cannot run takes no time and tells none"


def test_a_click_starts_what_the_form_says(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels_job, "start", lambda arguments: asked.append(arguments))
    at = visit("kernels", op="norm")
    at.selectbox(key="kn_norm_sweep").set_value("tokens").run()
    at.text_input(key="kn_norm_values_tokens").set_value("64, 8").run()
    button(at, "Measure").click().run()
    assert not at.exception
    assert asked == [
        ["--case", "norm:tokens=8,width=2048,dtype=bf16", "--case", "norm:tokens=64,width=2048,dtype=bf16",
         "--sides", "triton,native,eager,rms-norm"]
    ]  # fmt: skip
    at.text_input(key="kn_norm_values_tokens").set_value("64, x").run()
    assert "whole numbers" in words(at)
    assert button(at, "Measure").disabled


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("engine.laboratory.cases.memory_of", lambda *_: 2 * 10**9)
    at = visit("kernels")
    assert not button(at, "Measure").disabled
    at.number_input(key="kn_decode_context").set_value(1_000_000).run()
    assert "it takes 32.8 GB of memory, and 2 GB are free" in words(at)
    assert button(at, "Measure").disabled
    assert "Correct first" in button(at, "Measure").help


def test_a_long_call_makes_a_long_promise(monkeypatch):
    monkeypatch.setattr("engine.laboratory.cases.memory_of", lambda *_: 10**13)
    at = visit("kernels", op="prefill")
    assert "about 20 s" in button(at, "Measure").help
    at.number_input(key="kn_prefill_new").set_value(100_000).run()
    assert " h " in button(at, "Measure").help.replace(".", " ")
    monkeypatch.setattr("engine.laboratory.cases.memory_of", lambda *_: 10**10)
    at.run()
    assert {box.label: box.disabled for box in at.checkbox}["PyTorch, eager"]
    assert not {box.label: box.disabled for box in at.checkbox}["SDPA"]


def test_the_format_of_a_weight_is_asked_for_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels_job, "start", lambda arguments: asked.append(arguments))
    at = visit("kernels", op="linear")
    at.segmented_control(key="kn_linear_value_weight").set_value("nf4").run()
    button(at, "Measure").click().run()
    assert asked[0][1].endswith("weight=nf4")


def test_the_button_says_what_it_will_do(monkeypatch):
    at = visit("kernels", op="norm")
    assert "2 implementations of 1 case on a processor: under 10 s." in button(at, "Measure").help
    at.selectbox(key="kn_norm_sweep").set_value("tokens").run()
    assert "2 implementations of 3 cases on a processor: about 20 s." in button(at, "Measure").help
    assert button(at, "Measure").help in [c.value for c in at.sidebar.caption]
    (tokens,) = (n for n in at.number_input if n.label == "Tokens")
    assert "From 1 to 131,072." in tokens.help


def test_a_start_that_fails_is_said(monkeypatch):
    def refuse(arguments):
        raise InputError("Kernels are being measured already.")

    monkeypatch.setattr(kernels_job, "start", refuse)
    at = visit("kernels")
    button(at, "Measure").click().run()
    assert "being measured already" in words(at)


def test_stored_results_are_shown_at_once_with_their_hardware():
    fill(*SEVERAL)
    at = visit("kernels")
    assert not at.exception
    assert "Isoquant, Triton is 5 times as fast as PyTorch, eager" in words(at)
    assert "Measured on NVIDIA H200, another machine, commit 0123456789ab" in words(at)
    assert {box.label: box.options for box in at.selectbox}["Hardware"] == ["NVIDIA H200"]
    table = at.dataframe[0].value
    assert table["Implementation"].tolist() == ["Isoquant, Triton", "PyTorch, eager"]
    assert "Note" not in table, "nobody has one"
    assert at.dataframe[1].value["Registers"].tolist() == [72]
    assert at.dataframe[1].value["Shared memory"].tolist() == ["21.0 kB"]
    lines = "Failed: SDPA, cuDNN. Reason: out of memory.  \nCannot run: FlexAttention. Reason: no GPU."
    assert lines in words(at)
    assert at.query_params["case"] in (CASE.key(), [CASE.key()])


def test_the_page_dates_all_of_its_rows():
    fill(SEVERAL[0], replace(SEVERAL[1], measured=time.time() - 61, environment=HARDWARE | {"commit": "fedcba987654"}))
    assert "at 2 commits (0123456789ab, fedcba987654), between" in words(visit("kernels"))
    fill(*(replace(r, environment=HARDWARE | {"hardware_id": "b" * 12}, measured=time.time()) for r in SEVERAL[2:]))
    at = visit("kernels")
    assert "None could be measured on NVIDIA H200" in words(at)
    assert "Measured on" not in words(at)


def test_this_machine_comes_first_and_a_link_names_another():
    here = fingerprint()
    fill(*SEVERAL, of(CASE, "eager", environment=here, device="cpu", measured=1.0))
    at = visit("kernels")
    assert f"Measured on {here['hardware_name']}, commit" in words(at)
    assert {b.label: b.value for b in at.selectbox}["Hardware"].startswith(here["hardware_id"])
    assert {b.label: b.options for b in at.selectbox}["Hardware"][0].endswith("(this machine)")
    at = visit("kernels", op="decode", hw=f"{HARDWARE['hardware_id']}-cuda:0")
    assert "Measured on NVIDIA H200" in words(at)


@pytest.mark.parametrize("link", [{"op": "nothing"}, {"case": "nothing"}, {"hw": "<b>"}])
def test_a_link_to_what_is_not_there_shows_the_usual(link):
    fill(*SEVERAL, of(CASE, "eager", environment=fingerprint(), device="cpu"))
    at = visit("kernels", **link)
    assert not at.exception
    assert "Measured on" in words(at)


def test_results_that_come_with_isoquant_are_offered(home):
    kernels_rows.SHIPPED.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in SEVERAL))
    assert "Measured on NVIDIA H200" in words(visit("kernels"))
    kernels_rows.SHIPPED.write_text("no results")
    os.utime(kernels_rows.SHIPPED, (1, 1))
    assert "Nothing has been measured" in words(visit("kernels"))


def test_the_newer_of_stored_and_shipped_is_shown():
    kernels_rows.SHIPPED.write_text(json.dumps(of(CASE, "eager", measured=5000.0, median_s=5.0).to_dict()))
    fill(of(CASE, "eager", measured=4000.0, median_s=4.0), of(CASE, "triton", measured=1.0))
    with open_store() as store:
        found = {r.side: r for r in kernels_rows.load(store, "decode")}
    assert found["eager"].median_s == 5.0
    assert set(found) == {"eager", "triton"}


def test_where_all_are_exact_a_line_says_so():
    fill(*(replace(r, error=0.0, torch_error=0.0) for r in SEVERAL[:2]))
    at = visit("kernels")
    assert not at.exception
    assert "All are exact: no difference from fp64." in words(at)
    fill(replace(SEVERAL[1], error=1e-3, measured=2000.0))
    at = visit("kernels")
    assert not at.exception
    assert "All are exact" not in words(at)


def test_hostile_words_stay_words():
    bad = {"environment": HARDWARE | {"hardware_name": HOSTILE, "commit": HOSTILE}}
    fill(of(CASE, "triton", note=HOSTILE, **bad), of(CASE, HOSTILE, median_s=1e-2, **bad), of(CASE, "eager", **bad))
    at = visit("kernels")
    assert not at.exception
    (caption,) = (c.value for c in at.caption if "Measured on" in c.value)
    assert "<script>" not in caption.replace("\\<", "")
    assert "**" not in caption.replace("\\*", "")
    with open_store() as store:
        rows = kernels_rows.of_case(kernels_rows.load(store, "decode"), CASE.key())
    for figure in (roofline(rows, rows), kernels_chart.times(rows), kernels_chart.errors(rows)):
        assert "<script>" not in figure


def job(**changes):
    return replace(Job(True, time.time() - 9, False, 4, (SEVERAL[0], SEVERAL[2]), None), **changes)


def test_a_measurement_on_its_way_is_found(monkeypatch):
    stopped = []
    monkeypatch.setattr(kernels_job, "newest", job)
    monkeypatch.setattr(kernels_job, "stop", lambda: stopped.append(1))
    with open_store() as store:
        lease = store.jobs.start(RunSpec("lab-s"), worker="w", source="cli")
        assert store.jobs.list([JobState.RUNNING])
    at = visit("kernels")
    assert not at.exception
    assert "SDPA, cuDNN: failed: out of memory" in words(at)
    assert f"Run {lease.run_id} is being measured at the same time" in words(at)
    assert button(at, "Measure").disabled
    button(at, "Stop").click().run()
    assert stopped == [1]


def test_one_that_was_stopped_says_so(monkeypatch):
    found = job(running=False, stopping=True)
    forgotten = []
    monkeypatch.setattr(kernels_job, "newest", lambda: None if forgotten else found)
    monkeypatch.setattr(kernels_job, "forget", lambda: forgotten.append(1))
    at = visit("kernels")
    assert "Stopped after 2 of 4; what was measured is kept." in words(at)
    button(at, "Close").click().run()
    assert "Stopped" not in words(at)
    forgotten.clear()
    found = replace(found, planned=2)
    assert "Stopped" not in words(visit("kernels")), "it came to its end all the same"
    found = job(running=False, stopping=True)
    assert "Stopped" not in words(visit("kernels", op="norm")), "that was another operation"


def test_results_are_drawn_as_they_come(monkeypatch):
    here = {"environment": fingerprint(), "device": "cpu"}
    monkeypatch.setattr(kernels_job, "start", lambda arguments: None)
    fill(*SEVERAL)
    at = visit("kernels")
    button(at, "Measure").click().run()
    assert "another machine" in words(at), "nothing new yet"
    case = make_case("decode")
    fill(of(case, "eager", **here))
    monkeypatch.setattr(kernels_job, "newest", lambda: job(results=(of(case, "eager", **here),)))
    at.run()
    assert "another machine" not in words(at)
    assert at.query_params["case"] in (case.key(), [case.key()])
    assert at.session_state["kn_drawn"] == 1
    assert at.dataframe[0].value["Implementation"].tolist() == ["PyTorch, eager"]


def test_an_empty_page_beside_a_measurement_waits_for_it(monkeypatch):
    monkeypatch.setattr(kernels_job, "newest", lambda: job(results=()))
    at = visit("kernels")
    assert "The first results appear here." in words(at)
    assert "Nothing has been measured" not in words(at)


def test_one_that_failed_says_why(monkeypatch):
    monkeypatch.setattr(kernels_job, "newest", lambda: job(running=False, error=HOSTILE))
    at = visit("kernels")
    assert "alert" in words(at)
    assert button(at, "Close")


FAKE = """
import json, signal, sys, time
print(json.dumps({"planned": 2}), flush=True)
kind = sys.argv[-1]
if kind == "dies":
    print("Killed by a bug", file=sys.stderr); sys.exit(9)
if kind == "refuses":
    print(json.dumps({"error": {"type": "SpecError", "message": "No such thing."}}, indent=2)); sys.exit(2)
row = json.load(open("row.json"))
print(json.dumps(row), flush=True)
if kind == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    time.sleep(60)
print(json.dumps(row | {"side": "eager"}), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Instead of the command line a script that prints what it would, at once."""
    (tmp_path / "cli.py").write_text(FAKE)
    (tmp_path / "row.json").write_text(json.dumps(a_result().to_dict()))
    monkeypatch.setattr(process, "ROOT", tmp_path)


def until(is_so):
    for _ in range(400):
        found = kernels_job.newest()
        if found is not None and is_so(found):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


@pytest.mark.parametrize(
    ("kind", "results", "error"),
    [("works", 2, None), ("dies", 0, "ended early. Killed by a bug"), ("refuses", 0, "No such thing.")],
)
def test_a_measurement_is_followed_to_its_end(fake, kind, results, error):
    assert kernels_job.newest() is None
    kernels_job.start([kind])
    found = until(lambda j: not j.running)
    assert len(found.results) == results
    assert (found.error is None) if error is None else (error in found.error)
    kernels_job.forget()
    assert kernels_job.newest() is None


def test_only_one_measures_and_it_can_be_stopped(fake):
    kernels_job.start(["waits"])
    until(lambda j: j.results)
    with pytest.raises(InputError, match="already"):
        kernels_job.start(["works"])
    kernels_job.forget()  # does nothing while it runs
    kernels_job.stop()
    found = until(lambda j: not j.running)
    assert (found.stopping, found.error, len(found.results)) == (True, None, 1)
    kernels_job.stop()  # nothing there to be stopped
    kernels_job.start(["works"])
    assert len(until(lambda j: not j.running).results) == 2


def test_results_of_another_version_are_shown_too():
    odd = replace(a_result(), op="decode", case={"op": "new", "shape": {}}, side="new-side")
    fill(odd)
    at = visit("kernels")
    assert not at.exception
    assert kernels_rows.label(odd) == "new-side"
    assert kernels_words.outcome(odd).startswith("100 µs")
