"""Pictures of what 16 bits do to a model: over its layers and steps, or exponents.

    draw_steps("numerics.png", lines)      # layers and probed steps
    draw_exponents("exponents.png", line)  # layers and exponents, one step

A line is what `numerics.probe_report.summarize` returns, or what numerics.jsonl
holds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mp_loop.config import json_values
from mp_loop.rendering import figures, numbers

if TYPE_CHECKING:
    from matplotlib import axes, figure

Line = json_values.Object

# Exponents of float16: half of what its smallest and its largest number round to, and
# its smallest normal number.
_UNDERFLOW, _SMALLEST_NORMAL, _OVERFLOW = -25, -14, 16
_SHOWN_EXPONENTS = -50, 30

# Values, measure and title of each panel.
_PANELS = (
    ("activations", "headroom", "Activations: doublings left to 65504"),
    ("activation_grads", "headroom", "Their gradients, scaled: doublings left"),
    ("activation_grads", "underflow", "Their gradients, scaled: share lost"),
)


def draw_steps(path: str | os.PathLike[str], lines: Sequence[Line]) -> bool:
    """Draws how far each layer is from float16's limits, over the probed steps.

    A cross marks inf or NaN in the 16-bit pass.

    Args:
      path: of the PNG file.
      lines: at least one, all of the same model, in order of their steps.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    size = (13, 2.2 + 0.24 * len(lines[0]["layers"]))
    return figures.draw(path, size, lambda picture: _fill_steps(picture, lines), 120)


def _fill_steps(picture: figure.Figure, lines: Sequence[Line]) -> None:
    layers = lines[0]["layers"]
    panels = picture.subplots(1, len(_PANELS), sharey=True)
    for axis, (values, measure, title) in zip(panels, _PANELS, strict=True):
        _draw_panel(picture, axis, lines, values, measure)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("step")
        some = range(0, len(lines), math.ceil(len(lines) / 8))
        axis.set_xticks(list(some), [str(lines[i]["step"]) for i in some])
    _name_layers(panels[0], layers)
    if any(layer.get("dtype") == "float32" for layer in layers):
        for label, layer in zip(panels[0].get_yticklabels(), layers, strict=True):
            label.set_color("gray" if layer.get("dtype") == "float32" else "black")
        picture.supxlabel(
            "gray names: outputs in float32; crosses: inf or NaN", fontsize=8
        )


def _draw_panel(
    picture: figure.Figure,
    axis: axes.Axes,
    lines: Sequence[Line],
    values: str,
    measure: str,
) -> None:
    """Draws one measure of one kind of values."""
    entries = [
        [line["layers"][i].get(values) or {} for line in lines]
        for i in range(len(lines[0]["layers"]))
    ]
    share = measure == "underflow"
    low, high = (0, 0.1) if share else (-2, 16)
    image = axis.imshow(
        [[numbers.or_nan(entry.get(measure)) for entry in row] for row in entries],
        aspect="auto",
        interpolation="nearest",
        cmap="magma_r" if share else "RdYlGn",
        vmin=low,
        vmax=high,
    )
    picture.colorbar(image, ax=axis, shrink=0.8, extend="max" if share else "both")
    marks = [
        (x, y)
        for y, row in enumerate(entries)
        for x, entry in enumerate(row)
        if entry.get("inf") or entry.get("nan")
    ]
    axis.plot(
        [x for x, _ in marks],
        [y for _, y in marks],
        linestyle="none",
        marker="x",
        color="black",
    )


def draw_exponents(path: str | os.PathLike[str], line: Line) -> bool:
    """Draws where the numbers of each layer lie among the exponents, in one step.

    Gradients are drawn as scaled. Lines mark what float16 rounds to zero, keeps with
    fewer bits, and cannot hold.

    Args:
      path: of the PNG file.
      line: the step.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    size = (11, 2.2 + 0.24 * len(line["layers"]))
    return figures.draw(path, size, lambda picture: _fill_exponents(picture, line), 120)


def _fill_exponents(picture: figure.Figure, line: Line) -> None:
    power = math.floor(math.log2(line["loss_scale"]))
    shown = (
        ("activations", 0, "Activations"),
        ("activation_grads", power, f"Their gradients, times 2^{power}"),
    )
    panels = picture.subplots(1, len(shown), sharey=True)
    low, high = _SHOWN_EXPONENTS
    for axis, (values, shift, title) in zip(panels, shown, strict=True):
        rows = [
            _shares(layer[values], low - shift, high - shift)
            for layer in line["layers"]
        ]
        image = axis.imshow(
            rows,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=0,
            vmax=0.3,
            extent=(low, high, len(rows) - 0.5, -0.5),
        )
        limits = ((_UNDERFLOW, "-"), (_SMALLEST_NORMAL, ":"), (_OVERFLOW, "-"))
        for place, style in limits:
            axis.axvline(place, color="crimson", linestyle=style, linewidth=1.2)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("log2 of the magnitude (red: limits of float16)")
    picture.colorbar(image, ax=panels, shrink=0.8, extend="max", label="share")
    _name_layers(panels[0], line["layers"])


def _name_layers(axis: axes.Axes, layers: Sequence[Line]) -> None:
    names = [layer["name"] for layer in layers]
    axis.set_yticks(range(len(names)), names, fontsize=8)


def _shares(entry: json_values.Object | None, low: int, high: int) -> list[float]:
    """The share of the nonzero numbers at each exponent from `low`, below `high`."""
    if entry is None or not entry.get("histogram"):
        return [math.nan] * (high - low)
    total = sum(entry["histogram"])
    counts = dict(enumerate(entry["histogram"], start=entry["first"]))
    return [counts.get(e, 0) / total or math.nan for e in range(low, high)]
