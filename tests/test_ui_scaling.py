"""The page Scaling: its link, what it draws, what it leaves out and says so."""

import json
import random
from dataclasses import replace

import pytest
from apptest import button, visit, words
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import HARDWARE, OTHER, answered, fill_many, fill_scaling, result

from analysis.lines import Cost, Line, Measured
from analysis.published import POINTS
from analysis.scaling import Point
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority, parse_strategy
from store import Store, open_store
from ui import data, scaling_chart, scaling_lines, scaling_page
from ui.scaling_chart import card, look, scaling_figure
from ui.scaling_view import ScalingView

PROBLEMS = 24


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    home = tmp_path_factory.mktemp("scaling")
    with open_store(home / "isoquant.db") as store:
        ids = fill_scaling(store, models=("lab-s", "lab-m"), problems=PROBLEMS)
    return home, ids


@pytest.fixture
def home(filled, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(filled[0]))
    return filled[0]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(home):
    with open_store() as opened:
        yield opened


def shown(store, **changes):
    view = ScalingView(**changes)
    selected, figure = data.scaling(store, view)
    return selected, json.loads(figure)


def by_name(selected):
    return {line.name: line for line in selected.lines}


NAMES = st.text(min_size=1, max_size=40).filter(str.strip)
SOME = st.lists(NAMES, max_size=3, unique=True).map(tuple)


@settings(max_examples=40)
@given(
    st.builds(
        ScalingView,
        x=st.sampled_from(Cost),
        task=st.none() | NAMES,
        hardware=st.none() | NAMES,
        models=SOME,
        strategies=SOME,
        precisions=SOME,
        paper=st.booleans(),
        limit=st.booleans(),
        run=st.none() | st.from_regex(r"\A[0-9a-f]{12}\Z"),
    )
)
def test_a_link_restores_the_view(view):
    assert ScalingView.from_params(view.to_params()) == (view, [])


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["x", "task", "hw", "run", "paper", "limit"]), st.lists(st.text(max_size=20))))
def test_any_link_gives_a_view(params):
    view, complaints = ScalingView.from_params(params)
    assert ScalingView.from_params(view.to_params()) == (view, [])
    assert all(isinstance(c, str) and len(c) < 200 for c in complaints)


def test_votes_are_curves_and_searches_are_points(store):
    lines = by_name(shown(store)[0])
    assert [p.n for p in lines["lab-s · majority"].points] == [1, 2, 4, 8, 16, 32, 64]
    assert [(p.n, p.is_part) for p in lines["lab-m · rebase"].points] == [(4, False), (16, False), (64, False)]
    assert len(lines["lab-s · greedy"].points) == 1


@pytest.mark.parametrize("cost", [Cost.TOKENS, Cost.FLOPS_GENERATED, Cost.FLOPS_NO_REUSE])
def test_each_accounting_has_its_own_curve(store, cost):
    line = by_name(shown(store, x=cost)[0])["lab-s · majority"]
    assert [p.n for p in line.points][-1] == 64
    assert line.points[-1].x == pytest.approx(64 * line.points[0].x, rel=1e-6)


def test_a_shared_prompt_makes_many_samples_cheaper_than_many_runs(store):
    line = by_name(shown(store, x=Cost.FLOPS_TOTAL)[0])["lab-s · majority"]
    assert line.points[-1].x < 40 * line.points[0].x


def test_seconds_are_only_those_of_whole_runs(store):
    selected, _ = shown(store, x=Cost.SECONDS)
    assert all(not p.is_part for line in selected.lines for p in line.points)
    assert shown(store, x=Cost.JOULES)[0].lines == ()


def test_bands_and_keys_are_there_for_every_line(store):
    selected, figure = shown(store)
    bands = [t for t in figure["data"] if t.get("fill") == "toself"]
    assert len(bands) == sum(len(line.points) > 1 for line in selected.lines)
    keys = {t["name"] for t in figure["data"] if "name" in t}
    assert {"lab-s", "lab-m", "majority", "rebase", "small: part of a run"} <= keys
    assert "pass@k" not in keys
    assert figure["layout"]["xaxis"]["type"] == "log"


