"""The confusion matrix: colours, numbers and names."""

import re

from mp_loop.report import confusion_chart
from tests.support import pages


def opacities(figure):
    cells = pages.parsed(figure).iter("rect")
    return [
        float(re.search(r"fill-opacity:([\d.]+)", x.get("style"))[1]) for x in cells
    ]


def test_the_diagonal_is_a_share_and_the_rest_shows_the_worst():
    names, counts = ["a<b", "c", "empty"], [[3, 1, 0], [0, 4, 0], [0, 0, 0]]
    figure = confusion_chart.draw(names, counts, [8, 4, 0])  # four are no prediction
    assert opacities(figure) == [0.188, 0.5, 0, 0, 0.5, 0, 0, 0, 0]
    assert "a&lt;b, predicted c: 1 (12.5%)" in figure
    assert [text for text in pages.texts(figure) if text in "341"] == ["3", "1", "4"]
    # Nothing wrong: nothing is divided by it.
    figure = confusion_chart.draw(["a", "b"], [[1, 0], [0, 1]], [1, 1])
    assert opacities(figure) == [0.5, 0, 0, 0.5]


def test_many_classes_have_short_names_and_no_numbers_that_do_not_fit():
    names = [f"{i} {'long' * 20}" for i in range(confusion_chart.MOST_CLASSES)]
    size = len(names)
    figure = confusion_chart.draw(names, [[100] * size] * size, [2400] * size)
    shown = pages.texts(figure)
    assert len(shown) == 2 * size and max(map(len, shown)) == 15
