"""The page Tree: where steps lie, what is said of them, and a second run beside the first."""

import dataclasses
import json
import random
from urllib.parse import parse_qsl

import pytest
from apptest import visit, words
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import answer, answered, fill, fill_scaling, result, searched

from spec.choices import Fate
from spec.results import Candidate, Node
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import Majority, Rebase, Weighted
from store import open_store
from ui import link, tree_chart, tree_controls, tree_page
from ui.tree import CLOSE, DROPPED, levels, tree
from ui.tree_chart import ROOT, card, height, tree_figure
from ui.tree_view import TreeView

PROBLEMS = 6


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    home = tmp_path_factory.mktemp("tree")
    with open_store(home / "isoquant.db") as store:
        ids = fill_scaling(store, models=("lab-s",), problems=PROBLEMS)
    return home, ids


@pytest.fixture
def home(filled, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(filled[0]))
    return filled[0]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    return tmp_path


MAJORITY, REBASE_4, REBASE_16, REBASE_64 = 0, 4, 5, 6


def small(**more):
    """Two first steps, of which the second goes on and ends twice; the first is dropped."""
    nodes = (
        Node(None, 1, "a\n", 10, 0.1, 0.2, "pruned", "0 of 3 continuations"),
        Node(None, 1, "b\n", 20, 0.2, 0.9, "expanded", "3 of 3 continuations"),
        Node(1, 2, "c\n#### 1", 30, 0.4, 0.4, "finished"),
        Node(1, 2, "d\n#### 2", 5, 0.3, 0.8, "cut"),
    )
    candidates = (
        Candidate("b\nc\n#### 1", "1", True, 50, "stop", 0.4, node=2),
        Candidate("b\nd\n#### 2", "2", False, 25, "length", 0.8, node=3),
    )
    values = {"candidates": candidates, "chosen": 1, "answer": "2", "correct": False, "tree": nodes}
    return dataclasses.replace(answer(0, random.Random(0), 1), **(values | more))


@st.composite
def parents(draw):
    """Any forest, parents first."""
    count = draw(st.integers(1, 60))
    return [draw(st.none() | st.integers(0, i - 1)) if i else None for i in range(count)]


@settings(max_examples=60)
@given(parents(), st.data())
def test_steps_lie_apart_and_parents_amid_their_children(forest, data):
    fates = [data.draw(st.sampled_from(["finished", "pruned"])) for _ in forest]
    nodes = tuple(Node(p, 1, "", 1, 0.0, fate=f) for p, f in zip(forest, fates, strict=True))
    found = tree(small(tree=nodes, candidates=(), chosen=None))
    assert len({(s.depth, s.y) for s in found.steps}) == len(forest), "no two in one place"
    leaves = [s for s in found.steps if s.index not in forest]
    assert found.width == pytest.approx(sum(CLOSE if s.fate in DROPPED else 1.0 for s in leaves))
    for s in found.steps:
        assert 0 <= s.y <= found.width
        below = [c.y for c in found.steps if c.parent == s.index]
        if below:
            assert s.y == pytest.approx((min(below) + max(below)) / 2)
        assert s.depth == (1 if s.parent is None else found.steps[s.parent].depth + 1)
    assert sum(v.steps for v in levels(found)) == len(forest)


def test_a_chain_of_a_thousand_steps_is_no_problem():
    nodes = tuple(Node(i - 1 if i else None, i + 1, "x", 1, 0.0) for i in range(1500))
    found = tree(small(tree=nodes, candidates=(), chosen=None))
    assert (found.depth, found.width) == (1500, 1)
    assert len(found.path(1499)) == 1500


def test_the_way_to_the_answer_is_marked_and_comes_first():
    found = tree(small())
    assert [s.index for s in found.steps if s.is_chosen] == [1, 3]
    assert found.steps[3].y < found.steps[2].y < found.steps[0].y
    assert [s.candidate for s in found.steps] == [None, None, 0, 1]
    assert [s.text for s in found.path(3)] == ["b\n", "d\n#### 2"]
    other = tree(small(chosen=0)).steps
    assert other[2].y < other[3].y, "also where another step has the better score"


