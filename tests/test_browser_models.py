"""Models in a real browser: prepared from the click to the picture, stopped, found again, drawn light and dark."""

import re

import pytest
from browser import context, drawn, go, ready, stack
from playwright.sync_api import expect
from test_ui_models import write

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
SLOW = "prune:structure=neurons,level=0.5,recover=100000+int4"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with stack(tmp_path_factory.mktemp("models"), worker=False) as running:
        yield running


@pytest.fixture(scope="module")
def profile(browser, served):
    made = context(browser, served.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def family(browser, tmp_path_factory):
    """A browser profile on a folder with a family of records."""
    home = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOQUANT_HOME", str(home))
        write("a", "int8", model="lab-m", bytes=500_000)
        write("b", "prune:structure=neurons,level=0.5", model="lab-m", bytes=800_000,
              facts={"kept": [0, 1, 2], "neurons": [64, 96, 64]})  # fmt: skip
        write("c", "prune:structure=neurons,level=0.5+int4", before="b", model="lab-m", bytes=200_000)
        for at, id in enumerate("def0123456789"):
            write(id, f"recover:steps={at + 1}", model="lab-xs", bytes=1000 * at)
    with stack(home, worker=False) as running:
        made = context(browser, running.url)
        yield made
        made.close()


def prepare(page):
    return page.get_by_test_id("stButton").get_by_role("button", name="Prepare", exact=True)


def recipe(page, text):
    field = page.get_by_role("textbox", name="Recipe")
    field.fill(text)
    field.press("Tab")
    ready(page)


def stop(page, name="Stop"):
    return page.get_by_role("button", name=name, exact=True)


def test_a_model_is_prepared_from_the_page(page, profile):
    go(page, "/models?model=lab-xs")
    expect(page.get_by_role("button", name="Prepare lab-s in int4")).to_be_visible()
    recipe(page, "int8")
    prepare(page).click()
    expect(stop(page)).to_be_visible()
    other = profile.new_page()
    go(other, "/models")
    expect(stop(other)).to_be_visible()
    page.reload()
    expect(page.get_by_text("Divergence")).to_be_visible(timeout=120_000)
    drawn(page)
    expect(page).to_have_url(re.compile(r"model=lab-xs&id=[0-9a-f]{16}"))
    expect(other.get_by_text("Divergence")).to_be_visible()
    expect(stop(other)).to_have_count(0)
    other.close()


def test_it_survives_the_web_app_and_is_stopped(page, served):
    go(page, "/models?model=lab-xs")
    recipe(page, SLOW)
    prepare(page).click()
    expect(page.get_by_text(re.compile(r"training step \d+ of 100000"))).to_be_visible(timeout=120_000)
    expect(page.get_by_text(re.compile("Step 1 of 2"))).to_be_visible()
    served.web.terminate()
    served.web.wait(20)
    served.start_web()
    go(page, "/models?model=lab-xs")
    expect(page.get_by_text(re.compile("training step"))).to_be_visible()
    stop(page).click()
    expect(page.get_by_text(re.compile("was stopped. What was done is kept"))).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text(re.compile("was stopped"))).to_have_count(0)


def test_what_cannot_be_and_what_fails_is_said(page):
    go(page, "/models?model=lab-xs")
    recipe(page, "int4+int8")
    expect(page.get_by_text("A model is quantized once: int4 and int8")).to_be_visible()
    expect(prepare(page)).to_be_disabled()
    go(page, "/models?model=nobody/such-a-model")
    recipe(page, "int4")
    prepare(page).click()
    ended = page.locator(".st-key-models_ended").get_by_role("alert")
    expect(ended).to_contain_text("such-a-model", timeout=120_000)
    expect(prepare(page)).to_be_enabled()


def test_a_click_on_a_row_looks_inside_and_run_it_fills_the_form(family):
    page = family.new_page()
    page.set_viewport_size({"width": 1280, "height": 1000})
    go(page, "/models?model=lab-m")
    drawn(page)
    page.mouse.click(*row(page, "b" * 16))
    expect(page).to_have_url(re.compile("id=" + "b" * 16))
    expect(page.get_by_text("Neurons that are left")).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_be_disabled()
    ready(page)
    page.get_by_role("link", name="Run it").click()
    expect(page).to_have_url(re.compile(r"/run\?spec="))
    expect(page.get_by_role("combobox", name=re.compile("Pruning"))).to_have_value("neurons")
    page.close()


def row(page, id):
    """Where on the screen the row of a prepared model lies."""
    return page.evaluate(
        """(id) => {
          const plot = document.querySelector('.js-plotly-plot'), l = plot._fullLayout
          const box = plot.getBoundingClientRect(), trace = plot._fullData.find((t) => t.customdata?.includes(id))
          return [box.x + 200, box.y + l.yaxis._offset + l.yaxis.d2p(trace.y[trace.customdata.indexOf(id)])]
        }""",
        id,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_has_the_colours_of_the_theme(family, scheme):
    page = family.new_page()
    page.emulate_media(color_scheme=scheme)
    go(page, "/models?model=lab-m&id=" + "c" * 16)
    drawn(page)
    found = page.evaluate(
        "(() => { const p = document.querySelector('.js-plotly-plot'); return [p._fullLayout.paper_bgcolor, "
        "p._fullData.flatMap((t) => t.marker?.color ?? []).filter((c) => String(c).startsWith('@')).length] })()"
    )
    assert [str(found[0]).upper(), found[1]] == [{"light": "#FFFFFF", "dark": "#11161C"}[scheme], 0]
    page.close()


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(family, width):
    page = family.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    go(page, "/models?id=" + "c" * 16)  # more rows than fit: these scroll in their frame
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 6")
    assert not page.evaluate(
        "(() => { const m = document.querySelector('.stMain'); return m.scrollWidth > m.clientWidth + 1 })()"
    )
    page.close()
