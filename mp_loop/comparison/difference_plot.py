"""The forest plot of a comparison: how far each arm is from the reference.

    draw("equivalence.png", {"custom:float16": result}, "keras:float16")

A result is what `mp_loop.comparison.equivalence.paired` gives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mp_loop.comparison import equivalence

_COLORS = {
    equivalence.EQUIVALENT: "#0a7d55",
    equivalence.DIFFERENT: "#c4320a",
    equivalence.NOT_SHOWN: "#59636e",
    "": "#0b62c4",  # not tested
}
_TEXT, _SOFT, _BAND = "#1b1f24", "#59636e", "#dcefe6"


def draw(
    path: str | os.PathLike[str],
    results: Mapping[str, equivalence.Equivalence],
    reference: str,
    share: bool = True,
) -> bool:
    """Draws one line for each arm: mean, 90 % interval, and single seeds.

    The margin is a band: an arm whose interval lies inside is equivalent.

    Args:
      path: of the PNG file.
      results: of each arm; all of one margin and of one number of differences.
      reference: the arm that the others are measured by.
      share: whether values are shares, shown as percentage points.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    try:
        from matplotlib import figure
    except ImportError:
        return False
    unit = 100 if share else 1
    first = next(iter(results.values()))
    margin = first.margin * unit
    picture = figure.Figure(
        figsize=(10, 2.6 + 0.85 * len(results)), layout="constrained", facecolor="white"
    )
    axis = picture.subplots()
    if margin:
        axis.axvspan(-margin, margin, color=_BAND, linewidth=0, zorder=0)
        for edge in (-margin, margin):
            axis.axvline(edge, color=_COLORS[equivalence.EQUIVALENT], linestyle="--")
    axis.axvline(0, color=_TEXT, linewidth=1)
    for row, result in enumerate(results.values()):
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
            _said(result, unit),
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize=12,
            annotation_clip=False,
        )
    axis.set_yticks(range(len(results)), list(results), fontsize=13, color=_TEXT)
    axis.set_ylim(len(results) - 0.4, -0.6)  # the first arm on top
    left, right = axis.get_xlim()
    reach = max(abs(left), abs(right))
    axis.set_xlim(-reach, reach)
    points = ", percentage points" if share else ""
    axis.set_xlabel(
        f"difference in accuracy{points}  (right of 0: higher than {reference})",
        fontsize=12,
    )
    axis.set_title(
        f"Accuracy against {reference}, {len(first.differences)} pairs of equal seed",
        loc="left",
        fontsize=15,
        color=_TEXT,
        pad=44 if margin else 28,
    )
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
    axis.grid(axis="x", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=12)
    axis.spines[["top", "right", "left"]].set_visible(False)
    picture.savefig(path, dpi=150)
    return True


def _said(result: equivalence.Equivalence, unit: int) -> str:
    """The numbers of a line, and the verdict where there is one."""
    mean, low, high = (
        round(value * unit, 2) + 0.0 for value in (result.mean, *result.interval_90)
    )
    numbers = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "\N{MINUS SIGN}")
    if result.verdict == equivalence.EQUIVALENT:
        p = "p < 0.001" if result.p < 0.001 else f"p = {result.p:.2g}"
        return f"{numbers}\n{result.verdict}, {p}"
    return f"{numbers}\n{result.verdict}" if result.verdict else numbers
