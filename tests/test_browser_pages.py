"""The pages in a real browser over stored runs: no worker needed."""

import http.client
import re
import urllib.error
import urllib.request

import pytest
from browser import context, drawn, go, position, ready, stack
from playwright.sync_api import expect
from synthetic import fill

from store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("pages")
    with open_store(home / "isoquant.db") as store:
        ids = fill(store, answers=40)
    with stack(home, worker=False) as running:
        yield running, ids


@pytest.fixture(scope="module")
def profile(browser, served):
    made = context(browser, served[0].url)
    yield made
    made.close()


def drag(page, area, x0, y0, x1, y1):
    b = area.bounding_box()
    page.mouse.move(b["x"] + x0 * b["width"], b["y"] + y0 * b["height"])
    page.mouse.down()
    page.mouse.move(b["x"] + x1 * b["width"], b["y"] + y1 * b["height"], steps=4)
    page.mouse.up()


def ranges(page):
    return page.evaluate(
        "(() => { const l = document.querySelector('.js-plotly-plot')._fullLayout; "
        "return [l.xaxis.range, l.yaxis.range] })()"
    )


def test_nothing_is_fetched_from_elsewhere(page, served):
    seen = []
    page.on("request", lambda r: seen.append(r.url))
    go(page, "/")
    drawn(page)
    assert [u for u in seen if not u.startswith((served[0].url, "data:", "blob:"))] == []
    assert page.locator(".modebar-btn[data-title*='hare']").count() == 0


def test_a_deep_link_runs_the_entry_script(page):
    go(page, "/runs")
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    expect(page.get_by_role("link", name="Frontier")).to_be_visible()


def test_the_frontier_is_found_under_its_name_too(page):
    go(page, "/frontier?x=wall_s")
    drawn(page)
    expect(page).to_have_url(re.compile(r"/\?x=wall_s(&|$)"))
    expect(page.get_by_text("Page not found")).to_have_count(0)


def test_addresses_in_a_name_are_no_links(page):
    go(page, "/?x=www.evil.example%20http://evil.example%20a@b.example%20%26lt;b%26gt;")
    expect(page.get_by_text(re.compile("does not exist"))).to_contain_text("&lt;b&gt;")
    assert page.get_by_role("link", name=re.compile("example")).count() == 0


def test_a_box_selects_and_the_link_restores_it(page):
    go(page, "/")
    drag(page, drawn(page), 0.2, 0.1, 0.6, 0.7)
    expect(page.get_by_text(re.compile(r"\d+ selected"))).to_be_visible()
    expect(page).to_have_url(re.compile("box="))
    count = page.get_by_text(re.compile(r"\d+ selected")).inner_text()
    page.reload()
    ready(page)
    expect(page.get_by_text(count, exact=True)).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text(re.compile("^All 88 runs"))).to_be_visible()
    expect(page).not_to_have_url(re.compile("box="))


def test_a_click_pins_a_run_and_explains_it(page, served):
    go(page, "/")
    drawn(page)
    page.mouse.click(*position(page, served[1][30]))
    expect(page).to_have_url(re.compile(f"run={served[1][30]}"))
    expect(page.get_by_text(re.compile("Beaten: |On the frontier: "))).to_be_visible()


def test_the_zoom_survives_an_update(page, served):
    go(page, "/")
    drawn(page)
    at_first = ranges(page)
    page.locator(".js-plotly-plot").hover()
    page.locator(".modebar-btn[data-title='Zoom in']").click()
    page.wait_for_function(
        "first => document.querySelector('.js-plotly-plot').layout.yaxis.range[0] > first", arg=at_first[1][0]
    )
    before = ranges(page)
    page.mouse.click(*position(page, served[1][30]))
    expect(page.get_by_text(re.compile("Beaten: |On the frontier: "))).to_be_visible()
    assert ranges(page) == before


def test_the_hover_card_says_what_was_measured(page, served):
    go(page, "/")
    drawn(page)
    page.mouse.move(*position(page, served[1][0]))
    card = page.locator(".hoverlayer")
    for words in ("lab-xs", "Accuracy", "n = 100", "Synthetic CPU"):
        expect(card).to_contain_text(words)


def test_the_picture_is_saved_by_the_browser(page):
    go(page, "/")
    drawn(page)
    for title, ending in (("Download plot as a PNG", ".png"), ("Download as SVG", ".svg")):
        with page.expect_download() as download:
            page.locator(f".modebar-btn[data-title^='{title}']").click()
        assert download.value.suggested_filename == f"frontier-accuracy-flops_per_problem{ending}"


def test_the_chart_follows_light_and_dark(page):
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        go(page, "/")
        drawn(page)
        colours[scheme] = page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout.paper_bgcolor")
    assert colours == {"light": "#FFFFFF", "dark": "#11161C"}


@pytest.mark.parametrize("path", ["/", "/run", "/runs"])
def test_nothing_scrolls_sideways(page, path):
    for width in (1280, 800):
        page.set_viewport_size({"width": width, "height": 720})
        go(page, path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_main_picture_is_above_the_fold(page):
    go(page, "/")
    box = page.locator(".js-plotly-plot").first
    drawn(page)
    found = box.bounding_box()
    assert found["y"] + found["height"] < 620


def test_user_text_never_becomes_a_script(page, served):
    page.on("dialog", lambda d: pytest.fail(f"a script ran: {d.message}"))
    go(page, f"/runs?run={served[1][8]}")
    expect(page.get_by_text("Accuracy by level")).to_be_visible()


def test_the_form_can_be_used_by_keyboard(page):
    go(page, "/run")
    field = page.get_by_role("spinbutton", name="Problems")
    field.focus()
    field.fill("12")
    field.press("Tab")
    ready(page)
    page.get_by_text("The same on the command line").click()
    expect(page.get_by_text(re.compile("--limit 12"))).to_be_visible()


def test_a_permalink_leads_to_the_run(page, served):
    go(page, f"/r/{served[1][3]}")
    expect(page.get_by_text(f"run {served[1][3]}", exact=False)).to_be_visible()


def handshake(port, host, origin):
    """The status a WebSocket is answered with."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", "/_stcore/stream", skip_host=True)
    headers = {"Host": host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "streamlit"}
    for name, value in (headers | ({"Origin": origin} if origin else {})).items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:{}", "http://127.0.0.1:{}", 101),
        ("localhost:{}", "http://localhost:{}", 101),
        ("127.0.0.1:{}", "http://evil.example", 403),
        ("127.0.0.1:{}", "http://127.0.0.1:1", 403),
        ("localhost:{}", "http://localhost:9999", 403),
        ("127.0.0.1:{}", None, 403),
        ("127.0.0.1:{}", "null", 403),
        ("evil.example:{}", "http://evil.example:{}", 403),
    ],
)
def test_only_the_apps_own_pages_may_connect(served, host, origin, status):
    port = served[0].port
    assert handshake(port, host.format(port), origin and origin.format(port)) == status


def test_no_other_page_may_frame_the_app(served):
    for path in ("/", "/runs", "/api/health"):
        headers = urllib.request.urlopen(served[0].url + path).headers
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_routes_answer_and_refuse(served):
    url = served[0].url
    assert b'"status":"ok"' in urllib.request.urlopen(f"{url}/api/health").read()
    for path in ("/r/..%2f..%2fetc", "/r/zzz"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(url + path)
        assert error.value.code in (400, 404)
