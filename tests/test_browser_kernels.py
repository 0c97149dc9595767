"""Kernels in a real browser: a measurement from the click to the picture, seen by a second tab, kept by a reload."""

import re

import pytest
from browser import context, drawn, go, ready, stack
from playwright.sync_api import expect
from test_store_kernel_results import a_result
from test_ui_kernels import of

from engine.laboratory.cases import OPS, make_case
from engine.measure.hardware import ceilings_key
from store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
CASE = make_case("decode", batch=4, context=512)
CEILINGS = {"device": "cpu", "copy_bytes_per_s": 1e10, "matmul_flop_per_s": {"bf16": 1e11, "fp32": 1e11}}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("kernels")
    with open_store(home / "isoquant.db") as store:
        rows = [of(c, side) for c in CASE.sweep("batch", [1, 4]) for side in ("triton", "eager", "sdpa")]
        store.kernel_results.add([*rows, a_result(op="decode", case_key="odd", case={}, side="<b>x</b>")])
        store.settings.set(ceilings_key(), [CEILINGS])
    with stack(home, worker=False) as running:
        yield running


@pytest.fixture(scope="module")
def profile(browser, served):
    made = context(browser, served.url)
    yield made
    made.close()


def charts(page):
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 8")


def test_a_kernel_is_measured_from_the_page(page, profile):
    go(page, "/kernels?op=swiglu")
    expect(page.get_by_text("Nothing has been measured here yet.")).to_be_visible()
    tokens = page.get_by_role("spinbutton", name="Tokens")
    tokens.fill("4")
    tokens.press("Tab")
    ready(page)
    page.get_by_role("button", name="Measure").click()
    other = profile.new_page()
    go(other, "/kernels?op=swiglu")
    expect(other.get_by_role("button", name="Stop")).to_be_visible()
    page.reload()
    expect(page.get_by_text(re.compile("Measured on"))).to_be_visible(timeout=90_000)
    expect(page.get_by_role("button", name="Measure")).to_be_enabled(timeout=90_000)
    drawn(page)
    expect(page).to_have_url(re.compile(r"op=swiglu.*case=[0-9a-f]{16}"))
    expect(other.get_by_role("button", name="Stop")).to_have_count(0)
    other.close()


def test_a_click_on_a_curve_turns_to_its_case(page):
    page.set_viewport_size({"width": 1280, "height": 1400})
    go(page, f"/kernels?case={CASE.key()}")
    charts(page)
    at = page.evaluate(
        """() => {
          const plot = document.querySelectorAll('.js-plotly-plot')[3], l = plot._fullLayout
          const box = plot.getBoundingClientRect(), trace = plot._fullData[0]
          return [box.x + l.xaxis._offset + l.xaxis.d2p(trace.x[0]), box.y + l.yaxis._offset + l.yaxis.d2p(trace.y[0])]
        }"""
    )
    page.mouse.click(*at)
    expect(page).to_have_url(re.compile(next(iter(CASE.sweep("batch", [1]))).key()))


@pytest.mark.parametrize("width", [1280, 800])
def test_every_operation_can_be_seen_and_chosen(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    go(page, f"/kernels?case={CASE.key()}")
    for op in OPS.values():
        box = page.get_by_test_id("stMain").get_by_role("radio", name=op.label, exact=True).bounding_box()
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    go(page, f"/kernels?case={CASE.key()}")
    charts(page)
    assert not page.evaluate(
        "(() => { const m = document.querySelector('.stMain'); return m.scrollWidth > m.clientWidth + 1 })()"
    )
