"""Pictures of runs: loss, evaluation accuracy and loss scale over their steps.

plots.draw_run(output_dir)                          # training.png of one run
plots.draw(path, [plots.Curve(label, metrics, evaluations), ...])
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mp_loop.run import records

TRAINING_FILE = "training.png"


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one run contributes to a picture.

    Runs that share a label share a colour and one entry of the legend; a
    single run without a label needs no legend.
    """

    label: str
    metrics: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]


def draw_run(output_dir: str | os.PathLike[str]) -> str | None:
    """Draws training.png of a run.

    Returns:
      Its path; None, and draws nothing, where matplotlib is missing.
    """
    path = os.path.join(output_dir, TRAINING_FILE)
    metrics = records.read_metrics(output_dir)
    curve = Curve("", metrics, records.read_evaluations(output_dir))
    return path if draw(path, [curve]) else None


def draw(path: str | os.PathLike[str], curves: Sequence[Curve]) -> bool:
    """Draws loss, evaluation accuracy and loss scale of runs over their steps.

    A cross marks a logged line since whose predecessor at least one step was
    skipped.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    try:
        from matplotlib import figure, ticker
    except ImportError:
        return False
    picture = figure.Figure(figsize=(8, 8), layout="constrained")
    axes = picture.subplots(3, 1, sharex=True)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    scales, skips = [], 0
    for index, curve in enumerate(curves):
        color = f"C{labels.index(curve.label)}"
        first = all(curve.label != other.label for other in curves[:index])
        # matplotlib hides a label that starts with an underscore.
        label = curve.label if first and curve.label else "_"
        style = {"color": color, "alpha": 0.9 if first else 0.5, "linewidth": 1.4}
        steps = [line["step"] for line in curve.metrics]
        axes[0].plot(steps, _column(curve.metrics, "loss"), label=label, **style)
        axes[1].plot(
            [line["step"] for line in curve.evaluations],
            _column(curve.evaluations, "eval_accuracy"),
            marker="o",
            markersize=4,
            **style,
        )
        scale = _column(curve.metrics, "loss_scale")
        axes[2].step(steps, scale, where="post", **style)
        scales += [value for value in scale if math.isfinite(value) and value > 0]
        at = _skips(curve.metrics)
        skips += sum(count for _, _, count in at)
        axes[2].plot(
            [step for step, _, _ in at],
            [value for _, value, _ in at],
            linestyle="none",
            marker="x",
            markersize=7,
            markeredgewidth=1.6,
            color="crimson" if len(labels) == 1 else color,
        )
    axes[0].set_title("Training loss", loc="left")
    axes[1].set_title("Evaluation accuracy", loc="left")
    how_many = f"{skips} " if len(curves) == 1 else ""
    note = f" (crosses: {how_many}skipped steps)" if skips else ""
    axes[2].set_title(f"Loss scale{note}", loc="left")
    axes[2].set_yscale("log", base=2)
    if scales:  # At least two octaves, so that a constant scale gets an axis too.
        axes[2].set_ylim(min(scales) / 2, max(scales) * 2)
    axes[2].set_xlabel("step")
    axes[2].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if any(labels):
        axes[0].legend(frameon=False)
    picture.savefig(path, dpi=150)
    return True


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One value of every line; NaN, a gap in the curve, where it has none."""
    values = [line.get(name) for line in lines]
    return [math.nan if value is None else float(value) for value in values]


def _skips(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, int]]:
    """(step, loss scale, number of skips since the line before), where any."""
    marks, before = [], 0
    scales = _column(metrics, "loss_scale")
    for line, scale in zip(metrics, scales, strict=True):
        if line["skipped_steps"] > before:
            count = line["skipped_steps"] - before
            marks.append((line["step"], scale, count))
        before = line["skipped_steps"]
    return marks
