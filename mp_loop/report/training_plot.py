"""The picture of runs: loss, accuracy and loss scale over their steps.

    training_plot.draw_run(output_dir)                  # training.png of one run
    training_plot.draw(path, [RecordedRun(label, metrics, evaluations), ...])

Runs with the same label have the same colour.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mp_loop.rendering import figures
from mp_loop.report import recorded_runs, sections
from mp_loop.run import records

if TYPE_CHECKING:
    from matplotlib import axes, figure

TRAINING_FILE = "training.png"


def draw_run(
    output_dir: str | os.PathLike[str], run: recorded_runs.RecordedRun | None = None
) -> str | None:
    """Draws training.png of a run.

    Args:
      output_dir: the run folder.
      run: what it holds, if it was read before.

    Returns:
      Its path; None, and draws nothing, where matplotlib is missing.
    """
    path = os.path.join(output_dir, TRAINING_FILE)
    run = run or recorded_runs.RecordedRun.read(output_dir)
    title = sections.run_title(sections.read_flags(pathlib.Path(output_dir)))
    return path if draw(path, [run], title) else None


def draw(
    path: str | os.PathLike[str],
    runs: Sequence[recorded_runs.RecordedRun],
    title: str = "",
) -> bool:
    """Draws the curves of runs.

    A cross marks a logged line since whose predecessor at least one step was
    skipped.

    Args:
      path: of the PNG file.
      runs: what they recorded.
      title: says what was trained.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    return figures.draw(path, (8, 8), lambda picture: _fill(picture, runs, title))


def _fill(
    picture: figure.Figure, runs: Sequence[recorded_runs.RecordedRun], title: str
) -> None:
    """Draws on an empty figure."""
    from matplotlib import ticker

    picture.suptitle(title or None, x=0.01, ha="left")
    losses, metrics, scales = picture.subplots(3, 1, sharex=True)
    key = recorded_runs.metric_key(runs)
    metric = records.metric_title(key)
    labels = list(dict.fromkeys(run.label for run in runs))
    for index, run in enumerate(runs):
        color = f"C{labels.index(run.label)}"
        first = all(run.label != other.label for other in runs[:index])
        # matplotlib hides a label that starts with an underscore.
        label = run.label if first and run.label else "_"
        style = {"color": color, "alpha": 0.9 if first else 0.5, "linewidth": 1.4}
        steps = [line["step"] for line in run.metrics]
        loss = recorded_runs.column(run.metrics, "loss")
        losses.plot(steps, loss, label=label, **style)
        evaluated = [line["step"] for line in run.evaluations]
        dots = {"marker": "o", "markersize": 4, **style}
        evaluation = recorded_runs.column(run.evaluations, "eval_loss")
        losses.plot(evaluated, evaluation, linestyle="--", **dots)
        measured = recorded_runs.column(run.metrics, records.training_key(key))
        metrics.plot(steps, measured, **style)
        evaluation = recorded_runs.column(run.evaluations, key)
        metrics.plot(evaluated, evaluation, linestyle="--", **dots)
        scale = recorded_runs.column(run.metrics, "loss_scale")
        scales.step(steps, scale, where="post", **style)
        _mark_skips(scales, run, "crimson" if len(labels) == 1 else color)
    losses.set_title("Loss: training (line), evaluation (dashes)", loc="left")
    losses.set_ylabel("loss")
    both = any(records.training_key(key) in x for run in runs for x in run.metrics)
    title = f"{metric[0].upper()}{metric[1:]}: training (line), evaluation (dashes)"
    metrics.set_title(title if both else f"Evaluation: {metric}", loc="left")
    metrics.set_ylabel(metric)
    scales.set_ylabel("loss scale")
    scales.set_title(f"Loss scale{_note(runs)}", loc="left")
    _scale_axis(scales, runs)
    scales.set_xlabel("step")
    scales.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for axis in (losses, metrics, scales):
        axis.grid(alpha=0.3)
        figures.hide_spines(axis)
    if any(labels):
        losses.legend(frameon=False)


def _mark_skips(axis: axes.Axes, run: recorded_runs.RecordedRun, color: str) -> None:
    skips = recorded_runs.skips(run.metrics)
    axis.plot(
        [skip.step for skip in skips],
        [skip.loss_scale for skip in skips],
        linestyle="none",
        marker="x",
        markersize=7,
        markeredgewidth=1.6,
        color=color,
    )


def _note(runs: Sequence[recorded_runs.RecordedRun]) -> str:
    """What the crosses mean, where there are any."""
    count = sum(s.count for run in runs for s in recorded_runs.skips(run.metrics))
    how_many = f"{count} " if len(runs) == 1 else ""
    return f" (crosses: {how_many}skipped steps)" if count else ""


def _scale_axis(axis: axes.Axes, runs: Sequence[recorded_runs.RecordedRun]) -> None:
    """At least two octaves, so that a constant scale gets an axis too."""
    axis.set_yscale("log", base=2)
    values = [
        value
        for run in runs
        for value in recorded_runs.column(run.metrics, "loss_scale")
        if math.isfinite(value) and value > 0
    ]
    if values:
        axis.set_ylim(min(values) / 2, max(values) * 2)
