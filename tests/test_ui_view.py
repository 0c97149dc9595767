import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui.plot import Box, box_of
from ui.view import AXES, View, log_by_default

NAMES = st.text(min_size=1, max_size=40).filter(str.strip)
SOME = st.lists(NAMES, max_size=3, unique=True).map(tuple)
AXIS = st.sampled_from([m.name for m in AXES])
VALUE = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: float(f"{v:.12g}"))


@st.composite
def views(draw):
    x, y = draw(AXIS), draw(AXIS)
    values = sorted([draw(VALUE), draw(VALUE)]), sorted([draw(VALUE), draw(VALUE)])
    return View(
        x,
        y,
        task=draw(st.none() | NAMES),
        hardware=draw(st.none() | NAMES),
        models=draw(SOME),
        strategies=draw(SOME),
        precisions=draw(SOME),
        run=draw(st.none() | st.from_regex(r"\A[0-9a-f]{12}\Z")),
        box=draw(st.none() | st.just(Box(*values[0], *values[1]))),
    )


@settings(max_examples=40, deadline=None)
@given(views())
def test_a_link_restores_the_view(view):
    found, complaints = View.from_params(view.to_params())
    assert found == view
    assert complaints == []


@settings(max_examples=20, deadline=None)
@given(views(), st.booleans(), st.booleans())
def test_a_link_restores_the_scales(view, log_x, log_y):
    from dataclasses import replace

    view = replace(view, log_x=log_x, log_y=log_y)
    found, _ = View.from_params(view.to_params())
    assert (found.is_log_x, found.is_log_y) == (log_x, log_y)


def test_a_narrow_box_stays_as_it_was_drawn():
    box = Box(123456.7, 123463.2, 0.5, 0.500001)
    assert View.from_params(View(box=box).to_params())[0].box == box


NAMED = st.sampled_from(["x", "y", "xscale", "yscale", "task", "hw", "model", "run", "box"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMED, st.lists(st.text(max_size=30), max_size=3)))
def test_any_link_gives_a_view(params):
    view, complaints = View.from_params(params)
    assert view.x in {m.name for m in AXES}
    assert all(c.endswith((".", "digits.")) for c in complaints)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"x": ["nonsense"]}, "'nonsense', which does not exist"),
        ({"y": ["idle_w"]}, "does not exist"),
        ({"xscale": ["cubic"]}, "log or linear"),
        ({"run": ["../../etc"]}, "twelve hexadecimal digits"),
        ({"box": ["1,2,3"]}, "not four numbers"),
        ({"box": ["1,2,3,nan"]}, "not four numbers"),
    ],
)
def test_a_bad_part_of_a_link_is_named_and_dropped(params, words):
    view, complaints = View.from_params(params)
    assert view == View()
    assert len(complaints) == 1
    assert words in complaints[0]


def test_a_link_names_the_axes_even_the_usual_ones():
    assert View().to_params() == {"x": ["flops_per_problem"], "y": ["accuracy"]}
    assert log_by_default(next(m for m in AXES if m.name == "wall_s"))
    assert not View().is_log_y


@pytest.mark.parametrize("event", [None, {}, {"x": [1]}, {"x": [1, 2], "y": ["a", "b"]}, "box", {"x": None, "y": None}])
def test_what_is_no_box_is_none(event):
    assert box_of(event) is None


def test_a_box_is_ordered():
    assert box_of({"x": [2, 1], "y": [4.0, 3.0]}) == Box(1, 2, 3, 4)
    assert np.isfinite(box_of({"x": [2, 1], "y": [4.0, 3.0]}).x0)
