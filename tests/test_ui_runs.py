import dataclasses
import random
import time
from types import SimpleNamespace

import pytest
from apptest import button, visit, words
from hypothesis import given
from hypothesis import strategies as st
from synthetic import answer, fill, result

from engine.decoding import votes as engine_votes
from spec.choices import Checker, JobState
from spec.results import Candidate, Progress
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import BestOfN, Ensemble, Majority, Mcts, Rebase, Weighted
from store import open_store
from tasks.checkers import RULES
from tasks.registry import load_task
from ui import components, problems, run_table, times, votes
from ui.votes import Vote


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def ids(home):
    with open_store() as store:
        return fill(store, answers=30)


def failed_run(message="The engine ended unexpectedly.", detail="Segmentation fault\n<script>alert(1)</script>"):
    with open_store() as store:
        store.workers.register("w")
        job = store.jobs.enqueue(RunSpec("shape:pythia-410m", task=TaskSpec(limit=10)))
        lease = store.jobs.claim("w")
        rng = random.Random(0)
        store.answers.add(lease, [answer(i, rng, 2) for i in range(3)], Progress(3, 10, 1, 3, 9, 1.0, 9.0))
        store.jobs.fail(lease, message, detail, retry=False)
    return job.run_id


def test_an_empty_list_leads_to_the_form(home):
    at = visit("runs")
    assert "Every run will be listed here" in words(at)
    assert at.get("page_link")[0].proto.label == "Start a run"


def test_the_table_searches_and_filters(ids):
    failed = failed_run()
    at = visit("runs")
    assert len(at.dataframe[0].value) == len(ids) + 1
    assert at.dataframe[0].value["Message"][0] == "The engine ended unexpectedly."
    assert "None" not in set(at.dataframe[0].value["Message"].map(str))
    at.pills(key="runs_state").set_value("done").run()
    assert "Message" not in at.dataframe[0].value, "nothing to say"
    at.pills(key="runs_state").set_value(None).run()
    assert list(visit("runs", runs_search="lab-m gsm8k").dataframe[0].value["Model"]) == ["lab-m"]
    at.text_input(key="runs_search").set_value("no such words").run()
    assert "No run matches" in words(at)
    at.text_input(key="runs_search").set_value("")
    at.pills(key="runs_state").set_value("failed").run()
    assert list(at.dataframe[0].value["Run"]) == [failed]


def test_a_run_page_shows_figures_formulas_and_reasons(ids):
    at = visit("runs", run=ids[8])
    assert not at.exception
    labels = {m.label: m for m in at.metric}
    assert " % (" in labels["Accuracy"].value
    assert "problems answered" in labels["Accuracy"].help
    html = "".join(h.proto.body for h in at.get("html"))
    assert "no energy counter on this machine" in html
    assert "n/a" in html
    assert len(at.get("bidi_component")) == 2
    assert "python cli.py run --model lab-xs" in "".join(c.value for c in at.code)


def test_every_problem_can_be_paged_and_filtered(ids):
    at = visit("runs", run=ids[8])
    assert len(at.dataframe[0].value) == problems.PAGE
    at.pills(key=f"only_{ids[8]}").set_value("wrong").run()
    assert set(at.dataframe[0].value[""]) == {"✗"}


NUMBERS = TaskSpec("gsm8k")


def test_votes_are_counted_most_frequent_first():
    one = answer(3, random.Random(1), 16)
    counted = votes.votes(one, Majority(), NUMBERS)
    assert [v.given for v in counted] == sorted((v.given for v in counted), reverse=True)
    assert sum(v.given for v in counted) == 16
    assert counted[0].answer == one.answer


def scored(*pairs):
    candidates = tuple(Candidate("", a, a == "1", 1, "stop", s) for a, s in pairs)
    return dataclasses.replace(answer(0, random.Random(0), 1), candidates=candidates)


