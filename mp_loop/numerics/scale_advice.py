"""Which initial loss scale and growth interval fit what a probe observed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mp_loop.config import json_values
from mp_loop.numerics import histogram
from mp_loop.step import loss_scale


class StepLimits(NamedTuple):
    """The loss scales that suit one step, as exponents of two.

    Attributes:
      step: the step.
      smallest: a smaller scale loses too many gradients.
      largest: a larger scale overflows. No scale suits if it is below `smallest`.
    """

    step: int
    smallest: int
    largest: int


def common(limits: Sequence[StepLimits]) -> tuple[int, int]:
    """Returns the smallest and the largest scale that suit every step."""
    return max(step.smallest for step in limits), min(step.largest for step in limits)


def limits(
    lines: Sequence[json_values.Object], float32_layers: Sequence[str] = ()
) -> list[StepLimits]:
    """Reads which loss scales suit a model from observations of it.

    Args:
      lines: observations, as `probe_report.summarize` returns them.
      float32_layers: names of layers that will be in float32, and are ignored.

    Returns:
      The limits of each observed step that has gradients in 16 bits.
    """
    found = []
    for line in lines:
        entries = [
            layer["activation_grads"]
            for layer in line["layers"]
            if layer["dtype"] != "float32"
            and layer["name"].split("/")[-1].split("#")[0] not in float32_layers
        ]
        entries += [
            variable["grads"]
            for variable in line["variables"]
            if variable["dtype"] != "float32"
            and not set(variable["name"].split("/")) & set(float32_layers)
        ]
        scales = histogram.common_scales(
            [
                (entry["scale_from"], entry["scale_to"])
                for entry in entries
                if entry and entry.get("scale_from") is not None
            ]
        )
        if scales:
            found.append(StepLimits(line["step"], *scales))
    return found


def initial_scale(
    rule: loss_scale.DynamicLossScale, limits: Sequence[StepLimits]
) -> float:
    """Returns the scale to start at: two doublings below the largest that suits.

    It is not below the smallest that suits, if any scale suits, and it is within the
    bounds of the rule. Without limits it is the rule's own initial scale.
    """
    if not limits:
        return rule.initial_scale
    low, high = common(limits)
    power = max(high - 2, min(low, high))
    return min(max(2.0**power, rule.min_scale), rule.max_scale)


def growth_interval(
    rule: loss_scale.DynamicLossScale,
    limits: Sequence[StepLimits],
    steps: int,
    choices: Sequence[int] = (50, 100, 200, 500, 1000, 2000),
) -> int:
    """Simulates the rule against measured limits and returns the best interval.

    Args:
      rule: the rule, with the initial scale that will be used.
      limits: the limits of the observed steps. They are interpolated in between, and do
        not change after the last one.
      steps: length of the run.
      choices: intervals to simulate.

    Returns:
      The interval with the fewest lost steps (skipped, or at too small a scale); of
      several, the longest.
    """
    if not limits:
        return rule.growth_interval
    known, smallest, largest = zip(*limits, strict=True)
    low, high = (np.interp(np.arange(steps), known, x) for x in (smallest, largest))
    return min(
        sorted(choices, reverse=True),
        key=lambda interval: lost_steps(rule, interval, low, high),
    )


def lost_steps(
    rule: loss_scale.DynamicLossScale, interval: int, low: np.ndarray, high: np.ndarray
) -> int:
    """Counts the steps that a dynamic scale skips, or takes at too small a scale.

    Args:
      rule: its factors, bounds and initial scale are used, not its hysteresis.
      interval: the growth interval.
      low: [steps], the smallest power of two that suits each step.
      high: [steps], the largest one; a step at a larger scale is skipped.
    """
    up, down = math.log2(rule.growth_factor), math.log2(rule.backoff_factor)
    least, most = math.log2(rule.min_scale), math.log2(rule.max_scale)
    power, good, lost = math.log2(rule.initial_scale), 0, 0
    for smallest, largest in zip(low, high, strict=True):
        if power > largest:
            power, good, lost = max(power + down, least), 0, lost + 1
            continue
        lost += power < smallest
        good += 1
        if good >= interval:
            power, good = min(power + up, most), 0
    return int(lost)
