"""The picture of a comparison's differences: how far each arm is from the reference.

    draw("equivalence.png", {"custom:float16": result}, "keras:float16")

A result is what `mp_loop.comparison.equivalence.paired` returns. Statisticians call
this a forest plot.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mp_loop.comparison import equivalence
from mp_loop.rendering import figures

if TYPE_CHECKING:
    from matplotlib import axes, figure

Results = Mapping[str, equivalence.Equivalence]

_COLORS = {
    equivalence.EQUIVALENT: "#0a7d55",
    equivalence.DIFFERENT: "#c4320a",
    equivalence.NOT_SHOWN: "#59636e",
    "": "#0b62c4",  # not tested
}
_TEXT, _SOFT, _BAND = "#1b1f24", "#59636e", "#dcefe6"


def draw(
    path: str | os.PathLike[str],
    results: Results,
    reference: str,
    metric: str = "accuracy",
) -> bool:
    """Draws one line for each arm: mean, 90 % interval, and single seeds.

    The margin is a band: an arm whose interval lies inside is equivalent.

    Args:
      path: of the PNG file.
      results: of each arm; all of one margin and of one number of differences.
      reference: the arm that the others are compared with.
      metric: its name; differences in accuracy are shown as percentage points.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    size = (10, 2.6 + 0.85 * len(results))
    fill = functools.partial(_fill, results=results, reference=reference, metric=metric)
    return figures.draw(path, size, fill)


def _fill(
    picture: figure.Figure, results: Results, reference: str, metric: str
) -> None:
    """Draws on an empty figure."""
    unit = 100 if metric == "accuracy" else 1
    axis = picture.subplots()
    first = next(iter(results.values()))
    margin = first.margin * unit
    if margin:
        axis.axvspan(-margin, margin, color=_BAND, linewidth=0, zorder=0)
        for edge in (-margin, margin):
            axis.axvline(edge, color=_COLORS[equivalence.EQUIVALENT], linestyle="--")
    axis.axvline(0, color=_TEXT, linewidth=1)
    for row, result in enumerate(results.values()):
        _draw_arm(axis, row, result, unit)
    axis.set_yticks(range(len(results)), list(results), fontsize=13, color=_TEXT)
    axis.set_ylim(len(results) - 0.4, -0.6)  # the first arm on top
    left, right = axis.get_xlim()
    reach = max(abs(left), abs(right))
    axis.set_xlim(-reach, reach)
    points = "" if unit == 1 else ", percentage points"
    axis.set_xlabel(
        f"difference in {metric}{points}  (right of 0: higher than {reference})",
        fontsize=12,
    )
    axis.set_title(
        f"{metric.capitalize()} against {reference}, "
        f"{len(first.differences)} pairs of equal seed",
        loc="left",
        fontsize=15,
        color=_TEXT,
        pad=44 if margin else 28,
    )
    _draw_legend(axis, margin)
    axis.grid(axis="x", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=12)
    figures.hide_spines(axis, ("top", "right", "left"))


def _draw_arm(
    axis: axes.Axes, row: int, result: equivalence.Equivalence, unit: int
) -> None:
    """Draws the interval, the mean, the seeds and the numbers of one arm."""
    color = _COLORS[result.verdict]
    low, high = (bound * unit for bound in result.interval_90)
    axis.plot([low, high], [row, row], color=color, linewidth=3)
    axis.plot([low, high], [row, row], "|", color=color, markersize=14, mew=3)
    axis.plot(result.mean * unit, row, "D", color=color, markersize=9)
    axis.plot(
        [value * unit for value in result.differences],
        [row + 0.27] * len(result.differences),
        "o",
        markersize=8,
        color=color,
        markeredgewidth=0,
        alpha=0.4,
    )
    axis.annotate(
        _numbers(result, unit),
        (1.02, row),
        xycoords=("axes fraction", "data"),
        va="center",
        color=color,
        fontsize=12,
        annotation_clip=False,
    )


def _draw_legend(axis: axes.Axes, margin: float) -> None:
    legend = "Diamond: mean. Line: 90 % confidence interval. Dots: single seeds."
    if margin:
        legend += (
            f"\nShaded: margin of ±{margin:g}, decided before the runs. A line inside "
            "it: equivalent."
        )
    axis.annotate(
        legend, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points",
        color=_SOFT, fontsize=11, annotation_clip=False,
    )  # fmt: skip


def _numbers(result: equivalence.Equivalence, unit: int) -> str:
    """The numbers of an arm, and its verdict where it was tested."""
    mean, low, high = (
        round(value * unit, 2) + 0.0 for value in (result.mean, *result.interval_90)
    )
    text = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "\N{MINUS SIGN}")
    if result.verdict == equivalence.EQUIVALENT:
        return f"{text}\n{result.verdict}, {equivalence.p_text(result.p)}"
    return f"{text}\n{result.verdict}" if result.verdict else text