def test_what_decides_is_shown_not_only_how_often():
    one = scored(("7", 0.2), ("7", 0.2), ("7", 0.1), ("1", 0.9), (None, 0.9), ("1", None))

    def weighed(strategy):
        return [(v.answer, v.weight) for v in votes.votes(one, strategy, NUMBERS)]

    assert weighed(Majority()) == weighed(Rebase(vote="majority")) == [("7", 3), ("1", 2)]
    assert weighed(Weighted()) == weighed(Rebase()) == [("1", 0.9), ("7", pytest.approx(0.5))]
    assert weighed(BestOfN()) == weighed(Mcts(vote="best")) == [("1", 0.9), ("7", 0.2)]
    assert problems.frame([one], Weighted(), NUMBERS)["Votes by score"][0] == [0.9, pytest.approx(0.5)]
    assert "Votes" not in problems.frame([one], BestOfN(), NUMBERS)
    assert problems.frame([one], Majority(), NUMBERS)["Votes"][0] == [3, 2]


def test_in_an_ensemble_each_models_vote_has_its_weight():
    pairs = (("7", None), ("1", "big"), ("7", "small"), ("1", None))
    candidates = tuple(Candidate("", a, a == "1", 1, "stop", model=m) for a, m in pairs)
    one = dataclasses.replace(answer(0, random.Random(0), 1), candidates=candidates)
    strategy = Ensemble(others="big+small", weight="1+5+0.5", n=2)
    assert [(v.answer, v.given, v.weight) for v in votes.votes(one, strategy, NUMBERS)] == [("1", 2, 6), ("7", 2, 1.5)]


def test_answers_that_the_task_takes_for_one_vote_together():
    one = scored(("18", 0.1), ("18.00", 0.6), ("18.00", 0.2), ("20", 0.3), ("20", None))
    one = dataclasses.replace(one, chosen=1, answer="18.00")
    assert votes.votes(one, Majority(), NUMBERS) == [Vote("18.00", False, 3, 3), Vote("20", False, 2, 2)]
    assert [v.weight for v in votes.votes(one, Weighted(), NUMBERS)] == [pytest.approx(0.9), 0.3]
    apart = votes.votes(one, Majority(), TaskSpec("gsm8k", checker="exact"))
    assert [(v.answer, v.given) for v in apart] == [("18.00", 2), ("20", 2), ("18", 1)]


@given(
    st.lists(
        st.none() | st.sampled_from(["18", "18.0", " 18", "1,8", "20", "2/1", "2", "a cat", "a cat."]), max_size=12
    )
)
def test_votes_are_counted_as_the_engine_counts_them(given):
    for checker in (None, *Checker):
        task = TaskSpec("jsonl:x", checker=checker)
        one = scored(*((text, 0.5) for text in given))
        rule = RULES[checker or Checker.MATH]
        assert votes.classes(one, task) == engine_votes.classes(given, rule.equivalent)


