"""What to change where 16 bits are not enough, found by measuring.

    scale = scale_to_try(observations, "float16")
    meter = precision_errors.ErrorMeter(model, loss, batches, "float16", scale)
    found = advise(meter, observations, total_steps, Tolerance(0.05, 0.5))
    found.flags        # ["--precision=float16", "--float32_layers=^(square)$", ...]

Observations are what `probe_report.summarize` returns, at several steps of a training.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

from mp_loop.config import json_values
from mp_loop.numerics import layer_search, precision_errors, probe_tables, scale_advice
from mp_loop.rendering import numbers, tables
from mp_loop.step import loss_scale


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The largest relative errors that are allowed.

    Attributes:
      outputs: of the model's outputs.
      grads: of the gradient of any variable.
    """

    outputs: float
    grads: float

    def allows(self, errors: precision_errors.PassErrors) -> bool:
        """Tells whether errors are small enough."""
        return errors.within(self.outputs, self.grads)


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to change.

    Attributes:
      flags: the flags of a training.
      text: what was measured and why these flags were chosen, for a terminal.
      findings: the same as a JSON object.
    """

    flags: list[str]
    text: str
    findings: dict[str, json_values.Json]


def scale_to_try(observations: Sequence[json_values.Object], precision: str) -> float:
    """Returns the loss scale at which errors should be measured first."""
    if precision != "float16":
        return 1.0
    limits = scale_advice.limits(observations)
    return scale_advice.initial_scale(loss_scale.DynamicLossScale(), limits)


def advise(
    meter: precision_errors.ErrorMeter,
    observations: Sequence[json_values.Object],
    total_steps: int,
    tolerance: Tolerance,
) -> Advice | None:
    """Finds layers for float32, constants of the loss scale, and the safer precision.

    Args:
      meter: measures the model in the precision that the user asked for.
      observations: of the model, in that precision.
      total_steps: length of the run.
      tolerance: what errors are allowed.

    Returns:
      The advice; None if not even float32 in every layer is within the tolerance.
    """
    layers = layer_search.fewest_layers(
        meter.candidates, lambda names: tolerance.allows(meter.errors(names))
    )
    if layers is None:
        return None
    precision = meter.precision
    flags = [f"--precision={precision}"]
    errors = {precision: meter.errors(())}
    if layers.names:
        flags.append(f"--float32_layers={layer_search.regex(layers.names)}")
        errors[f"{precision} as advised"] = meter.errors(layers.names)
    paragraphs = [_about_layers(layers, meter)]
    more = {}
    if precision == "float16":
        # Layers in float32 do not limit the scale.
        limits = scale_advice.limits(observations, layers.names)
        first, interval = _scale_constants(limits, total_steps)
        flags += [f"--initial_scale={first:.10g}", f"--growth_interval={interval}"]
        paragraphs.append(_about_scale(limits, first, interval, total_steps))
        errors["bfloat16"] = other = meter.at("bfloat16", 1.0).errors(())
        safer = bool(layers.names) and tolerance.allows(other)
        paragraphs.append(_about_bfloat16(safer, tolerance.allows(other)))
        more = {"initial_scale": first, "growth_interval": interval}
        more["bfloat16_is_safer"] = safer
    findings = {
        "flags": flags,
        "float32_layers": list(layers.names),
        "fewest": layers.fewest,
        "measurements": meter.evaluations,
        "bound": tolerance.outputs,
        "grad_bound": tolerance.grads,
        "reference": meter.reference,
        "errors": {name: dataclasses.asdict(e) for name, e in errors.items()},
    }
    lines = [_error_table(errors, tolerance, meter.reference)]
    lines += [textwrap.fill(text, probe_tables.LINE_WIDTH) for text in paragraphs]
    return Advice(flags, "\n".join(lines), findings | more)


def _scale_constants(
    limits: Sequence[scale_advice.StepLimits], total_steps: int
) -> tuple[float, int]:
    """Returns the initial scale and the growth interval that fit the limits."""
    rule = loss_scale.DynamicLossScale()
    first = scale_advice.initial_scale(rule, limits)
    rule = dataclasses.replace(rule, initial_scale=first)
    return first, scale_advice.growth_interval(rule, limits, total_steps)


def _about_layers(
    layers: layer_search.LayerSet, meter: precision_errors.ErrorMeter
) -> str:
    if not layers.names:
        return "No layer needs float32: all errors are within the bounds."
    how = (
        "every smaller set was tried"
        if layers.fewest
        else "none of them can be left out; not every smaller set was tried"
    )
    return (
        f"Keep in float32: {', '.join(layers.names)} ({len(layers.names)} of "
        f"{len(meter.candidates)} layers; {how}; {meter.evaluations} measurements)."
    )


def _about_scale(
    limits: Sequence[scale_advice.StepLimits], first: float, interval: int, total: int
) -> str:
    if not limits:
        return "No gradient is stored in 16 bits: no loss scale is needed."
    low, high = scale_advice.common(limits)
    suits = (
        f"Loss scales from 2^{low} to 2^{high} suit every inspected step"
        if low <= high
        else f"No loss scale suits every inspected step (2^{low} at least, 2^{high} "
        "at most)"
    )
    return (
        f"{suits}: start at {numbers.power_of_two(first)}. Of the growth intervals, "
        f"{interval} lost the fewest of {total} steps when the rule was simulated "
        "against these limits."
    )


def _about_bfloat16(safer: bool, allowed: bool) -> str:
    if safer:
        return (
            "bfloat16 would be safer: its errors are within the bounds without any "
            "layer in float32, and it needs no loss scale (--precision=bfloat16). "
            "python -m mp_loop.doctor tells whether it is as fast here."
        )
    if allowed:
        return "bfloat16 would be within the bounds too, with coarser rounding."
    return "bfloat16 would not be safer: its rounding is outside the bounds."


def _error_table(
    errors: Mapping[str, precision_errors.PassErrors],
    tolerance: Tolerance,
    reference: str,
) -> str:
    rows = [["relative error of", "outputs", "gradients", "worst in"]]
    for name, found in errors.items():
        rows.append(
            [name, f"{found.outputs:.1e}", f"{found.grads:.1e}", found.variable]
        )
    rows.append(["allowed", f"{tolerance.outputs:.1e}", f"{tolerance.grads:.1e}", ""])
    table = tables.columns(rows, line_width=probe_tables.LINE_WIDTH)
    return "\n".join(["", f"Against {reference}:", *table, ""])