def test_the_sums_of_each_depth():
    first, second = levels(tree(small()))
    assert (first.steps, first.continued, first.dropped, first.tokens, first.slowest_s) == (2, 1, 1, 30, 0.2)
    assert (second.finished, second.cut, second.tokens) == (1, 1, 35)
    assert second.score == pytest.approx(0.6)
    table = tree_page.frame([first, second])
    assert list(table["Dropped"]) == [1, 0]
    none = tree_page.frame([dataclasses.replace(first, dropped=0, score=None, slowest_s=None)])
    assert {"Dropped", "Cut", "Score", "Slowest"}.isdisjoint(none)


def test_a_vote_shows_equal_answers_side_by_side_the_given_one_first():
    texts = ["7", "1", None, "7", "9", "7", "1"]
    made = tuple(Candidate(f"#{i}", t, t and t == "7", 5, "stop") for i, t in enumerate(texts))
    one = small(tree=(), candidates=made, chosen=0, answer="7", correct=True)
    found = tree(one)
    assert not found.has_steps
    in_order = [one.candidates[s.index].answer for s in sorted(found.steps, key=lambda s: s.y)]
    assert in_order == ["7", "7", "7", "1", "1", "9", None]
    figure = json.loads(tree_figure(found, one, None, height([found])))
    labels = next(t for t in figure["data"] if t["mode"] == "text")["text"]
    assert labels == ["<b>7 ✓</b>  × 3", "1 ✗  × 2", "9 ✗", "no answer"]


@pytest.mark.parametrize("change", [{"chosen": None}, {"candidates": (), "chosen": None}, {"tree": ()}])
def test_what_is_missing_is_not_drawn(change):
    one = small(**change)
    found = tree(one)
    json.loads(tree_figure(found, one, 99, height([found])))
    assert any(s.is_chosen for s in found.steps) == ("tree" in change)


def test_a_tree_that_makes_no_sense_is_still_drawn():
    odd = (Node(5, 9, "x", 1, -1.0, fate="melted"), Node(-3, 1, "y", 0, 0.0), Node(2, 1, "z", 0, 0.0))
    found = tree(small(tree=odd, candidates=(), chosen=None))
    assert [s.parent for s in found.steps] == [None, None, None]
    assert [s.fate for s in found.steps] == [Fate.EXPANDED] * 3
    assert {s.seconds for s in found.steps} == {None}


def traces(one, selected=None):
    found = tree(one)
    return json.loads(tree_figure(found, one, selected, height([found])))


def test_colour_is_the_score_size_the_tokens_and_dropped_steps_are_grey():
    figure = traces(small())
    steps = {p: (t, i) for t in figure["data"] for i, p in enumerate(t.get("customdata", []))}
    assert set(steps) == {ROOT, "0", "1", "2", "3"}
    colour = {k: t["marker"].get("color") for k, (t, _) in steps.items()}
    assert colour["0"] == "@pale"
    assert colour["2"] == [0.4]
    sizes = {k: t["marker"]["size"][i] for k, (t, i) in steps.items() if k != ROOT}
    assert sizes["2"] > sizes["1"] > sizes["3"] > sizes["0"]
    assert figure["layout"]["coloraxis"]["cmax"] == 1.0
    assert figure["layout"]["coloraxis"]["colorbar"]["title"]["side"] == "top"
    assert figure["layout"]["margin"]["r"] == tree_chart.SCALE_PX, "or the buttons of the chart cover the scale"
    thick = next(t for t in figure["data"] if t.get("line", {}).get("width") == 4.0 and t["x"][0] is not None)
    assert len([x for x in thick["x"] if x is None]) == 2, "two edges lead to the answer"
    assert (
        "coloraxis" not in traces(small(tree=tuple(dataclasses.replace(n, score=None) for n in small().tree)))["layout"]
    )


def test_the_step_that_is_read_has_a_ring():
    def rings(figure):
        return sum(
            t.get("marker", {}).get("symbol") == "circle-open" and t["hoverinfo"] == "skip" for t in figure["data"]
        )

    assert rings(traces(small(), 2)) == rings(traces(small())) + 1


