"""The table of a comparison and its note."""

import math

import pytest

from mp_loop.comparison import comparison_table, measures
from tests.support.summaries import summary

CUSTOM, KERAS = "custom:float16", "keras:float16"


def test_table_of_one_run_each():
    comparison = measures.compare(
        {
            CUSTOM: [summary(final_loss_scale=1000.0, peak_memory_bytes=256 << 20)],
            KERAS: [summary(skipped_steps=0)],
        },
        KERAS,
    )
    assert comparison_table.markdown(comparison) == (
        "|                    | custom:float16 | keras:float16 |\n"
        "| ------------------ | -------------: | ------------: |\n"
        "| accuracy           |         0.8750 |        0.8750 |\n"
        "| loss               |         0.5000 |        0.5000 |\n"
        "| skipped steps      |              2 |             0 |\n"
        "| final loss scale   |           1000 |          2^15 |\n"
        "| ms/step            |           8.00 |          8.00 |\n"
        "| examples/s         |           1024 |          1024 |\n"
        "| peak memory, MiB   |            256 |           512 |\n"
        "| ms/step, ratio     |          1.000 |         1.000 |\n"
        "| examples/s, ratio  |          1.000 |         1.000 |\n"
        "| peak memory, ratio |          0.500 |         1.000 |\n"
        "\n"
        "Ratios: divided by keras:float16. Of one run each: --repeats=3 shows how much "
        "of it is noise.\n"
    )


def test_table_of_repeats_shows_the_range():
    runs = [summary(eval_accuracy=value) for value in (0.5, 0.75, 0.625)]
    text = comparison_table.markdown(measures.compare({CUSTOM: runs}, CUSTOM))
    assert "| 0.6250 (0.5000 to 0.7500) |" in text
    assert "of 3 runs" in text


def of_accuracies(*accuracies, margin=0.0):
    """A comparison: our accuracies, each beside one of 0.5."""
    runs = [summary(eval_accuracy=value) for value in accuracies]
    other = [summary(eval_accuracy=0.5) for _ in runs]
    return measures.compare({CUSTOM: runs, KERAS: other}, KERAS, margin)


OUTCOMES = [
    pytest.param((0.501, 0.502, 0.503), 0.005, "yes, p = 0.018", id="equivalent"),
    pytest.param((0.5, 0.5, 0.5), 0.005, "yes, p < 0.001", id="equal"),
    pytest.param((0.51, 0.511, 0.509), 0.005, "no: different", id="different"),
    pytest.param(
        (0.51, 0.49), 0.005, "not shown (likely by 71 repeats)", id="too few repeats"
    ),
    pytest.param((0.5, math.nan), 0.005, "not shown", id="not a number"),
]


@pytest.mark.parametrize(("accuracies", "margin", "said"), OUTCOMES)
def test_the_verdict_in_the_table(accuracies, margin, said):
    text = comparison_table.markdown(of_accuracies(*accuracies, margin=margin))
    (row,) = [line for line in text.splitlines() if "equivalent within" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["equivalent within 0.005", said, "-"]
    assert "written down before the runs" in text
    assert ("likely (80 %)" in text) == ("likely" in said)


def test_the_difference_in_the_table():
    text = comparison_table.markdown(of_accuracies(0.501, 0.502, 0.503))
    rows = [line.strip("|").split("|") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    # 0.002 and 2.92 * 0.001 / sqrt(3) on either side; below the accuracies.
    assert cells[3] == ["accuracy, difference", "+0.0020 (+0.0003 to +0.0037)", "-"]
    assert cells[2][0] == "accuracy"
    assert "equivalent" not in text
    assert "90 % confidence interval" in text


def test_a_difference_has_no_negative_zero():
    text = comparison_table.markdown(of_accuracies(0.49999, 0.49999))
    assert "+0.0000 (+0.0000 to +0.0000)" in text


LOOKS = [
    pytest.param([(2, False)], "", id="one"),
    pytest.param([(2, False), (5, False)], "", id="raised before any table"),
    pytest.param([(2, False), (2, True)], "", id="arms added"),
    pytest.param([(2, False), (3, True), (5, True)], "(2, then 3, then 5)", id="looks"),
]


@pytest.mark.parametrize(("stages", "said"), LOOKS)
def test_repeats_added_in_view_of_results_are_told(stages, said):
    comparison = of_accuracies(0.5, 0.5, margin=0.1)
    comparison["stages"] = [
        {"repeats": repeats, "after_results": seen} for repeats, seen in stages
    ]
    text = comparison_table.markdown(comparison)
    assert ("Repeats were added after results were seen" in text) == bool(said)
    assert said in text
