"""What a finished comparison prints."""

import pathlib

import pytest

from mp_loop.comparison import output

FOLDER = pathlib.Path("out")
CURVES, DIFFERENCES = FOLDER / "comparison.png", FOLDER / "equivalence.png"

PICTURES = [
    pytest.param(None, None, ["No picture: matplotlib is missing"], id="none"),
    pytest.param(CURVES, None, [f"Picture: {CURVES}"], id="one repeat"),
    pytest.param(
        CURVES,
        DIFFERENCES,
        [f"Picture: {CURVES}", f"Differences: {DIFFERENCES}"],
        id="differences",
    ),
]


@pytest.mark.parametrize(("curves", "differences", "said"), PICTURES)
def test_it_says_where_everything_is(curves, differences, said):
    written = output.Written(FOLDER, "table\n", "out/report.html", curves, differences)
    table, _, runs, report, *pictures = str(written).splitlines()
    assert (table, runs) == ("table", "Table and runs: out")
    assert report == "Report: out/report.html"
    assert len(pictures) == len(said)
    assert all(map(str.startswith, pictures, said))