def test_colour_tells_apart_what_there_is_more_of(store):
    lines = shown(store)[0].lines
    marks = look(lines)
    assert not marks.by_model
    assert len({marks.line(line) for line in lines}) == len(lines), "no two lines look alike"
    only = [line for line in lines if line.strategy == "majority"]
    assert look(only).by_model
    assert {m.dash["lab-s"] for m in (look(only),)} == {"solid"}


def test_too_many_lines_have_no_bands(store, monkeypatch):
    lines = shown(store)[0].lines
    monkeypatch.setattr(scaling_chart, "BANDS", 3)
    figure = json.loads(scaling_figure(lines, Cost.TOKENS, {}, False))
    assert not any(t.get("fill") for t in figure["data"])


def test_the_limit_lies_above_the_vote(store):
    _, figure = shown(store, limit=True, models=("lab-s",), strategies=("majority",))
    (limit,) = (t for t in figure["data"] if t.get("line", {}).get("dash") == "dot" and t.get("name") != "pass@k")
    (line,) = (t for t in figure["data"] if t["mode"] == "lines+markers" and t.get("customdata"))
    assert all(a >= b - 1e-9 for a, b in zip(limit["y"], line["y"], strict=True))
    assert "pass@64" in limit["hovertext"][-1]


def test_the_papers_points_are_marked_as_others_and_only_on_their_own_axis(store):
    _, figure = shown(store, x=Cost.FLOPS_GENERATED, paper=True)
    texts = [text for t in figure["data"] for text in t.get("hovertext", []) if "MATH500" in text]
    assert len(texts) == len(POINTS)
    assert all("arXiv 2408.00724" in text and "reward model not counted" in text for text in texts)
    _, without = shown(store, x=Cost.FLOPS_TOTAL, paper=True)
    assert "MATH500" not in json.dumps(without)


def test_cards_say_what_was_measured_and_what_was_reckoned(store, filled):
    line = by_name(shown(store)[0])["lab-m · majority"]
    part, whole = (card(line, p, Cost.FLOPS_TOTAL) for p in (line.points[2], line.points[-1]))
    assert "majority, n = 4" in part
    assert "parts of the 64 samples of one run" in part
    for piece in ("majority:n=64", "a run of its own", "Accuracy: ", " % (", "FLOP", f"n = {PROBLEMS} problems"):
        assert piece in whole
    assert line.points[-1].run_id in filled[1]


def test_names_in_a_chart_are_not_markup(empty):
    spec = RunSpec("<b>evil</b>", strategy=Majority(n=4), task=TaskSpec(limit=9))
    with open_store() as store:
        store.runs.save(spec, result(spec, random.Random(0)))
        figure = data.scaling(store, ScalingView())[1]
    assert "<b>evil" not in figure
    assert "&lt;b&gt;evil" in figure


def test_lines_beyond_the_cap_are_counted_votes_with_answers_come_first(store, monkeypatch):
    monkeypatch.setattr(scaling_lines, "MAX_LINES", 3)
    frame, offered = scaling_lines.load(store)
    selected = scaling_lines.select(frame, ScalingView(), offered)
    assert len(selected.lines) == 3
    assert selected.left_out == 7
    assert all(line.source for line in selected.lines)


def test_points_that_stand_on_different_numbers_of_problems_are_said_to(store):
    found, _ = shown(store)
    first, *others = found.lines
    few = replace(first, points=(*first.points[:-1], replace(first.points[-1], problems=7)))
    assert "to 24 problems" not in scaling_page.sentence(found, ScalingView())
    assert "7 to 24 problems" in scaling_page.sentence(replace(found, lines=(few, *others)), ScalingView())


