import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from apptest import button, visit, words
from synthetic import HARDWARE, OTHER, fill, fill_many, result

from analysis.frontier import frontier as reference
from spec.choices import JobState
from spec.measures import MEASURES
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import Majority
from spec.tour import tour_specs
from store import open_store
from ui import explorer, export, frontier, tour
from ui.plot import Box
from ui.view import View


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    home = tmp_path_factory.mktemp("filled")
    with open_store(home / "isoquant.db") as store:
        ids = fill(store)
    return home, ids


@pytest.fixture
def home(filled, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(filled[0]))
    return filled[0]


@pytest.fixture
def store(home):
    with open_store() as opened:
        yield opened


def selected(store, **changes):
    view = View(**changes)
    frame = frontier.load(store, view.x, view.y)
    return frontier.select(frame, view, frontier.choices(frame)), view


def test_the_default_is_the_task_and_hardware_with_most_runs(store):
    shown, _ = selected(store)
    assert set(shown.frame["where"]) == {"lab-words"}
    assert set(shown.frame["hardware_id"]) == {HARDWARE[0]}
    assert not shown.mixed_hardware
    assert not shown.mixed_tasks


def test_points_of_other_hardware_share_a_frontier_only_when_asked(store):
    shown, view = selected(store, hardware="*", task="*")
    assert shown.mixed_hardware
    assert shown.mixed_tasks
    picture = frontier.picture(shown, view, store.runs.hardware(), None)
    assert 0 < picture.points.odd.sum() < len(picture.points)


def test_the_frontier_is_that_of_the_filtered_points(store):
    shown, _ = selected(store, models=("lab-s",), precisions=("bf16",))
    assert set(shown.frame["model"]) == {"lab-s"}
    best = reference(shown.frame["x"], shown.frame["y"], shown.x.better, shown.y.better)
    assert shown.frontier.tolist() == best.tolist()
    assert sorted([*shown.frontier, *shown.drawn]) == list(range(len(shown.frame)))


def test_a_box_selects_what_lies_in_it_frontier_first(store):
    shown, view = selected(store, x="latency_p50_s", box=Box(0.1, 1.0, 0.5, 0.8))
    rows = frontier.within(shown, view)
    assert len(rows) > 3
    assert rows["x"].between(0.1, 1.0).all()
    assert rows["y"].between(0.5, 0.8).all()
    assert rows["on_frontier"].is_monotonic_decreasing


def test_cards_say_what_was_chosen_measured_and_where(store):
    shown, view = selected(store)
    picture = frontier.picture(shown, view, store.runs.hardware(), None)
    at = int(picture.frontier[0])
    run = store.runs.get(str(picture.points.run_id[at]), samples=False)
    card = str(picture.points.card[at])
    for part in (run.spec.model, str(run.spec.strategy), "Accuracy: ", " % (", "n = 100", HARDWARE[1], "20"):
        assert part in card


def test_a_dominated_run_is_explained_and_a_frontier_run_is_not(store):
    shown, view = selected(store)
    beaten, best = int(shown.drawn[0]), int(shown.frontier[0])
    by = frontier.dominator(shown, beaten)
    assert by in shown.frontier
    assert shown.frame["x"][by] <= shown.frame["x"][beaten]
    assert shown.frame["y"][by] >= shown.frame["y"][beaten]
    assert "Beaten: " in explorer.verdict(store, view, shown, beaten)
    assert "On the frontier" in explorer.verdict(store, view, shown, best)
    assert "not in the picture" in explorer.verdict(store, view, shown, None)


def test_many_points_are_sampled_and_counted(tmp_path, monkeypatch):
    with open_store(tmp_path / "isoquant.db") as store:
        fill_many(store, 400)
        monkeypatch.setattr(frontier, "MAX_DRAWN", 50)
        shown, view = selected(store)
        assert shown.sampled
        assert len(shown.drawn) == 50
        text = explorer.sentence(shown, view, left_out=0)
    assert f"{50 + len(shown.frontier)} points are drawn" in text
    assert f"of {len(shown.frame)} runs" in text


def test_runs_without_a_measure_are_left_out_and_counted(home):
    at = visit(x="j_per_correct")
    assert "No run here has both" in words(at)
    assert "92 runs have no accuracy or no energy per correct answer" in words(at)


