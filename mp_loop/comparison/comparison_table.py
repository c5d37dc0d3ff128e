"""The table of a comparison, and the note below it.

    text = markdown(measures.compare(...))
    rows, note = cells(measures.compare(...))

In the cells are medians, with the range in parentheses where runs differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from mp_loop.comparison import equivalence, measures
from mp_loop.config import json_values
from mp_loop.rendering import numbers, tables


def markdown(comparison: json_values.Object) -> str:
    """Lays a comparison out as a Markdown table that a terminal shows well.

    Args:
      comparison: what `measures.compare` returns; with `stages`, of design.json, the
        note says whether repeats were added after results were seen.
    """
    rows, note = cells(comparison)
    return "\n".join([*tables.markdown(rows), "", note, ""])


def cells(comparison: json_values.Object) -> tuple[list[list[str]], str]:
    """The rows of the table, its head first, and the note below it."""
    arms = comparison["arms"]
    each = list(arms.values())
    shown = measures.of_metric(comparison["metric"])
    rows = [["", *arms], *_measure_rows(each, shown), *_ratio_rows(each, shown)]
    repeats = len(each[0]["runs"])
    note = f"Ratios: divided by {comparison['reference']}"
    if repeats > 1:
        note = f"Median (smallest to largest) of {repeats} runs. {note}, run by run"
    note += "."
    if repeats == 1:
        note += " Of one run each: --repeats=3 shows how much of it is noise."
    results = [arm.get("difference") for arm in each]
    if any(results):
        added, said = _difference_rows(results, comparison["margin"], shown[0].title)
        rows[2:2] = added  # below the metric
        note += said + _added_repeats(comparison.get("stages", []))
    return rows, note


def _measure_rows(
    arms: Sequence[json_values.Object], shown: Sequence[measures.Measure]
) -> list[list[str]]:
    return [
        [
            measure.title,
            *(
                numbers.spread_text(arm["measures"][measure.name], measure.show)
                for arm in arms
            ),
        ]
        for measure in shown
    ]


def _ratio_rows(
    arms: Sequence[json_values.Object], shown: Sequence[measures.Measure]
) -> list[list[str]]:
    return [
        [
            f"{measure.title.split(',')[0]}, ratio",
            *(
                numbers.spread_text(arm["ratios"][measure.name], "{:.3f}".format)
                for arm in arms
            ),
        ]
        for measure in shown
        if measure.ratio
    ]


def _difference_rows(
    results: Sequence[json_values.Object | None], margin: float, title: str
) -> tuple[list[list[str]], str]:
    """The rows about differences, None being the reference's, and their note."""
    row = [f"{title}, difference"]
    for result in results:
        cell = "-"
        if result:
            low, high = map(_signed, result["interval_90"])
            cell = f"{_signed(result['mean'])} ({low} to {high})"
        row.append(cell)
    note = " Differences: mean of the pairs of equal seed (90 % confidence interval)."
    if not margin:
        return [row], note
    tested = [f"equivalent within {margin:g}"]
    tested += [_verdict(result) if result else "-" for result in results]
    note += (
        " Equivalent: two one-sided t-tests at 5 % reject a difference beyond the "
        "margin, which was written down before the runs."
    )
    if any(result and result["repeats_needed"] for result in results):
        note += (
            " The repeats that are likely (80 %) to show it assume that there is no "
            "difference, and the spread seen here."
        )
    return [row, tested], note


def _verdict(result: json_values.Object) -> str:
    """The outcome of a test in a few words."""
    if result["verdict"] == equivalence.EQUIVALENT:
        return f"yes, {equivalence.p_text(result['p'])}"
    if result["verdict"] == equivalence.DIFFERENT:
        return "no: different"
    if result["repeats_needed"]:
        return f"not shown (likely by {result['repeats_needed']} repeats)"
    return "not shown"


def _added_repeats(revisions: Sequence[json_values.Object]) -> str:
    """The warning where repeats were added after results were seen, or nothing."""
    counts = [revision["repeats"] for revision in revisions[:1]]
    for revision in revisions:
        if revision["after_results"] and revision["repeats"] > counts[-1]:
            counts.append(revision["repeats"])
    if len(counts) < 2:
        return ""
    said = ", then ".join(map(str, counts))
    return (
        f" Repeats were added after results were seen ({said}), which makes p too "
        "small."
    )


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # no -0.0000