def test_too_many_answers_leave_a_vote_without_its_curve_and_say_so(store, monkeypatch):
    monkeypatch.setattr(scaling_lines, "MAX_ANSWERS", 2 * PROBLEMS)
    frame, offered = scaling_lines.load(store)
    selected = scaling_lines.select(frame, ScalingView(), offered)
    wanted = scaling_lines.wants_answers(selected, Cost.TOKENS)
    assert len(wanted) == 2
    grown = {s.source.run_id: scaling_lines.grow(store, s.source.run_id, s.strategy) for s in wanted}
    found, _ = scaling_lines.with_points(selected, Cost.TOKENS, grown)
    assert found.unread == 4
    assert sum(len(line.points) == 7 for line in found.lines) == 2
    assert "4 votes are drawn without the curve" in scaling_page.sentence(found, ScalingView())


def test_only_the_answers_of_drawn_votes_are_read(home, monkeypatch):
    seen = []
    real = scaling_lines.read
    monkeypatch.setattr(scaling_lines, "read", lambda store, run_id: seen.append(run_id) or real(store, run_id))
    data._grown.clear()
    data._scaling.clear()
    with open_store() as store:
        shown(store, models=("lab-m",), strategies=("majority", "greedy", "rebase"))
        assert len(seen) == 1
        shown(store, models=("lab-m",), strategies=("majority",), limit=True)
        shown(store, models=("lab-m",), strategies=("majority",), x=Cost.TOKENS)
        assert len(seen) == 1, "answers are read once"


def test_a_hundred_configurations_of_one_are_one_point(empty):
    with open_store() as store:
        fill_many(store, 300)
        frame, offered = scaling_lines.load(store)
        selected = scaling_lines.select(frame, ScalingView(), offered)
        assert selected.runs > 280
        assert sum(len(line.runs) for line in selected.lines) <= 24 * 5
        assert not selected.mixed_hardware


def test_the_same_model_prompted_or_run_in_another_way_is_another_line(empty):
    """A few-shot run has other answers than a zero-shot one, and a back end takes its own time."""
    with open_store() as store:
        for way in ({}, {"prompt_style": "few-shot"}, {"backend": "transformers"}, {"kv_cache": "int8"}):
            runtime = Runtime(**{k: v for k, v in way.items() if k == "backend"})
            precision = Precision(**{k: v for k, v in way.items() if k == "kv_cache"})
            task = TaskSpec(limit=10, **{k: v for k, v in way.items() if k == "prompt_style"})
            spec = RunSpec("lab-s", precision, runtime, Greedy(), task)
            store.runs.save(spec, result(spec, random.Random(0), n=10))
        names = {line.variant for line in shown(store)[0].lines}
    assert names == {
        "isoquant, zero-shot, auto cache",
        "isoquant, few-shot, auto cache",
        "transformers, zero-shot, auto cache",
        "isoquant, zero-shot, int8 cache",
    }


def test_a_strategy_that_nobody_knows_any_more_is_left_out(store):
    frame, _ = scaling_lines.load(store)
    row = frame.iloc[0].to_dict()
    assert scaling_lines.measured(row) is not None
    assert scaling_lines.measured(row | {"strategy_text": "oracle:n=3"}) is None


# --- the page


def test_the_page_shows_lines_its_permalink_and_a_table(home):
    at = visit("scaling", model="lab-s")
    assert not at.exception
    assert "lab-s · best-of-n gains most: from" in words(at)
    assert "Not all were asked the same" not in words(at)
    assert at.query_params == {
        "x": "flops_total",
        "task": "lab-words",
        "hw": HARDWARE[0],
        "model": "lab-s",
    } or at.query_params == {"x": "flops_total", "model": "lab-s"} | {"task": "lab-words", "hw": HARDWARE[0]}
    table = at.dataframe[0].value
    assert set(table["Model"]) == {"lab-s"}
    assert set(table["Comes from"]) == {"parts of a run", "a run of its own"}
    assert at.toggle(key="sc_paper").disabled
    at.selectbox(key="sc_x").set_value("flops_generated").run()
    at.toggle(key="sc_paper").set_value(True).run()
    assert at.query_params["x"] == "flops_generated"
    assert at.query_params["paper"] == "1"
    assert "other models on MATH500" in words(at)