def test_every_task_has_the_rule_it_is_loaded_with(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    for name in ("lab-words", f"gsm8k:{path}", f"jsonl:{path}"):
        task = TaskSpec(name, limit=1)
        loaded = load_task(task)
        for a, b in (("18", "18.00"), ("18", "18"), ("a cat", "a cat."), ("3/4", "0.75")):
            assert votes.same(task.kind, None, a, b) == loaded.equivalent(a, b), (name, a, b)


def test_the_caption_counts_what_matches(ids, monkeypatch):
    monkeypatch.setattr(run_table, "LIMIT", 5)
    failed = failed_run()
    assert f"The newest 5 of {len(ids) + 1} runs." in words(visit("runs"))
    assert "The newest 5 runs that match." in words(visit("runs", runs_search="lab-m"))
    at = visit("runs", session={"runs_state": "failed"})
    assert "1 run. Click a row" in words(at)
    assert list(at.dataframe[0].value["Run"]) == [failed]
    assert f"The newest 5 of {len(ids)} runs." in words(visit("runs", session={"runs_state": "done"}))


ENERGIES = ("energy_j", "j_per_token", "j_per_problem", "j_per_correct")


@pytest.mark.parametrize("valid", [True, False, None])
def test_every_figure_of_an_invalid_energy_is_marked(valid):
    found = result(RunSpec("lab-s"), random.Random(0))
    measures = dict.fromkeys((*ENERGIES, "idle_w"), 5.0) | {"wall_s": 1.0, "j_per_correct": None}
    made = dataclasses.replace(found, measures=measures, energy_valid=valid, energy_reason="too short")
    html = components.measure_rows("", [*ENERGIES, "idle_w", "wall_s"], made)
    assert html.count("(not valid: too short)") == (3 if valid is False else 0)


def test_delete_and_undo(ids):
    at = visit("runs", run=ids[0])
    button(at, "Delete").click().run()
    with open_store() as store:
        assert store.runs.get(ids[0]).deleted_at is not None
    assert f"Run {ids[0]} is deleted." in words(at)
    button(at, "Undo").click().run()
    with open_store() as store:
        assert store.runs.get(ids[0]).deleted_at is None


def test_the_way_back_goes_when_there_is_nothing_to_go_back_to(ids):
    at = visit("runs", run=ids[0])
    button(at, "Delete").click().run()
    with open_store() as store:
        store.runs.restore(ids[0])
    assert "is deleted" not in words(at.run())
    with open_store() as store:
        store.runs.delete(ids[0])
        store.runs.purge()
    session = {"undo_delete": (ids[0], time.monotonic())}
    assert "is deleted" not in words(visit("runs", session=session))
    with open_store() as store:
        store.runs.delete(ids[1])
    session = {"undo_delete": (ids[1], time.monotonic() - 3600)}
    assert "is deleted" not in words(visit("runs", session=session))


@pytest.mark.slow
@pytest.mark.parametrize(("place", "hour"), [("Asia/Tokyo", 9), ("Etc/UTC", 0), ("America/St_Johns", 20.5)])
def test_times_are_those_of_the_reader(ids, place, hour):
    with open_store() as store:
        for table in ("runs", "specs"):
            store.connection.execute(f"UPDATE {table} SET created = 1735689600")  # 2025-01-01, midnight UTC
    at = visit("runs")
    at.context["timezone"] = place
    at.run()
    made = at.dataframe[0].value["Made"]
    assert {m.hour + m.minute / 60 for m in made} == {hour}
    at = visit()
    at.context["timezone"] = place
    at.run()
    assert {m.hour + m.minute / 60 for m in at.dataframe[0].value["Measured"]} == {hour}
    at = visit("runs", run=ids[0])
    at.context["timezone"] = place
    assert f" {int(hour):02}:{round(hour % 1 * 60):02}" in words(at.run())


@pytest.mark.parametrize("place", ["No/Where", "../etc/passwd", "x" * 5000])
def test_an_unknown_time_zone_is_that_of_the_machine(home, place, monkeypatch):
    monkeypatch.setattr(times.st, "context", SimpleNamespace(timezone=place))
    assert times.text(1735689600.0) == time.strftime("%Y-%m-%d %H:%M", time.localtime(1735689600))


def test_a_deleted_run_can_be_restored_from_its_page(ids):
    with open_store() as store:
        store.runs.delete(ids[0])
    at = visit("runs", run=ids[0])
    button(at, "Restore").click().run()
    with open_store() as store:
        assert store.runs.get(ids[0]).deleted_at is None


def test_a_failed_run_says_why_and_goes_on_where_it_stopped(home):
    run_id = failed_run()
    at = visit("runs", run=run_id)
    assert "The engine ended unexpectedly." in words(at)
    assert "Segmentation fault" in "".join(c.value for c in at.code)
    assert "3 of 10 problems were answered" in words(at)
    button(at, "Go on after problem 3").click().run()
    with open_store() as store:
        job = store.jobs.of_run(run_id)
        assert job.state is JobState.QUEUED
        assert store.answers.count(run_id) == 3


def test_names_with_markup_stay_text(home):
    spec = RunSpec("<script>alert(1)</script>", task=TaskSpec(limit=3))
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0), n=8))
    at = visit("runs", run=run_id)
    assert not at.exception
    assert "<script>" not in "".join(h.proto.body for h in at.get("html"))
    assert at.title[0].value.startswith("\\<script\\>")


@pytest.mark.parametrize("run_id", ["ffffffffffff", "x", "../../etc/passwd", "<script>", "a" * 5000])
def test_an_unknown_run_is_a_sentence(home, run_id):
    at = visit("runs", run=run_id)
    assert not at.exception
    assert "There is no run" in words(at)


def test_a_very_long_name_is_kept_whole_and_shown_short(home):
    spec = RunSpec("x" * 3000)
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0), n=8))
    assert not visit("runs", run=run_id).exception
    assert not visit(run=run_id).exception
