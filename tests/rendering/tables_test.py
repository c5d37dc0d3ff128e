"""Tables: alignment, cutting and escaping."""

import pytest

from mp_loop.rendering import tables

ROWS = [["", "float16", "x"], ["loss", "0.5", "12"], ["accuracy", "", "3"]]


def test_columns_are_aligned():
    assert tables.columns(ROWS) == [
        "          float16   x",
        "loss          0.5  12",
        "accuracy            3",
    ]


def test_columns_to_the_left_have_no_trailing_spaces():
    assert tables.columns(ROWS, left=True, indent="> ") == [
        ">           float16  x",
        "> loss      0.5      12",
        "> accuracy           3",
    ]


CUT = [
    pytest.param(80, "a/very/long/path/of/a/layer", id="it fits"),
    pytest.param(20, "…th/of/a/layer", id="its end is kept"),
    pytest.param(5, "…/of/a/layer", id="no narrower than 12"),
]


@pytest.mark.parametrize(("width", "shown"), CUT)
def test_a_first_column_is_cut_to_fit(width, shown):
    rows = [["layer", "room"], ["a/very/long/path/of/a/layer", "1.5"]]
    (_, line) = tables.columns(rows, line_width=width)
    assert line.split() == [shown, "1.5"]
    assert width < 18 or len(line) <= width


def test_markdown_is_aligned_too():
    assert tables.markdown(ROWS) == [
        "|          | float16 |  x |",
        "| -------- | ------: | -: |",
        "| loss     |     0.5 | 12 |",
        "| accuracy |         |  3 |",
    ]


def test_html_is_escaped():
    page = tables.html([["a", "b"], ["<i>", "x & y"]], changed={1})
    assert page == (
        "<table><tr><th>a</th><th>b</th></tr>"
        "<tr class=changed><td>&lt;i&gt;</td><td>x &amp; y</td></tr></table>"
    )
    assert "<th>" not in tables.html([["a"]], head=False)


def test_rows_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        tables.markdown([["a", "b"], ["c"]])
