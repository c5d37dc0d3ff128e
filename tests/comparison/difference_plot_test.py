"""The picture of differences: what is drawn, and where."""

import math

import pytest

from mp_loop.comparison import difference_plot, equivalence
from tests.support import saved_pictures


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    return saved_pictures.collected(monkeypatch, tmp_path)


def test_the_picture_shows_what_there_is(pictures):
    results = {
        "custom:float16": equivalence.paired([0.001, 0.002, 0.003], 0.005),
        "custom:float32": equivalence.paired([-0.01, -0.011, -0.009], 0.005),
    }
    assert difference_plot.draw("x.png", results, "keras:float16")
    (axis,) = pictures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(results)
    said = " ".join(text.get_text() for text in axis.texts)
    for part in ("+0.20 (+0.03 to +0.37)", "equivalent, p = 0.018", "different"):
        assert part in said
    assert "margin of ±0.5" in said
    assert "percentage points" in axis.get_xlabel()
    assert "3 pairs" in axis.get_title(loc="left")
    drawn = [list(line.get_xdata()) for line in axis.lines]
    assert pytest.approx([0.1, 0.2, 0.3]) in drawn
    (band,) = axis.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.5, 1.0))
    # Both arms and the band are inside, and 0 is in the middle.
    low, high = axis.get_xlim()
    assert low == -high and high > 1.1


def test_the_picture_of_another_unit_and_no_margin(pictures):
    results = {"custom:float16": equivalence.paired([1.0, 2.0, 3.0])}
    assert difference_plot.draw(
        "x.png", results, "keras:float16", metric="mean absolute error"
    )
    (axis,) = pictures[0].axes
    said = " ".join(text.get_text() for text in axis.texts)
    assert "+2.00 (+0.31 to +3.69)" in said
    assert "margin" not in said and "equivalent" not in said
    assert "percentage" not in axis.get_xlabel()
    assert not axis.patches


def test_a_picture_is_written_also_of_what_is_not_a_number(tmp_path):
    path = tmp_path / "x.png"
    results = {"custom:float16": equivalence.paired([3.0, math.nan], 0.1)}
    assert difference_plot.draw(path, results, "keras:float16")
    assert path.read_bytes()[:4] == b"\x89PNG"
