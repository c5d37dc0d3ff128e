"""Charts: what is drawn, where, and what is left out."""

import json
import math
import re
import xml.etree.ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mp_loop.report import charts


def svg(figure):
    """The drawing of a figure, parsed; the figure must be well-formed."""
    return xml.etree.ElementTree.fromstring(figure).find("svg")


def paths(figure):
    return [path for path in svg(figure).iter("path") if path.get("class") != "cross"]


def places(path):
    """The points of a path of straight lines."""
    return [
        tuple(map(float, words.split()))
        for words in re.split("[ML]", path.get("d"))[1:]
    ]


def texts(figure):
    return [text.text for text in svg(figure).iter("text")]


def test_a_line_is_drawn_to_scale():
    figure = charts.lines("Loss", [charts.Series("", [0, 5, 10], [1.0, 3.0, 2.0])])
    ((x0, y0), (x1, y1), (x2, y2)) = places(paths(figure)[0])
    assert x0 < x1 < x2 and math.isclose(x1, (x0 + x2) / 2)
    assert y1 < y2 < y0  # up is less
    assert math.isclose(y2, (y0 + y1) / 2, abs_tol=0.1)
    assert "Loss" in figure and {"1", "3"} <= set(texts(figure))


GAPS = {
    "no gap": ([1, 2, 3, 4], 1),
    "a gap": ([1, math.nan, 3, 4], 2),
    "infinite": ([1, 2, math.inf, 4], 2),
    "at the ends": ([math.nan, 2, 3, math.nan], 1),
    "nothing": ([math.nan] * 4, 0),
}


@pytest.mark.parametrize("name", GAPS)
def test_what_is_not_finite_is_a_gap(name):
    values, count = GAPS[name]
    figure = charts.lines("x", [charts.Series("", range(4), values)])
    if not count:
        assert "Nothing was recorded." in figure
    else:
        assert len(paths(figure)) == count


def test_a_logarithm_leaves_out_what_has_none():
    series = [charts.Series("", range(5), [1.0, 0.0, -1.0, 2.0**10, 2.0**20])]
    figure = charts.lines("x", series, log=2)
    first, second = map(places, paths(figure))
    assert len(second) == 2
    assert {"2^0", "2^20"} <= set(texts(figure))
    heights = [first[0][1], second[0][1], second[1][1]]
    assert math.isclose(heights[0] - heights[1], heights[1] - heights[2], abs_tol=0.2)


def test_stairs_hold_a_value_until_the_next():
    series = [charts.Series("", [0, 1], [1.0, 2.0], stairs=True)]
    assert re.fullmatch(
        r"M\S+ \S+H\S+V\S+", paths(charts.lines("x", series))[0].get("d")
    )


def test_many_points_are_thinned_and_the_extremes_stay():
    values = [0.0] * 100_000
    values[12_345], values[54_321] = 7.0, -3.0
    figure = charts.lines("x", [charts.Series("", range(100_000), values)])
    (_, _, xs, ys) = json.loads(svg(figure).get("data-series"))[0]
    assert len(xs) <= 400 and xs == sorted(xs)
    assert dict(zip(xs, ys, strict=True)) | {12_345: 7.0, 54_321: -3.0} == dict(
        zip(xs, ys, strict=True)
    )


def test_marks_names_and_colours():
    runs = [charts.Series(label, [0, 1], [1.0, 2.0]) for label in ("<a>", "b", "<a>")]
    marks = [charts.Mark(1, 2.0, "3 skipped"), charts.Mark(1, math.nan, "nowhere")]
    figure = charts.lines("x & y", runs, marks)
    assert figure.count('class="cross"') == 1 and "3 skipped" in figure
    styles = [path.get("style") for path in paths(figure)]
    assert styles == ["stroke:var(--c0)", "stroke:var(--c1)", "stroke:var(--c0)"]
    assert [path.get("class") for path in paths(figure)] == [None, None, "faint"]
    assert figure.count("&lt;a&gt;</span>") == 1 and "x &amp; y" in figure


def test_a_heat_map_is_the_stronger_the_worse():
    values = [[16.0, 8.0, 0.0], [math.nan, 20.0, -3.0]]
    bad = [[False, False, True], [False] * 3]
    names = ["conv<1>", "a" * 60]
    figure = charts.heat_map("Headroom", names, [0, 10, 20], values, 16, 0, bad)
    found = [
        float(re.search(r"fill-opacity:([\d.]+)", cell.get("style"))[1])
        for cell in svg(figure).iter("rect")
    ]
    assert found == [0, 0.5, 1, 0, 0, 1]
    assert figure.count('class="cross"') == 1
    assert "conv&lt;1&gt;" in figure and "(worst: -3)" in figure
    assert max(map(len, filter(None, texts(figure)))) <= 24


@given(
    low=st.floats(-1e6, 1e6),
    size=st.floats(1e-6, 1e9),
    most=st.integers(2, 8),
    whole=st.booleans(),
)
def test_ticks_are_round_and_few(low, size, most, whole):
    axis = charts._Axis(low, low + size, 0, 1)
    ticks = axis.ticks(most, whole)
    assert len(ticks) <= most + 1
    assert all(axis.low <= t <= axis.high + 1e-9 * abs(axis.high) for t in ticks)
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    for step in steps:
        assert f"{step:.0e}"[0] in "125" or whole or abs(low) > 1e6 * size
        assert not whole or math.isclose(step, round(step))
