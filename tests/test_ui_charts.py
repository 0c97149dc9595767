import json

import numpy as np
import plotly.graph_objects as go
import pytest

from spec.measures import MEASURES, Better
from ui import charts
from ui.frontier_chart import Picture, Points, frontier_figure, step_shape
from ui.theme import DARK, LIGHT, SYMBOLS, colours, symbols


def painted(text, palette=LIGHT):
    """The figure as the browser sees it: every colour role filled in."""

    def walk(value, key=""):
        if isinstance(value, str) and key.lower().endswith("color") and value.startswith("@"):
            return palette[value[1:]]
        if isinstance(value, list):
            return [walk(v, key) for v in value]
        if isinstance(value, dict):
            return {k: walk(v, k) for k, v in value.items()}
        return value

    return walk(json.loads(text))


def valid(text):
    """The figure, checked by plotly's own schema in both themes."""
    for palette in (LIGHT, DARK):
        figure = painted(text, palette)
        go.Figure(figure)
        assert '"@' not in json.dumps(figure)
    return figure


def picture(n=4, **changes):
    nothing = np.full(n, np.nan)
    points = Points(
        run_id=np.asarray([f"{i:012x}" for i in range(n)], dtype=object),
        x=np.linspace(0.1, 10, n),
        y=np.linspace(0.2, 0.9, n),
        x_low=nothing,
        x_high=nothing,
        y_low=np.linspace(0.1, 0.8, n),
        y_high=np.linspace(0.3, 1.0, n),
        model=np.asarray(["<script>alert(1)</script>", "lab-s"] * (n // 2), dtype=object),
        family=np.asarray(["greedy", "majority"] * (n // 2), dtype=object),
        card=np.asarray(["card"] * n, dtype=object),
        odd=np.zeros(n, dtype=bool),
    )
    usual = {
        "x": MEASURES["latency_p50_s"],
        "y": MEASURES["accuracy"],
        "log_x": True,
        "log_y": False,
        "points": points,
        "frontier": np.arange(0, n, 2),
        "labels": ["<b>one</b>"] * len(range(0, n, 2)),
        "dominated": np.arange(1, n, 2),
    }
    return Picture(**(usual | changes))


def test_the_frontier_is_a_step_line_and_never_a_curve():
    figure = valid(frontier_figure(picture()))
    line = next(t for t in figure["data"] if t["mode"] == "lines")
    assert line["line"]["shape"] == "hv"
    assert step_shape(Better.HIGHER) == "vh"


def test_names_cannot_carry_markup_into_the_chart():
    text = frontier_figure(picture())
    assert "<script>" not in text
    assert "<b>one" not in text
    assert "&lt;script&gt;" in text


def test_only_frontier_and_pinned_points_have_error_bars():
    figure = valid(frontier_figure(picture(pinned=1)))
    with_bars = [t for t in figure["data"] if "error_y" in t]
    assert sorted(len(t["y"]) for t in with_bars) == [1, 2]


def test_points_of_another_kind_are_hollow():
    shown = picture()
    shown.points.odd[:] = [False, False, True, True]
    figure = valid(frontier_figure(shown))
    members = next(t for t in figure["data"] if t["mode"] == "markers+text")
    assert members["marker"]["symbol"] == ["circle", "circle-open"]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_points_make_a_figure_too(n):
    points = {f: getattr(picture(2).points, f)[:n] for f in Points.__slots__}
    shown = picture(2, points=Points(**points), frontier=np.arange(n), dominated=np.arange(0), labels=["one"] * n)
    valid(frontier_figure(shown))


def test_many_points_are_sent_as_bytes_and_drawn_pale():
    few, many = (json.loads(frontier_figure(picture(n)))["data"] for n in (40, 4000))
    assert "bdata" in json.dumps(many)
    assert many[0]["marker"]["opacity"] < few[0]["marker"]["opacity"]
    assert {t["type"] for t in many} == {"scatter"}, "no WebGL, so an SVG export keeps its points"


def test_the_same_data_keep_the_zoom_and_other_axes_do_not():
    a, b = (json.loads(frontier_figure(picture(n)))["layout"]["uirevision"] for n in (4, 6))
    c = json.loads(frontier_figure(picture(log_x=False)))["layout"]["uirevision"]
    assert a == b != c


@pytest.mark.parametrize(
    ("x", "y", "corner"),
    [
        ("latency_p50_s", "accuracy", "↖ better"),
        ("throughput_tok_s", "accuracy", "better ↗"),
        ("accuracy", "latency_p50_s", "better ↘"),
        ("wall_s", "flops_total", "↙ better"),
    ],
)
def test_the_better_corner_follows_both_directions(x, y, corner):
    figure = valid(frontier_figure(picture(x=MEASURES[x], y=MEASURES[y])))
    assert figure["layout"]["annotations"][0]["text"] == corner


def test_by_level_and_distribution_are_valid():
    figure = valid(charts.by_level({1: {"n": 10, "correct": 10}, 2: {"n": 10, "correct": 3}}))
    assert figure["data"][0]["y"] == [1.0, 0.3]
    figure = valid(charts.distribution([0.1, 0.2, 0.3, 5.0], "Latency"))
    assert len(figure["layout"]["shapes"]) == 2
    valid(charts.distribution([0.1, 0.1], "Latency"))


def test_layers_are_shares_of_the_tokens():
    figure = valid(charts.by_layer([3.0, 6.0, 3.0, 3.0]))
    assert figure["data"][0]["x"] == [3, 6]
    assert figure["data"][0]["y"] == [0.75, 0.25]
    assert figure["data"][0]["text"][0] == "Layer 3: 75.0% of the tokens"
    assert valid(charts.by_layer([float(i) for i in range(100)]))["layout"]["xaxis"]["dtick"] == 9


def test_log_ticks_are_round_and_few():
    assert charts.log_ticks(np.asarray([0.05, 9.0])) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert len(charts.log_ticks(np.asarray([1e-6, 1e9]))) <= 12
    assert charts.log_ticks(np.asarray([0.0, -1.0])) == []
    assert charts.tick_text(0.05, "s") == "50 ms"


def test_a_missing_number_never_becomes_invalid_json():
    assert charts.to_json({"x": np.asarray([1.0, np.nan])}) == '{"x":[1.0,null]}'


def test_names_keep_their_colour_and_families_their_shape():
    assert colours(["b", "a"]) == colours(["a", "b"])
    assert len(set(colours("abcdefg").values())) == 7
    assert colours("abcdefgh")["h"] == "@muted"
    found = symbols(["greedy", "new-one", "other"])
    assert found["greedy"] == SYMBOLS["greedy"]
    assert len(set(found.values())) == 3


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_meets_wcag_aa(palette):
    for role in ("ink", "muted"):
        assert contrast(palette[role], palette["paper"]) >= 4.5
        assert contrast(palette[role], palette["card"]) >= 4.5