def usual(**more):
    """The parameters of a link to what is shown where nothing was chosen."""
    return {"x": "flops_per_problem", "y": "accuracy", "task": "lab-words", "hw": HARDWARE[0]} | more


def test_the_page_shows_the_chart_and_its_permalink(home):
    at = visit(x="wall_s", model="lab-s")
    assert not at.exception
    chart = at.get("bidi_component")[0]
    assert chart is not None
    assert at.multiselect(key="fr_models").value == ["lab-s"]
    assert at.selectbox(key="fr_x").value == "wall_s"
    at.selectbox(key="fr_y").set_value("pass_at_n")
    at.toggle(key="fr_log_x_wall_s").set_value(False).run()
    where = {"task": "lab-words", "hw": HARDWARE[0]}
    assert at.query_params == {"x": "wall_s", "y": "pass_at_n", "xscale": "linear", "model": "lab-s"} | where


def test_two_quick_changes_both_stay_though_the_browser_sends_the_address_of_before(home):
    at = visit(x="wall_s", model="lab-s")
    at.selectbox(key="fr_y").set_value("pass_at_n").run()
    after = dict(at.query_params)
    at.toggle(key="fr_log_x_wall_s").set_value(False)
    at.query_params.clear()
    at.query_params["x"], at.query_params["model"] = "wall_s", "lab-s"
    at.run()
    assert dict(at.query_params) == after | {"xscale": "linear"}


def test_a_bad_link_is_named_and_shows_the_usual_view(home):
    at = visit(x="nonsense", run="zzz")
    assert "'nonsense', which does not exist" in words(at)
    assert at.selectbox(key="fr_x").value == "flops_per_problem"
    assert at.query_params == usual()


def test_a_pinned_run_is_explained_below(home, filled):
    at = visit(run=filled[1][1])
    assert "lab-xs" in words(at)
    button(at, "Unpin").click().run()
    assert "run" not in at.query_params


def test_the_link_of_a_run_shows_its_task_and_machine(empty):
    with open_store() as store:
        for seed in range(3):
            spec = RunSpec("lab-s", task=TaskSpec(limit=100), seed=seed)
            store.runs.save(spec, result(spec, random.Random(seed)))
        spec = RunSpec("lab-s", task=TaskSpec("gsm8k", "train", limit=100))
        run_id = store.runs.save(spec, result(spec, random.Random(9), OTHER))
        text = scored_text(store)
    at = visit(run=run_id)
    assert "On the frontier" in words(at)
    assert at.query_params == usual(run=run_id, task="gsm8k (train)", hw=OTHER[0])
    assert "not in the picture" in words(visit(run=run_id, task="lab-words"))
    assert visit(run=text).query_params["y"] == "perplexity_byte"


def test_a_link_goes_on_showing_the_task_it_showed(empty):
    spec = RunSpec("lab-s", task=TaskSpec(limit=100))
    with open_store() as store:
        store.runs.save(spec, result(spec, random.Random(0)))
    link = dict(visit().query_params)
    with open_store() as store:
        for seed in range(3):
            later = RunSpec("lab-s", task=TaskSpec("gsm8k", limit=100), seed=seed)
            store.runs.save(later, result(later, random.Random(seed), OTHER))
    at = visit(**link)
    assert "The only run here is on the frontier" in words(at)
    assert at.query_params == usual()
    assert at.selectbox(key="fr_task").value == "lab-words"


def test_new_axes_that_the_task_has_no_run_on_show_another_task(empty):
    spec = RunSpec("lab-s", task=TaskSpec(limit=100))
    with open_store() as store:
        for seed in range(2):
            store.runs.save(spec, result(spec, random.Random(seed)))
        scored_text(store)
    at = visit()
    assert at.query_params == usual()
    at.selectbox(key="fr_x").set_value("wall_s")
    at.selectbox(key="fr_y").set_value("perplexity_byte").run()
    assert at.query_params == usual(x="wall_s", y="perplexity_byte", task="perplexity:/a.txt")
    assert "On the frontier" not in words(at)
    assert "The only run here is on the frontier" in words(at)


def test_an_unknown_run_in_the_link_is_a_sentence(home):
    at = visit(run="ffffffffffff")
    assert "There is no run 'ffffffffffff' here" in words(at)
    assert not at.exception


