"""Medians, ranges, paired ratios and differences of summaries."""

import math

import pytest

from mp_loop.comparison import comparison_table, measures
from tests.support.summaries import summary

CUSTOM, KERAS = "custom:float16", "keras:float16"


def test_medians_ranges_and_paired_ratios():
    summaries = {
        CUSTOM: [
            summary(milliseconds_per_step=ms, eval_accuracy=accuracy)
            for ms, accuracy in ((4.0, 0.5), (3.0, 0.75), (16.0, 0.625))
        ],
        KERAS: [summary(milliseconds_per_step=ms) for ms in (8.0, 12.0, 16.0)],
    }
    comparison = measures.compare(summaries, KERAS)
    arm = comparison["arms"][CUSTOM]
    assert comparison["reference"] == KERAS
    assert arm["measures"]["milliseconds_per_step"] == {
        "median": 4.0,
        "min": 3.0,
        "max": 16.0,
    }
    assert arm["measures"]["eval_accuracy"]["median"] == 0.625
    # Pairs: 4/8, 3/12, 16/16; the ratio of medians would be 4/12.
    assert arm["ratios"]["milliseconds_per_step"] == {
        "median": 0.5,
        "min": 0.25,
        "max": 1.0,
    }
    assert set(arm["ratios"]) == {
        "milliseconds_per_step",
        "examples_per_second",
        "peak_memory_bytes",
    }
    assert comparison["arms"][KERAS]["ratios"]["milliseconds_per_step"] == {
        "median": 1.0,
        "min": 1.0,
        "max": 1.0,
    }
    assert arm["runs"] == summaries[CUSTOM]


NOT_A_RATIO = [
    pytest.param(1.0, 0.0, id="divided by zero"),
    pytest.param(math.nan, 2.0, id="a run too short to time"),
]


@pytest.mark.parametrize(("value", "by"), NOT_A_RATIO)
def test_a_ratio_that_is_none_is_nan(value, by):
    comparison = measures.compare(
        {
            CUSTOM: [
                summary(examples_per_second=2.0),
                summary(examples_per_second=value),
            ],
            KERAS: [summary(examples_per_second=2.0), summary(examples_per_second=by)],
        },
        KERAS,
    )
    spread = comparison["arms"][CUSTOM]["ratios"]["examples_per_second"]
    assert all(math.isnan(value) for value in spread.values())
    assert "nan" in comparison_table.markdown(comparison)


def test_differences_are_paired_and_tested():
    summaries = {
        CUSTOM: [summary(eval_accuracy=value) for value in (0.75, 0.5, 1.0)],
        KERAS: [summary(eval_accuracy=value) for value in (0.625, 0.25, 0.625)],
    }
    comparison = measures.compare(summaries, KERAS, 0.5)
    found = comparison["arms"][CUSTOM]["difference"]
    # 1/4 with a deviation of 1/8; of medians or unpaired it would be another.
    assert found["differences"] == (0.125, 0.25, 0.375)
    assert (found["mean"], found["deviation"]) == (0.25, 0.125)
    assert (found["margin"], found["verdict"]) == (0.5, "equivalent")
    assert comparison["margin"] == 0.5
    assert "difference" not in comparison["arms"][KERAS]
