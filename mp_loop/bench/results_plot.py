"""The picture of a benchmark: bars of time and memory ratios."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mp_loop.config import json_values
from mp_loop.rendering import figures

if TYPE_CHECKING:
    from matplotlib import axes, figure

Results = Mapping[str, json_values.Object]  # of one workload


def draw(path: str | os.PathLike[str], results: Mapping[str, Results]) -> bool:
    """Draws the ratios of each workload, time on the left and memory on the right.

    Args:
      path: of the PNG file.
      results: for each workload what `measure.measure` returns.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    height = 1 + sum(0.5 + 0.35 * len(arms) for arms in results.values())
    return figures.draw(path, (9, height), lambda picture: _fill(picture, results))


def _fill(picture: figure.Figure, results: Mapping[str, Results]) -> None:
    grid = picture.subplots(
        len(results), 2, squeeze=False, sharex="col", sharey="row",
        height_ratios=[len(arms) + 1 for arms in results.values()],
    )  # fmt: skip
    for row, (workload, arms) in zip(grid, results.items(), strict=True):
        done = {name: arm for name, arm in arms.items() if "failed" not in arm}
        times = [arm["time_ratio"]["median"] for arm in done.values()]
        memories = [arm["step_bytes_ratio"] or 0 for arm in done.values()]
        _bars(row[0], list(done), times, f"{workload}: time")
        _bars(row[1], list(done), memories, f"{workload}: memory of a step")
        row[0].invert_yaxis()
    for axis in grid[-1]:
        axis.set_xlabel("ratio to the first arm")


def _bars(
    axis: axes.Axes, names: Sequence[str], ratios: Sequence[float], title: str
) -> None:
    colors = ["C0" if name.startswith("custom") else "0.7" for name in names]
    bars = axis.barh(names, ratios, color=colors)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.axvline(1, color="0.3", linewidth=0.8)
    axis.set_title(title, loc="left", fontsize=9)
    figures.hide_spines(axis)
    axis.margins(x=0.12)
