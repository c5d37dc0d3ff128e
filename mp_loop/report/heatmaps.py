"""Pictures of what 16 bits do to a model: over its layers and steps, or exponents.

    draw_steps("numerics.png", lines)      # layers and probed steps
    draw_exponents("exponents.png", line)  # layers and exponents, one step

A line is what `numerics.probe_report.summarize` returns and numerics.jsonl holds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

# Exponents of float16: half of what its smallest and its largest number round to.
_UNDERFLOW, _OVERFLOW = -25, 16


def draw_steps(
    path: str | os.PathLike[str], lines: Sequence[Mapping[str, Any]]
) -> bool:
    """Draws how far each layer is from float16's limits, over the probed steps.

    A cross marks inf or NaN in the 16-bit pass.

    Args:
      path: of the PNG file.
      lines: at least one, all of the same model, in order of their steps.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    try:
        from matplotlib import figure
    except ImportError:
        return False
    names = [layer["name"] for layer in lines[0]["layers"]]
    columns = [[line["layers"][i] for line in lines] for i in range(len(names))]
    panels = (
        ("activations", "headroom", "Activations: doublings left to 65504"),
        ("activation_grads", "headroom", "Their gradients, scaled: doublings left"),
        ("activation_grads", "underflow", "Their gradients, scaled: share lost"),
    )
    picture = figure.Figure(figsize=(13, 2.2 + 0.24 * len(names)), layout="constrained")
    axes = picture.subplots(1, len(panels), sharey=True)
    for axis, (values, measure, title) in zip(axes, panels, strict=True):
        rows = [
            [_number(layer[values], measure) for layer in column] for column in columns
        ]
        share = measure == "underflow"
        limits = {"vmin": 0, "vmax": 0.1} if share else {"vmin": -2, "vmax": 16}
        image = axis.imshow(
            rows,
            aspect="auto",
            interpolation="nearest",
            cmap="magma_r" if share else "RdYlGn",
            **limits,
        )
        picture.colorbar(image, ax=axis, shrink=0.8, extend="max" if share else "both")
        marks = [
            (x, y)
            for y, column in enumerate(columns)
            for x, layer in enumerate(column)
            if layer[values] and layer[values]["inf"] + layer[values]["nan"]
        ]
        axis.plot(
            [x for x, _ in marks],
            [y for _, y in marks],
            linestyle="none",
            marker="x",
            color="black",
        )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("step")
        some = range(0, len(lines), math.ceil(len(lines) / 8))
        axis.set_xticks(list(some), [str(lines[i]["step"]) for i in some])
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    if any(layer["dtype"] == "float32" for layer in lines[0]["layers"]):
        for label, layer in zip(
            axes[0].get_yticklabels(), lines[0]["layers"], strict=True
        ):
            label.set_color("gray" if layer["dtype"] == "float32" else "black")
        picture.supxlabel(
            "gray names: outputs in float32; crosses: inf or NaN", fontsize=8
        )
    picture.savefig(path, dpi=120)
    return True


def draw_exponents(path: str | os.PathLike[str], line: Mapping[str, Any]) -> bool:
    """Draws where the numbers of each layer lie among the exponents, in one step.

    Gradients are drawn as scaled. Lines mark what float16 loses as zero, keeps with
    fewer bits, and cannot hold.

    Args:
      path: of the PNG file.
      line: the step.

    Returns:
      False, and draws nothing, where matplotlib is missing.
    """
    try:
        from matplotlib import figure
    except ImportError:
        return False
    names = [layer["name"] for layer in line["layers"]]
    power = math.floor(math.log2(line["loss_scale"]))
    panels = (
        ("activations", 0, "Activations"),
        ("activation_grads", power, f"Their gradients, times 2^{power}"),
    )
    picture = figure.Figure(figsize=(11, 2.2 + 0.24 * len(names)), layout="constrained")
    axes = picture.subplots(1, len(panels), sharey=True)
    low, high = -50, 30
    for axis, (values, shift, title) in zip(axes, panels, strict=True):
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
            extent=(low, high, len(names) - 0.5, -0.5),
        )
        for place, style in ((_UNDERFLOW, "-"), (-14, ":"), (_OVERFLOW, "-")):
            axis.axvline(place, color="crimson", linestyle=style, linewidth=1.2)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("log2 of the magnitude (red: limits of float16)")
    picture.colorbar(image, ax=axes, shrink=0.8, extend="max", label="share")
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    picture.savefig(path, dpi=120)
    return True


def _number(entry: Mapping[str, Any] | None, measure: str) -> float:
    """A measure, NaN (a gap) where there is none."""
    value = None if entry is None else entry.get(measure)
    return math.nan if value is None else float(value)


def _shares(entry: Mapping[str, Any] | None, low: int, high: int) -> list[float]:
    """The share of the nonzero numbers at each exponent from `low`, below `high`."""
    if entry is None or not entry.get("histogram"):
        return [math.nan] * (high - low)
    total = sum(entry["histogram"])
    counts = dict(enumerate(entry["histogram"], start=entry["first"]))
    return [counts.get(e, 0) / total or math.nan for e in range(low, high)]
