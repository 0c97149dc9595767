"""The main job against the real app and the real worker: choose, run, watch, find it on the frontier."""

import re

import pytest
from browser import choose, context, drawn, go, position, ready, run_id_of, stack
from playwright.sync_api import expect

from engine.catalog import list_models
from store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The smallest lab model; where the weights are not there, a random one of its kind."""
    if any(m.name == "lab-xs" and m.available for m in list_models()):
        return "lab-xs"
    from tiny import make_model

    return str(make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with stack(tmp_path_factory.mktemp("flow")) as found:
        yield found


@pytest.fixture(scope="module")
def profile(browser, running):
    made = context(browser, running.url)
    yield made
    made.close()


def configure(page, model, *, problems, batch=8, samples=2):
    go(page, "/run")
    choose(page, "Model", model)
    for label, value in (("Samples", samples), ("Problems", problems), ("Batch size", batch)):
        field = page.get_by_role("spinbutton", name=re.compile(f"^{label}"))
        field.fill(str(value))
        field.press("Tab")
    ready(page)
    for label, value in (("Samples", samples), ("Problems", problems), ("Batch size", batch)):
        expect(page.get_by_role("spinbutton", name=re.compile(f"^{label}"))).to_have_value(str(value))


def start(page):
    page.get_by_role("button", name=re.compile("^(play_arrow )?Run( again)?$")).click()
    return run_id_of(page)


def test_a_first_visit_offers_the_tour(page):
    go(page, "/")
    expect(page.get_by_role("button", name=re.compile("Take the tour: 6 runs"))).to_be_visible()
    expect(page.get_by_text("Nothing has been measured here yet.")).to_be_visible()


@pytest.mark.timeout(420)
def test_run_watch_and_find_it_on_the_frontier(page, running, model):
    configure(page, model, problems=400, samples=4)  # long enough to be seen under way, on a fast machine too
    run_id = start(page)
    expect(page.get_by_text(re.compile(r"\d+ of 400|Loading the model|Warming up|Waiting"))).to_be_visible()
    expect(page.get_by_text("See it on the frontier")).to_be_visible(timeout=120_000)
    page.get_by_text("See it on the frontier").click()
    drawn(page)
    assert position(page, run_id)
    expect(page.get_by_text(re.compile("On the frontier: |Beaten: "))).to_be_visible()
    page.reload()
    drawn(page)
    assert position(page, run_id)
    go(page, "/runs")
    go(page, f"/runs?run={run_id}")
    expect(page.get_by_text("Accuracy by level")).to_be_visible()
    with open_store(running.home / "isoquant.db") as store:
        assert store.answers.count(run_id) == 400


def test_leaving_and_coming_back_finds_it_and_cancel_stops_it(page, running, model):
    configure(page, model, problems=900, batch=4, samples=8)
    run_id = start(page)
    expect(page.get_by_text("running", exact=True).first).to_be_visible(timeout=60_000)
    go(page, "/")
    go(page, f"/run?run={run_id}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled", exact=True).first).to_be_visible(timeout=30_000)
    with open_store(running.home / "isoquant.db") as store:
        assert store.runs.poll(run_id)["state"] == "cancelled"


@pytest.mark.timeout(420)
def test_a_killed_worker_loses_nothing(page, running, model):
    configure(page, model, problems=200, batch=4, samples=4)  # long enough to be seen under way
    run_id = start(page)
    expect(page.get_by_text(re.compile(r"[1-9]\d* of 200"))).to_be_visible(timeout=120_000)
    running.kill_worker()
    with open_store(running.home / "isoquant.db") as store:
        kept = store.answers.count(run_id)
    assert kept > 0
    running.start_worker()
    expect(page.get_by_text("See it on the frontier")).to_be_visible(timeout=300_000)
    with open_store(running.home / "isoquant.db") as store:
        answers = store.answers.of_run(run_id)
        notes = store.runs.get(run_id).result.notes
    assert len({(a.repeat, a.problem_id) for a in answers}) == len(answers) == 200
    assert any("resume" in n.lower() for n in notes)
    go(page, f"/runs?run={run_id}")
    expect(page.get_by_text(re.compile("resume", re.IGNORECASE)).first).to_be_visible()


def test_without_a_worker_the_page_says_what_to_do(browser, tmp_path, model):
    with stack(tmp_path, worker=False) as alone:
        made = context(browser, alone.url)
        opened = made.new_page()
        configure(opened, model, problems=4)
        start(opened)
        expect(opened.get_by_text("No worker is running, so queued runs wait.")).to_be_visible()
        made.close()


def test_numbers_typed_at_once_all_stay_and_the_way_back_brings_the_old_ones(page, running, model):
    configure(page, model, problems=24)
    fields = {
        n: page.get_by_role("spinbutton", name=re.compile(f"^{n}")) for n in ("Samples", "Problems", "Batch size")
    }
    for value in range(31, 37):
        for field in fields.values():
            field.fill(str(value))
            field.press("Tab")
    for field in fields.values():
        expect(field).to_have_value("36")
    ready(page)
    page.wait_for_url(re.compile("36.*36.*36"))
    fields["Problems"].fill("99")
    fields["Problems"].press("Tab")
    page.wait_for_url(re.compile("99"))
    ready(page)  # the run that wrote the address has ended
    page.go_back()
    expect(fields["Problems"]).to_have_value("36")