def test_cards_say_why_a_step_was_dropped_and_what_it_took():
    one = small()
    steps = tree(one).steps
    dropped, cut = card(steps[0], one, True), card(steps[3], one, True)
    for piece in ("Step 1", Fate.PRUNED.words, "0 of 3 continuations", "score 0.200", "10 tokens", "100 ms"):
        assert piece in dropped
    for piece in (Fate.CUT.words, "Answer: 2 ✗, the answer given", "300 ms"):
        assert piece in cut


def test_texts_in_a_chart_are_not_markup():
    nodes = (Node(None, 1, "<b>x</b>" * 200, 1, 0.0, note="<i>n</i>"),)
    made = (Candidate("", "<u>1</u>", False, 1, "stop", node=0),)
    figure = json.dumps(traces(small(tree=nodes, candidates=made, chosen=0, question="<script>q</script>")))
    for bad in ("<b>x", "<i>n", "<u>", "<script"):
        assert bad not in figure


def test_a_wide_tree_stays_within_its_height():
    wide = searched(answered(Rebase(n=256), 1)[0], 256, random.Random(0))
    found = tree(wide)
    assert len(found.steps) > 500
    assert height([found]) == tree_chart.HIGH_PX
    figure = json.loads(tree_figure(found, wide, None, height([found])))
    assert not any(t["mode"] == "text" for t in figure["data"])
    sizes = [s for t in figure["data"] if t.get("customdata") not in (None, [ROOT]) for s in t["marker"]["size"]]
    assert max(sizes) <= 5.0
    assert len(json.dumps(figure)) < 400_000


# --- the link


RUN = st.none() | st.from_regex(r"\A[0-9a-f]{12}\Z")
NUMBER = st.none() | st.integers(0, 10_000)


@settings(max_examples=40)
@given(st.builds(TreeView, RUN, st.none() | st.text(min_size=1, max_size=30), st.integers(0, 9), NUMBER, RUN, NUMBER))
def test_a_link_restores_the_view(view):
    assert TreeView.from_params(view.to_params()) == (view, [])


LINKED = st.sampled_from(["run", "problem", "repeat", "node", "with", "node2"])


@settings(max_examples=60)
@given(st.dictionaries(LINKED, st.lists(st.text(max_size=400), max_size=2)))
def test_any_link_gives_a_view(params):
    view, complaints = TreeView.from_params(params)
    assert TreeView.from_params(view.to_params()) == (view, [])
    assert len(complaints) <= 5


# --- the page


def test_without_a_link_the_newest_search_is_shown(home, filled):
    at = visit("tree")
    assert not at.exception
    assert at.query_params == {"run": filled[1][REBASE_64], "problem": "test-0"}
    assert "rebase:n=64" in words(at)
    assert "were dropped" in words(at)
    assert len(at.get("bidi_component")) == 1
    assert at.dataframe[0].value["Depth"].tolist()[0] == 1


def test_a_link_shows_its_problem_and_its_step(home, filled):
    at = visit("tree", run=filled[1][REBASE_4], problem="test-2", node="1")
    assert at.selectbox(key="tr_problem").value == ("test-2", 0)
    assert at.selectbox(key="tr_step").value == 1
    with open_store() as store:
        text = store.answers.one(filled[1][REBASE_4], "test-2").tree[1].text
    assert text.strip() in [c.value for c in at.code]
    at.selectbox(key="tr_step").set_value(0).run()
    assert at.query_params["node"] == "0"


def test_another_problem_forgets_the_step(home, filled):
    at = visit("tree", run=filled[1][REBASE_4], problem="test-2", node="1")
    at.selectbox(key="tr_problem").set_value(("test-3", 0)).run()
    assert at.query_params == {"run": filled[1][REBASE_4], "problem": "test-3"}
    assert not at.exception


def test_another_run_shows_its_own_first_problem(home, filled):
    at = visit("tree", run=filled[1][REBASE_4], problem="test-2")
    at.selectbox(key="tr_run").set_value(filled[1][MAJORITY]).run()
    assert at.query_params["run"] == filled[1][MAJORITY]
    assert "64 solutions" in words(at)
    assert "writes whole solutions" in words(at)


