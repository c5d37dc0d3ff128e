"""Predictions against targets."""

import math

import pytest

from mp_loop.report import scatter_chart
from tests.support import pages


def test_points_the_line_and_what_is_beyond():
    points = [(0, 0.5), (10, 9), (5, 1e30), (5, -1e30), (1, math.nan)]
    figure = scatter_chart.draw("a<b", points)
    drawing = pages.parsed(figure)
    assert len(list(drawing.iter("circle"))) == 2
    assert figure.count('class="cross"') == 2 and "Crosses: 2 predictions" in figure
    assert "a&lt;b: predicted against true" in figure
    assert {"true", "predicted", "0", "10"} <= set(pages.texts(figure))
    # On the line what is equal: as far from the left as from the bottom.
    right = pages.parsed(scatter_chart.draw("x", [(0, 0), (10, 10)]))
    low, high = ((float(c.get("cx")), float(c.get("cy"))) for c in right.iter("circle"))
    assert low[0] < high[0] and low[1] > high[1]


@pytest.mark.parametrize(
    "points",
    [[(7, 8)], [(0, 0)], [(1e308, 1), (-1e308, 2)], [], [(5e-324, 1e-323)],
     [(1e15, 1e15 + 1)], [(-3, math.inf)]],
)  # fmt: skip
def test_whatever_the_numbers(points):
    figure = scatter_chart.draw("x", points)
    assert "nan" not in figure and "inf" not in figure