def test_an_impossible_filter_offers_a_way_back(home):
    at = visit(model="no-such-model")
    assert "No run here has both" in words(at)
    button(at, "Show everything").click().run()
    assert at.get("bidi_component")


def scored_text(store):
    """A run of the task perplexity: it has neither accuracy nor problems."""
    found = result(spec := RunSpec("lab-s", task=TaskSpec("perplexity:/a.txt")), random.Random(0))
    kept = {k: v for k, v in found.measures.items() if not k.startswith(("accuracy", "n_", "pass", "flops_per"))}
    return store.runs.save(spec, replace(found, measures=kept | {"perplexity_byte": 2.5, "perplexity_token": 9.0}))


def test_runs_that_only_score_a_text_are_drawn_on_axes_they_have(empty):
    with open_store() as store:
        run_id = scored_text(store)
    at = visit()
    assert at.get("bidi_component")
    where = {"task": "perplexity:/a.txt", "hw": HARDWARE[0]}
    assert at.query_params == {"x": "flops_total", "y": "perplexity_byte"} | where
    at = visit(run=run_id)
    assert "On the frontier" in words(at)
    assert "nan" not in words(at)


def test_show_everything_is_only_offered_where_it_shows_more(empty):
    spec = RunSpec("lab-s", task=TaskSpec(limit=100))
    with open_store() as store:
        store.runs.save(spec, replace(result(spec, random.Random(0)), measures={}))
    at = visit()
    assert "No run here has both" in words(at)
    assert [b.label for b in at.button] == []


def with_energy(store, joules, method="rapl", valid=True, seed=0):
    spec = RunSpec("lab-s", strategy=Majority(n=8), task=TaskSpec(limit=100), seed=seed)
    found = result(spec, random.Random(seed))
    energies = {"energy_j": joules, "j_per_correct": joules / 50}
    return store.runs.save(
        spec,
        replace(
            found, measures=found.measures | energies, energy_method=method, energy_valid=valid, energy_reason=None
        ),
    )


def test_an_energy_that_is_not_valid_is_left_out_and_counted(empty):
    with open_store() as store:
        good, bad = with_energy(store, 100.0), with_energy(store, 0.001, valid=False, seed=1)
        shown, view = selected(store, x="energy_j")
        assert list(shown.frame["run_id"]) == [good]
        assert not shown.mixed_methods
        card = str(frontier.picture(shown, view, {}, None).points.card[0])
        assert "Energy by energy counters of the processor" in card
        assert len(selected(store, x="wall_s")[0].frame) == 2
    at = visit(x="energy_j")
    assert "1 run has an energy that is not valid and cannot be compared" in words(at)
    assert "cannot be drawn" not in words(at)
    assert "different sources" not in words(at)
    assert "not in the picture" in words(visit(x="energy_j", run=bad))


def test_energies_of_different_sources_are_marked(empty):
    with open_store() as store:
        with_energy(store, 100.0)
        with_energy(store, 50.0, method="nvml_counter", seed=1)
    at = visit(x="j_per_correct")
    assert "come from different sources" in words(at)
    assert set(at.dataframe[0].value["Energy by"]) == {
        "energy counters of the processor (RAPL)",
        "energy counter of the GPU (NVML)",
    }


def test_a_value_of_nought_is_drawn_or_counted(empty):
    with open_store() as store:
        for seed, tokens in enumerate((0, 0, 900)):
            spec = RunSpec("lab-s", task=TaskSpec(limit=100), seed=seed)
            found = result(spec, random.Random(seed))
            store.runs.save(spec, replace(found, measures=found.measures | {"tokens_verifier": tokens}))
    at = visit(x="tokens_verifier")
    assert not at.toggle(key="fr_log_x_tokens_verifier").value
    assert at.query_params == usual(x="tokens_verifier", xscale="linear")
    assert "log scale" not in words(at)
    at.toggle(key="fr_log_x_tokens_verifier").set_value(True).run()
    assert "2 runs lie at 0, which a log scale cannot show" in words(at)
    assert visit(x="wall_s").toggle(key="fr_log_x_wall_s").value


