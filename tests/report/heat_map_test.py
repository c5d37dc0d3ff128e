"""Heat maps: colours, crosses and names."""

import math
import re

from mp_loop.report import heat_map
from tests.support import pages


def test_a_heat_map_is_the_stronger_the_worse():
    values = [[16.0, 8.0, 0.0], [math.nan, 20.0, -3.0]]
    bad = [[False, False, True], [False] * 3]
    names = ["conv<1>", "a" * 60]
    figure = heat_map.draw(
        "Headroom", heat_map.Grid(names, [0, 10, 20], values, bad), 16, 0
    )
    found = [
        float(re.search(r"fill-opacity:([\d.]+)", cell.get("style"))[1])
        for cell in pages.parsed(figure).iter("rect")
    ]
    assert found == [0, 0.5, 1, 0, 0, 1]
    assert figure.count('class="cross"') == 1
    assert "conv&lt;1&gt;" in figure and "(worst: -3)" in figure
    assert max(map(len, filter(None, pages.texts(figure)))) <= 24
