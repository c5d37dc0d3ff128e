"""What a probe observed, as a JSON object: a line of `numerics.jsonl`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from mp_loop.config import json_values
from mp_loop.numerics import float_format, histogram, observation

# A suitable loss scale loses less than this share of the nonzero gradients.
SHARE = 0.01


def summarize(
    observed: observation.Observation, share: float = SHARE
) -> dict[str, json_values.Json]:
    """Summarizes an observation in plain numbers; waits for the device.

    Args:
      observed: what `Probe.look` returned.
      share: the share of a layer's nonzero gradients that a suitable loss scale may
        lose.

    Returns:
      `step`, `loss`, `loss_scale`, `grads_finite`, `precision`, `share`,
      `loss_scales` (from and to, as powers of two: what suits every gradient that
      is stored in 16 bits; None without such gradients), `layers` in order of
      execution and `variables`. A layer has `name`, `type`, `dtype`, `activations`
      and `activation_grads`; a variable `name`, `shape`, `dtype`, `grads` and
      `updates`. For what these hold, see `_entry` and `_updates`.
    """
    raw = observed.on_host()
    scale = float(raw["loss_scale"])
    layers = [
        {
            **dataclasses.asdict(layer),
            "activations": _entry(activations, share),
            "activation_grads": _entry(grads, share, scale),
        }
        for layer, activations, grads in zip(
            observed.layers, raw["activations"], raw["activation_grads"], strict=True
        )
    ]
    variables = [
        {
            "name": variable.path,
            "shape": list(variable.shape),
            "dtype": variable.dtype,
            "grads": _entry(grads, share, scale),
            "updates": _updates(moved),
        }
        for variable, grads, moved in zip(
            observed.variables, raw["grads"], raw["updates"], strict=True
        )
    ]
    common = _common_scales(
        [
            *((layer["dtype"], layer["activation_grads"]) for layer in layers),
            *((variable["dtype"], variable["grads"]) for variable in variables),
        ]
    )
    return {
        "step": int(raw["step"]),
        "loss": float(raw["loss"]),
        "loss_scale": scale,
        "grads_finite": bool(raw["grads_finite"]),
        "precision": observed.half or "float32",
        "share": share,
        "loss_scales": list(common) if common else None,
        "layers": layers,
        "variables": variables,
    }


def _common_scales(
    gradients: Sequence[tuple[str, json_values.Object | None]],
) -> tuple[int, int] | None:
    """The powers of two that suit all gradients, given with the dtypes they are of."""
    # Gradients that are stored in float32 do not limit the scale.
    narrow = [entry for dtype, entry in gradients if dtype != "float32"]
    every = [entry for _, entry in gradients]
    return histogram.common_scales([_range(entry) for entry in narrow or every])


def _entry(
    values: observation.HostCounts | None, share: float, scale: float | None = None
) -> dict[str, json_values.Json] | None:
    """Summarizes the counts of one tensor.

    Args:
      values: what was counted.
      share: as for `summarize`.
      scale: the loss scale; None for activations, which are not scaled.

    Returns:
      `count`; from the 16-bit pass: `inf`, `nan` (how many) and `zero_16` (the share
      that is 0). The rest is from the float32 pass, if there is one, and unscaled:
      `zero` (share), `max`; the shares of the nonzero numbers that float16 would lose
      as zeros without scaling (`underflow_unscaled`) and at the scale (`underflow`),
      that it would keep with fewer bits (`subnormal`), or that would overflow
      (`overflow`); `headroom` (powers of two from the largest to 65504, at the scale;
      None if all numbers are 0); `first` and `histogram`: how many numbers have a
      magnitude of 2^first to 2^(first+1), of twice that, and so on. Gradients have
      `scale_from` and `scale_to`: powers of two, the loss scales that lose less than
      the share. None if nothing was observed here.
    """
    if values is None:
        return None
    inf, nan = (int(n) for n in values["nonfinite"])
    count = int(values["size"])
    entry = {
        "count": count,
        "inf": inf,
        "nan": nan,
        "zero_16": int(values["zeros"]) / max(count, 1),
    }
    if "histogram" not in values:
        return entry
    these = histogram.Histogram(values["histogram"])
    # A scale that is not a power of two counts as the next smaller one.
    power = math.floor(math.log2(scale or 1.0))
    form, nonzero = float_format.FLOAT16, max(these.nonzero, 1)
    largest = float(values["largest"])
    exponents = these.exponents
    first = min(exponents, default=0)
    last = max(exponents, default=-1)
    room = histogram.headroom(largest, form, scale or 1.0)
    if scale is not None:
        bounds = these.scales(form, share) or (None, None)
        entry["scale_from"], entry["scale_to"] = bounds
    return entry | {
        "zero": these.zeros / max(these.count, 1),
        "underflow_unscaled": these.underflows(form) / nonzero,
        "underflow": these.underflows(form, power) / nonzero,
        "subnormal": these.subnormals(form, power) / nonzero,
        "overflow": these.overflows(form, power) / nonzero,
        "max": largest,
        "headroom": room if math.isfinite(room) else None,
        "first": first,
        "histogram": [exponents.get(e, 0) for e in range(first, last + 1)],
    }


def _updates(moved: observation.HostCounts) -> dict[str, json_values.Json]:
    """Summarizes what an update does to a weight.

    Returns:
      `changed` (the share of the numbers that change at all); the shares of these whose
      change is less than half a unit of a 16-bit weight (`below`; 2^-11 of the weight
      in float16) and that would not change a 16-bit weight (`unseen`); `ratio` (the
      norm of the update divided by that of the weight; None for a zero weight).
    """
    changed, below, unseen = (int(n) for n in moved["lost"])
    norm = float(moved["weight_norm"])
    return {
        "changed": changed / max(int(moved["size"]), 1),
        "below": below / max(changed, 1),
        "unseen": unseen / max(changed, 1),
        "ratio": float(moved["update_norm"]) / norm if norm else None,
    }


def _range(entry: json_values.Object | None) -> tuple[int, int] | None:
    if entry is None or entry.get("scale_from") is None:
        return None
    return entry["scale_from"], entry["scale_to"]