def test_a_bad_link_is_named_and_shows_the_usual_view(home):
    at = visit("scaling", x="nonsense", run="zzz")
    assert "'nonsense', which does not exist" in words(at)
    assert "'zzz' is no run" in words(at)
    assert at.selectbox(key="sc_x").value == "flops_total"


def test_a_clicked_run_leads_on(home, filled):
    at = visit("scaling", run=filled[1][0])
    assert "lab-s | bf16 | majority:n=64" in words(at)
    button(at, "Close").click().run()
    assert "run" not in at.query_params
    assert "There is no run" in words(visit("scaling", run="f" * 12))


def test_a_filter_that_leaves_nothing_offers_a_way_back(home):
    at = visit("scaling", model="no-such-model")
    assert "No run here has an accuracy" in words(at)
    button(at, "Show everything").click().run()
    assert at.get("bidi_component")
    assert "No run here" not in words(at)


def test_before_the_first_run_the_page_says_what_will_be_here(empty):
    at = visit("scaling")
    assert not at.exception
    assert "becomes a **line**" in words(at)
    assert not at.dataframe


def test_runs_of_other_hardware_share_the_chart_only_when_asked_and_then_it_says_so(empty):
    with open_store() as store:
        for machine in (HARDWARE, OTHER):
            spec = RunSpec("lab-s", strategy=Majority(n=4), task=TaskSpec(limit=PROBLEMS))
            store.runs.save(spec, result(spec, random.Random(0), machine))
    assert "different hardware" not in words(visit("scaling"))
    assert "different hardware" in words(visit("scaling", hw="*"))


def test_a_run_without_answers_is_a_point_of_its_own(empty):
    with open_store() as store:
        for n in (4, 16):
            spec = RunSpec("lab-s", strategy=Majority(n=n), task=TaskSpec(limit=PROBLEMS))
            store.runs.save(spec, result(spec, random.Random(n)))
        (line,) = shown(store)[0].lines
    assert [(p.n, p.is_part) for p in line.points] == [(4, False), (16, False)]


def test_energies_of_different_sources_are_said(empty):
    with open_store() as store:
        for method, model in (("rapl", "lab-s"), ("nvml_counter", "lab-m")):
            spec = RunSpec(model, task=TaskSpec(limit=9), strategy=Greedy())
            found = result(spec, random.Random(0))
            found = replace(
                found, measures=found.measures | {"j_per_problem": 2.0}, energy_method=method, energy_valid=True
            )
            store.runs.save(spec, replace(found, energy_reason=None))
    at = visit("scaling", x="joules")
    assert "come from different sources" in words(at)


def test_a_new_run_appears_without_reading_the_old_answers_again(empty):
    with open_store() as store:
        spec = RunSpec("lab-s", strategy=Majority(n=8), task=TaskSpec(limit=10))
        store.answers.add(store.runs.save(spec, result(spec, random.Random(0))), answered(Majority(n=8), 10))
        assert len(shown(store)[0].lines) == 1
        other = RunSpec("lab-m", strategy=Greedy(), task=TaskSpec(limit=10))
        store.runs.save(other, result(other, random.Random(0)))
        assert len(shown(store)[0].lines) == 2
        assert isinstance(store, Store)


def test_the_table_names_what_each_point_spends():
    point = Point(None, 1.0, 0.5, 0.4, 0.6, 10, "r")
    strategy = parse_strategy("early-exit:threshold=0.99")
    run = Measured("r", "lab-s", "fp32", strategy, 0.0, 10, 0.5, 0.4, 0.6, {})
    exits = Line("lab-s", "early-exit", "policy=fixed", (run,), None, (point,))
    vote = Line("lab-s", "majority", "", (), None, (replace(point, n=8),))
    alone = Line("lab-s", "greedy", "", (), None, (point,))
    assert scaling_page.frame((exits, vote, alone))["Budget"].tolist() == ["threshold 0.99", "n 8", ""]
