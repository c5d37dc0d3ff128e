"""Line charts: what is drawn, where, and what is left out."""

import json
import math
import re

import pytest

from mp_loop.report import line_chart
from tests.support import pages


def paths(figure):
    return [
        path
        for path in pages.parsed(figure).iter("path")
        if path.get("class") != "cross"
    ]


def places(path):
    """The points of a path of straight lines."""
    return [
        tuple(map(float, words.split()))
        for words in re.split("[ML]", path.get("d"))[1:]
    ]


def test_a_line_is_drawn_to_scale():
    figure = line_chart.draw(
        "Loss", [line_chart.Series("", [0, 5, 10], [1.0, 3.0, 2.0])]
    )
    ((x0, y0), (x1, y1), (x2, y2)) = places(paths(figure)[0])
    assert x0 < x1 < x2 and math.isclose(x1, (x0 + x2) / 2)
    assert y1 < y2 < y0  # up is less
    assert math.isclose(y2, (y0 + y1) / 2, abs_tol=0.1)
    assert "Loss" in figure and {"1", "3"} <= set(pages.texts(figure))


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
    figure = line_chart.draw("x", [line_chart.Series("", range(4), values)])
    if not count:
        assert "Nothing was recorded." in figure
    else:
        assert len(paths(figure)) == count


def test_a_logarithm_leaves_out_what_has_none():
    series = [line_chart.Series("", range(5), [1.0, 0.0, -1.0, 2.0**10, 2.0**20])]
    figure = line_chart.draw("x", series, log=2)
    first, second = map(places, paths(figure))
    assert len(second) == 2
    assert {"2^0", "2^20"} <= set(pages.texts(figure))
    heights = [first[0][1], second[0][1], second[1][1]]
    assert math.isclose(heights[0] - heights[1], heights[1] - heights[2], abs_tol=0.2)


def test_stairs_hold_a_value_until_the_next():
    series = [line_chart.Series("", [0, 1], [1.0, 2.0], stairs=True)]
    assert re.fullmatch(
        r"M\S+ \S+H\S+V\S+", paths(line_chart.draw("x", series))[0].get("d")
    )


def test_many_points_are_thinned_and_the_extremes_stay():
    values = [0.0] * 100_000
    values[12_345], values[54_321] = 7.0, -3.0
    figure = line_chart.draw("x", [line_chart.Series("", range(100_000), values)])
    (_, _, xs, ys) = json.loads(pages.parsed(figure).get("data-series"))[0]
    assert len(xs) <= 400 and xs == sorted(xs)
    assert dict(zip(xs, ys, strict=True)) | {12_345: 7.0, 54_321: -3.0} == dict(
        zip(xs, ys, strict=True)
    )


def test_marks_names_and_colours():
    runs = [
        line_chart.Series(label, [0, 1], [1.0, 2.0]) for label in ("<a>", "b", "<a>")
    ]
    marks = [
        line_chart.Mark(1, 2.0, "3 skipped"),
        line_chart.Mark(1, math.nan, "nowhere"),
    ]
    figure = line_chart.draw("x & y", runs, marks)
    assert figure.count('class="cross"') == 1 and "3 skipped" in figure
    styles = [path.get("style") for path in paths(figure)]
    assert styles == ["stroke:var(--c0)", "stroke:var(--c1)", "stroke:var(--c0)"]
    assert [path.get("class") for path in paths(figure)] == [None, None, "faint"]
    assert figure.count("&lt;a&gt;</span>") == 1 and "x &amp; y" in figure
