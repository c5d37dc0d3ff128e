"""Sections of a report that are charts: curves of runs, and heat maps of numerics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from mp_loop.config import json_values
from mp_loop.rendering import numbers
from mp_loop.report import heat_map, line_chart, recorded_runs
from mp_loop.run import records

_MOST_LOOKS = 40  # columns of a heat map

# Values, measure, title; the limits of the colours, from good to bad.
_PANELS = (
    ("activations", "headroom", "Activations: doublings left to 65504", 16, 0),
    ("activation_grads", "headroom", "Scaled gradients: doublings left", 16, 0),
    ("activation_grads", "underflow", "Scaled gradients: share lost", 0, 0.1),
)


def curves(runs: Sequence[recorded_runs.RecordedRun]) -> str:
    """The metrics and evaluations of one or more runs over their steps."""
    marks = [
        line_chart.Mark(
            skips.step,
            skips.loss_scale,
            f"{run.label} step {skips.step}: {skips.count} skipped".strip(),
        )
        for run in runs
        for skips in recorded_runs.skips(run.metrics)
    ]
    crosses = " (crosses: skipped steps)" if marks else ""
    scales = _metrics(runs, "loss_scale", stairs=True)
    key = recorded_runs.metric_key(runs)
    charts = [
        *_of_both(runs, "loss", "loss", "eval_loss"),
        *_of_both(runs, records.metric_title(key), records.training_key(key), key),
        line_chart.draw(f"Loss scale{crosses}", scales, marks, log=2),
        line_chart.draw("Gradient norm", _metrics(runs, "grad_norm"), log=10),
        line_chart.draw("Examples/s", _metrics(runs, "examples_per_second")),
        line_chart.draw("Learning rate", _metrics(runs, "learning_rate")),
    ]
    if any("input_wait" in line for run in runs for line in run.metrics):
        waits = _metrics(runs, "input_wait")
        charts.append(line_chart.draw("Share of the time waiting for data", waits))
    if any("memory_bytes" in line for run in runs for line in run.metrics):
        memory = _metrics(runs, "memory_bytes")
        charts.append(line_chart.draw("Memory, bytes", memory))
    return _side_by_side(charts)


def numerics(looks: recorded_runs.Lines) -> str:
    """Heat maps over layers and steps; see `recorded_runs.RecordedRun.looks`."""
    if not looks:
        return ""
    looks = looks[:: math.ceil(len(looks) / _MOST_LOOKS)]
    names = [layer["name"] for layer in looks[0]["layers"]]
    charts = [_panel(looks, names, *panel) for panel in _PANELS]
    return (
        "<h2>Numerics</h2><p>The stronger the colour, the closer to a limit of "
        f"float16; crosses: inf or NaN.</p>{_side_by_side(charts)}"
    )


def _panel(
    looks: recorded_runs.Lines,
    names: Sequence[str],
    values: str,
    measure: str,
    title: str,
    low: float,
    high: float,
) -> str:
    entries: list[list[json_values.Object]] = [
        [look["layers"][i].get(values) or {} for look in looks]
        for i in range(len(names))
    ]
    grid = heat_map.Grid(
        names,
        [look["step"] for look in looks],
        [[numbers.or_nan(entry.get(measure)) for entry in row] for row in entries],
        [
            [bool(entry.get("inf") or entry.get("nan")) for entry in row]
            for row in entries
        ],
    )
    return heat_map.draw(title, grid, low, high)


def _of_both(
    runs: Sequence[recorded_runs.RecordedRun], title: str, training: str, key: str
) -> list[str]:
    """One value in training and in evaluation: of one run in one chart."""
    trained, evaluated = _metrics(runs, training), _evaluations(runs, key)
    if not any(training in line for run in runs for line in run.metrics):
        return [line_chart.draw(f"Evaluation {title}", evaluated)]
    if len(runs) > 1:
        return [
            line_chart.draw(f"Training {title}", trained),
            line_chart.draw(f"Evaluation {title}", evaluated),
        ]
    both = [
        dataclasses.replace(trained[0], label="training"),
        dataclasses.replace(evaluated[0], label="evaluation"),
    ]
    return [line_chart.draw(title[0].upper() + title[1:], both)]


def _metrics(
    runs: Sequence[recorded_runs.RecordedRun], name: str, stairs: bool = False
) -> list[line_chart.Series]:
    return [_series(run.label, run.metrics, name, stairs) for run in runs]


def _evaluations(
    runs: Sequence[recorded_runs.RecordedRun], name: str
) -> list[line_chart.Series]:
    return [_series(run.label, run.evaluations, name) for run in runs]


def _series(
    label: str, lines: recorded_runs.Lines, name: str, stairs: bool = False
) -> line_chart.Series:
    steps = [line["step"] for line in lines]
    return line_chart.Series(label, steps, recorded_runs.column(lines, name), stairs)


def _side_by_side(charts: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(charts)}</div>'