def test_two_runs_stand_side_by_side(home, filled):
    at = visit("tree", run=filled[1][REBASE_16], problem="test-1", **{"with": filled[1][MAJORITY]})
    assert not at.exception
    assert len(at.get("bidi_component")) == 2
    assert "rebase:n=16" in words(at)
    assert "majority:n=64" in words(at)
    at.selectbox(key="tr_step_other_node").set_value(5).run()
    assert at.query_params["node2"] == "5"
    key = next(s.key for s in at.selectbox if s.label == "Beside it")
    at.selectbox(key=key).set_value(tree_controls.NOBODY).run()
    assert "with" not in at.query_params
    assert len(at.get("bidi_component")) == 1


def test_a_run_that_was_not_asked_the_same_does_not_stand_beside_it(home, filled):
    at = visit("tree", run=filled[1][REBASE_16], problem="test-1", **{"with": "f" * 12})
    assert "was not asked this problem" in words(at)
    assert len(at.get("bidi_component")) == 1


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ({"run": "zzz"}, "'zzz' is no run"),
        ({"run": "f" * 12}, "There is no run"),
        ({"run": "f" * 12, "problem": "x"}, "There is no run"),
        ({"run": "RUN", "problem": "nobody's"}, "has no answer to a problem"),
        ({"run": "RUN", "problem": "test-1", "repeat": "7"}, "has no answer to a problem"),
        ({"run": "RUN", "node": "-1"}, "no number of one"),
    ],
)
def test_a_bad_link_is_a_sentence(home, filled, link, sentence):
    at = visit("tree", **{k: filled[1][REBASE_4] if v == "RUN" else v for k, v in link.items()})
    assert not at.exception
    assert sentence in words(at)


def test_before_the_first_run_the_page_says_what_will_be_here(empty):
    at = visit("tree")
    assert not at.exception
    assert "drawn as a tree" in words(at)
    (way,) = (element.proto for element in at.get("page_link"))
    asked = link.from_text(dict(parse_qsl(way.query_string))[link.NAME])
    assert (way.page, asked.strategy.name) == ("run", "rebase")


def test_runs_without_answers_have_nothing_to_draw(empty):
    with open_store() as store:
        spec = RunSpec("lab-s", task=TaskSpec("perplexity:/a.txt"))
        store.runs.save(spec, result(spec, random.Random(0)))
    at = visit("tree")
    assert "has no answers to questions" in words(at)


def test_a_failed_problem_says_why(empty):
    with open_store() as store:
        spec = RunSpec("lab-s", strategy=Majority(n=2), task=TaskSpec(limit=1))
        run_id = store.runs.save(spec, result(spec, random.Random(0)))
        one = answer(0, random.Random(0), 2)
        store.answers.add(
            run_id, [dataclasses.replace(one, error="out of memory", candidates=(), chosen=None, answer=None)]
        )
    at = visit("tree", run=run_id)
    assert "out of memory" in words(at)
    assert "There is nothing to draw" in words(at)


def test_long_texts_are_cut_and_say_so(empty):
    with open_store() as store:
        spec = RunSpec("lab-s", strategy=Weighted(n=1), task=TaskSpec(limit=1))
        run_id = store.runs.save(spec, result(spec, random.Random(0)))
        long = Candidate("word " * 10_000, "1", True, 9, "length", 0.5)
        store.answers.add(run_id, [dataclasses.replace(answer(0, random.Random(0), 1), candidates=(long,), chosen=0)])
    at = visit("tree", run=run_id)
    assert "The first 20,000 of 50,000 characters." in words(at)
    assert max(len(c.value) for c in at.code) == 20_000


def test_the_problem_list_of_a_run_leads_to_its_tree(home, filled):
    from ui import problems

    seen = {}

    def link(page, **options):
        seen[page] = options.get("query_params")

    with pytest.MonkeyPatch.context() as patch, open_store() as store:
        patch.setattr(problems.st, "page_link", link)
        run = store.runs.get(filled[1][REBASE_4])
        problems.one(run.run_id, store.answers.page(run.run_id, trees=False)[2], run.spec.strategy, run.spec.task)
    assert seen == {"../../pages/tree.py": {"run": filled[1][REBASE_4], "problem": "test-2", "repeat": "0"}}


def test_thousands_of_runs_are_not_all_offered(empty):
    with open_store() as store:
        fill(store)
    at = visit("tree")
    assert not at.exception
    assert len(at.selectbox(key="tr_run").options) == 92
