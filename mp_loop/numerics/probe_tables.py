"""One observation of a probe, laid out for a terminal."""

from __future__ import annotations

from mp_loop.config import json_values
from mp_loop.rendering import numbers, tables

LINE_WIDTH = 96


def report(name: str, line: json_values.Object) -> str:
    """Lays an observation out as two tables, at most `LINE_WIDTH` columns wide.

    Args:
      name: what was observed, such as "mlp on mnist".
      line: the observation, as `probe_report.summarize` returns it.
    """
    scale = numbers.power_of_two(line["loss_scale"])
    title = f"{name}, {line['precision']}, step {line['step']}, loss scale {scale}"
    return "\n".join(
        [
            "",
            title,
            "",
            f"Layers: activations | gradients of activations, times {scale}",
            *tables.columns(_layers(line), line_width=LINE_WIDTH),
            "",
            f"Variables: gradients, times {scale} | updates",
            *tables.columns(_variables(line), line_width=LINE_WIDTH),
            "",
            _suitable_scales(line),
        ]
    )


def _layers(line: json_values.Object) -> list[list[str]]:
    rows = [
        ["layer", "in", "max", "room", "inf", "nan", "|", "room", "lost x1", "lost",
         "inf", "nan", "scales"]
    ]  # fmt: skip
    for layer in line["layers"]:
        here, back = layer["activations"], layer["activation_grads"]
        rows.append(
            [
                layer["name"],
                _short(layer["dtype"]),
                _number(here, "max", "{:.3g}"),
                _number(here, "headroom", "{:.1f}"),
                _count(here, "inf"),
                _count(here, "nan"),
                "|",
                _number(back, "headroom", "{:.1f}"),
                _share(back, "underflow_unscaled"),
                _share(back, "underflow"),
                _count(back, "inf"),
                _count(back, "nan"),
                _scales(back),
            ]
        )
    return rows


def _variables(line: json_values.Object) -> list[list[str]]:
    half = "2^-8" if line["precision"] == "bfloat16" else "2^-11"
    rows = [
        ["variable", "in", "room", "lost x1", "lost", "inf", "nan", "scales", "|",
         "update", f"< {half}", "unseen"]
    ]  # fmt: skip
    for variable in line["variables"]:
        grads, updates = variable["grads"], variable["updates"]
        rows.append(
            [
                variable["name"],
                _short(variable["dtype"]),
                _number(grads, "headroom", "{:.1f}"),
                _share(grads, "underflow_unscaled"),
                _share(grads, "underflow"),
                _count(grads, "inf"),
                _count(grads, "nan"),
                _scales(grads),
                "|",
                _number(updates, "ratio", "{:.1e}"),
                _share(updates, "below"),
                _share(updates, "unseen"),
            ]
        )
    return rows


def _suitable_scales(line: json_values.Object) -> str:
    common = line["loss_scales"]
    if common is None:
        return "There are no gradients."
    if common[0] > common[1]:
        return (
            f"In float16, no loss scale suits every gradient: one needs at least "
            f"2^{common[0]}, another at most 2^{common[1]}."
        )
    return (
        f"In float16, loss scales from 2^{common[0]} to 2^{common[1]} lose less "
        f"than {line['share']:.2g} of every gradient."
    )


def _number(entry: json_values.Object | None, name: str, form: str) -> str:
    value = None if entry is None else entry.get(name)
    return "-" if value is None else form.format(value)


def _share(entry: json_values.Object | None, name: str) -> str:
    """A share in percent; nearly 0 or nearly 100 is not shown as exactly that."""
    value = None if entry is None else entry.get(name)
    if value is None:
        return "-"
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}%" if value else "0"


def _count(entry: json_values.Object | None, name: str) -> str:
    value = 0 if entry is None else entry[name]
    return f"{value:.0e}".replace("+0", "") if value > 99999 else str(value or "")


def _scales(entry: json_values.Object | None) -> str:
    if entry is None or entry.get("scale_from") is None:
        return "-"
    low, high = entry["scale_from"], entry["scale_to"]
    return f"{low}..{high}" if low <= high else f"none ({low}>{high})"


def _short(dtype: str) -> str:
    return {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}.get(dtype, dtype)
