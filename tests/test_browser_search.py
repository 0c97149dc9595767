"""Scaling and Tree in a real browser: what a click does, and that nothing is wider than the window."""

import re

import pytest
from browser import context, drawn, go, position, ready, stack
from playwright.sync_api import expect
from synthetic import fill_scaling

from store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
REBASE = 5


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("search")
    with open_store(home / "isoquant.db") as store:
        ids = fill_scaling(store, models=("lab-s",), problems=8)
    with stack(home, worker=False) as running:
        yield running, ids


@pytest.fixture(scope="module")
def profile(browser, served):
    made = context(browser, served[0].url)
    yield made
    made.close()


def is_too_wide(page):
    return page.evaluate(
        "(() => { const m = document.querySelector('.stMain'); return m.scrollWidth > m.clientWidth + 1 })()"
    )


def test_a_click_on_a_line_leads_to_its_run(page, served):
    go(page, "/scaling")
    drawn(page)
    page.mouse.click(*position(page, served[1][REBASE]))
    expect(page).to_have_url(re.compile(f"run={served[1][REBASE]}"))
    page.get_by_role("link", name=re.compile("Look inside")).click()
    expect(page).to_have_url(re.compile(rf"/runs\?run={served[1][REBASE]}"))
    expect(page.get_by_role("heading", name=re.compile("rebase"))).to_be_visible()


def test_the_card_of_a_point_says_what_was_measured(page, served):
    go(page, "/scaling?strategy=rebase")
    drawn(page)
    page.mouse.move(*position(page, served[1][REBASE]))
    for words in ("lab-s", "Accuracy", "n = 8 problems", "a run of its own"):
        expect(page.locator(".hoverlayer")).to_contain_text(words)


def test_a_click_on_the_tree_shows_the_step(page, served):
    go(page, f"/tree?run={served[1][REBASE]}&problem=test-3")
    drawn(page)
    with open_store(served[0].home / "isoquant.db") as store:
        tree = store.answers.one(served[1][REBASE], "test-3").tree
    page.mouse.click(*position(page, "1"))
    expect(page).to_have_url(re.compile(r"node=1(&|$)"))
    expect(page.get_by_test_id("stCode").first).to_contain_text(tree[1].text.strip())
    page.reload()
    ready(page)
    expect(page.get_by_test_id("stCode").first).to_contain_text(tree[1].text.strip())


def test_two_trees_stand_side_by_side(page, served):
    go(page, f"/tree?run={served[1][REBASE]}&problem=test-3&with={served[1][0]}")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
    boxes = [plot.bounding_box() for plot in page.locator(".js-plotly-plot").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1
    assert abs(boxes[0]["height"] - boxes[1]["height"]) < 2


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(page, served, width):
    page.set_viewport_size({"width": width, "height": 720})
    for path in ("/scaling", f"/tree?run={served[1][REBASE]}", f"/tree?run={served[1][REBASE]}&with={served[1][0]}"):
        go(page, path)
        drawn(page)
        assert not is_too_wide(page), path


def test_a_step_can_be_chosen_with_the_keyboard(page, served):
    go(page, f"/tree?run={served[1][REBASE]}&problem=test-3")
    drawn(page)
    box = page.get_by_role("combobox", name=re.compile("^Step"))
    box.focus()
    box.press("ArrowDown")
    box.press("Home")
    box.press("Enter")
    expect(page).to_have_url(re.compile(r"node=\d+"))