@pytest.mark.parametrize(
    ("measure", "values", "unit", "factor"),
    [
        ("flops_per_problem", [1.09e8, 2.4e9, 9e8], "MFLOP", 1e-6),
        ("latency_p50_s", [0.012, 0.034], "ms", 1e3),
        ("wall_s", [3.0, 12.0, 900.0], "s", 1.0),
        ("peak_memory_bytes", [0.0, 3e9], "GB", 1e-9),
        ("energy_j", [np.nan], "J", 1.0),
        ("throughput_tok_s", [5e4], "tokens/s", 1.0),
    ],
)
def test_a_column_has_one_prefix_that_makes_its_figures_short(measure, values, unit, factor):
    found, words = explorer.column_unit(MEASURES[measure], pd.Series(values))
    assert (words, found) == (unit, pytest.approx(factor))


def test_the_table_says_compute_in_units_that_can_be_read(store):
    shown, view = selected(store)
    table, _ = explorer.columns_of(frontier.within(shown, view), shown, store.runs.hardware())
    column = next(c for c in table if c.startswith("Compute per problem"))
    assert column.endswith("FLOP)")
    assert column != "Compute per problem (FLOP)"
    assert table[column].between(0.01, 10_000).all()


def test_the_export_names_its_columns_and_disarms_formulas(store):
    shown, view = selected(store, x="wall_s")
    found = export.table(frontier.within(shown, view), view, store.runs.hardware())
    assert {"wall_s", "accuracy", "run_id", "hardware", "frontier"} <= set(found.columns)
    found["model"] = '=HYPERLINK("http://example.org")'
    lines = export.csv(found).splitlines()
    assert len(lines) == len(found) + 1
    assert ",\"'=HYPERLINK(" in lines[1]
    data = json.loads(export.as_json(found, view))
    assert data["view"] == {"x": ["wall_s"], "y": ["accuracy"]}
    assert len(data["runs"]) == len(found)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))


def test_the_first_visit_offers_one_button_that_queues_the_tour(empty, monkeypatch):
    monkeypatch.setattr(tour, "unavailable", lambda: None)
    at = visit()
    assert "Nothing has been measured here yet" in words(at)
    assert [b.label for b in at.button] == [f"Take the tour: {len(tour_specs())} runs, about a minute"]
    at.button[0].click().run()
    with open_store() as store:
        jobs = store.jobs.list()
    assert [j.spec for j in reversed(jobs)] == tour_specs()
    assert {j.state for j in jobs} == {JobState.QUEUED}


def test_one_tour_at_a_time_and_another_after_it_was_cancelled(empty, monkeypatch):
    monkeypatch.setattr(tour, "unavailable", lambda: None)
    mine, theirs = visit(), visit()
    for at in (mine, theirs):
        at.button[0].click().run()
        assert "The tour is on its way, 6 of 6 runs to go" in words(at)
    with open_store() as store:
        jobs = store.jobs.list()
        assert len(jobs) == 6
        for job in jobs:
            store.jobs.request_cancel(job.job_id)
    button(mine.run(), "Take the tour: 6 runs, about a minute").click().run()
    with open_store() as store:
        assert len(store.jobs.list([JobState.QUEUED])) == 6


def test_the_tour_says_why_it_cannot_run(empty, monkeypatch):
    monkeypatch.setattr(tour, "list_models", list)
    at = visit()
    assert at.button[0].disabled
    assert "The tour needs lab-xs, lab-s, lab-m" in words(at)


def test_a_landing_result_is_a_new_state_of_the_page(empty):
    spec = RunSpec("lab-s", strategy=Majority(n=8), task=TaskSpec(limit=100))
    with open_store() as store:
        store.runs.save(spec, result(spec, random.Random(0), OTHER))
    at = visit()
    assert "The only run here is on the frontier" in words(at)
    assert "1 run. Drag a box" in words(at)
    with open_store() as store:
        store.runs.save(spec, result(spec, random.Random(1), OTHER))
    assert " of 2 runs" in words(at.run())


def test_labels_are_short():
    assert frontier.label("/models/my-model/", "majority:n=8,temperature=0.8") == "my-model · majority n=8"
    assert len(frontier.label("x" * 400, "greedy")) < 40
    assert np.isfinite(frontier.MAX_DRAWN)
    assert MEASURES["accuracy"].label == "Accuracy"
