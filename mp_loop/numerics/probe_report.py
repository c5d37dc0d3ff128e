"""What a probe saw, as plain numbers and plain words.

line = line(sight)          # a JSON object: every layer, every variable
found = origin(sight)       # what was the first thing that was not finite
print(tell(found))          # "forward: 12 of 64 activations of dense are inf"
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from mp_loop.numerics import float_format, histogram

# Less than this share of the nonzero gradients may be lost at a scale that suits.
SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Layer:
    """An observed output: the layer's name and type, and the dtype of the output."""

    name: str
    type: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class Variable:
    """A trained variable; the dtype is of what the forward pass reads."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a probe saw in one step.

    Attributes:
      layers: in order of execution.
      variables: those that are trained.
      owners: by path, the place among `layers` of a variable's layer.
      half: the 16-bit dtype, None in a float32 step.
      counts: tensors, still on the device.
    """

    layers: list[Layer]
    variables: list[Variable]
    owners: dict[str, int]
    half: str | None
    counts: dict[str, Any]


def line(sight: Sight, share: float = SHARE) -> dict[str, Any]:
    """Turns what `Probe.look` saw into plain numbers; waits for the device.

    Args:
      sight: of `look`.
      share: of the nonzero gradients of a layer, how many a suitable loss scale may
        lose.

    Returns:
      `step`, `loss`, `loss_scale`, `grads_finite`, `precision`, `share`,
      `loss_scales` (from and to, as powers of two: what suits every gradient that
      is stored in 16 bits; None where there is none), `layers` in order of
      execution and `variables`. A layer has `name`, `type`, `dtype`, `activations`
      and `activation_grads`; a variable `name`, `shape`, `dtype`, `grads` and
      `updates`. For what these hold, see `_entry` and `_updates`.
    """
    raw = _on_host(sight.counts)
    scale = float(raw["loss_scale"])
    layers = [
        {
            **dataclasses.asdict(layer),
            "activations": _entry(activations, share),
            "activation_grads": _entry(grads, share, scale),
        }
        for layer, activations, grads in zip(
            sight.layers, raw["activations"], raw["activation_grads"], strict=True
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
            sight.variables, raw["grads"], raw["updates"], strict=True
        )
    ]
    gradients = [
        *((layer["dtype"], layer["activation_grads"]) for layer in layers),
        *((variable["dtype"], variable["grads"]) for variable in variables),
    ]
    # What is stored in float32 does not limit the scale.
    narrow = [entry for dtype, entry in gradients if dtype != "float32"]
    common = histogram.common_scales(
        [_range(entry) for entry in narrow or [entry for _, entry in gradients]]
    )
    return {
        "step": int(raw["step"]),
        "loss": float(raw["loss"]),
        "loss_scale": scale,
        "grads_finite": bool(raw["grads_finite"]),
        "precision": sight.half or "float32",
        "share": share,
        "loss_scales": list(common) if common else None,
        "layers": layers,
        "variables": variables,
    }


def origin(sight: Sight, forward: bool = True) -> dict[str, Any]:
    """Finds the first thing that was not finite, in the order of the step.

    Args:
      sight: of a step that was skipped, or not.
      forward: whether the forward pass may be at fault.

    Returns:
      `finite`: whether nothing overflowed, `loss_scale`, and `variables` (by path,
      how many inf and nan its gradient has). If something overflowed, what was
      first: `pass` ("input", "weights", "forward", "loss", "backward" or "update"),
      `layer` and `variable` (names, or None), `values` (what is not finite there),
      `kind` ("infinite", "NaN" or "infinite and NaN"), `count` and `of`.
    """
    raw = _on_host(sight.counts)
    names = [layer.name for layer in sight.layers]
    paths = [variable.path for variable in sight.variables]
    found = {
        "finite": bool(raw["grads_finite"]),
        "loss_scale": float(raw["loss_scale"]),
        "variables": {
            path: [int(n) for n in counted["nonfinite"]]
            for path, counted in zip(paths, raw["grads"], strict=True)
            if counted is not None and counted["nonfinite"].any()
        },
    }
    if found["finite"]:
        return found

    def event(
        where: str,
        values: str,
        counted: Any = None,
        layer: str | None = None,
        variable: str | None = None,
        kind: str = "infinite",
    ) -> dict[str, Any]:
        count = of = 1
        if counted is not None:
            inf, nan = (int(n) for n in counted["nonfinite"])
            kind = " and ".join(k for k, n in (("infinite", inf), ("NaN", nan)) if n)
            count, of = inf + nan, int(counted["size"])
        return found | {
            "pass": where,
            "layer": layer,
            "variable": variable,
            "values": values,
            "kind": kind,
            "count": count,
            "of": of,
        }

    def bad(counted: Any) -> bool:
        return counted is not None and bool(counted["nonfinite"].any())

    for counted in filter(bad, raw["batch"]):
        return event("input", "numbers of the batch", counted)
    dtype = sight.half or "float32"
    for path, master, working in zip(
        paths, raw["masters"], raw["weights"], strict=True
    ):
        if bad(master):
            return event("weights", "weights", master, variable=path)
        if bad(working):
            return event("weights", f"{dtype} weights", working, variable=path)
    for name, inputs, counted in zip(
        names, raw["inputs"], raw["activations"], strict=True
    ):
        if not forward:
            break
        # All that the layer was given is finite: its own cast is at fault.
        for given in filter(bad, inputs):
            return event("forward", f"{dtype} inputs", given, name)
        if bad(counted):
            return event("forward", "activations", counted, name)
    if not math.isfinite(raw["loss"]):
        kind = "NaN" if math.isnan(raw["loss"]) else "infinite"
        return event("loss", "the loss", kind=kind)
    # Backwards: the gradient of a layer's output comes before its weights'.
    owners = sight.owners
    events = [
        (-i, 0, event("backward", "activation gradients", counted, name))
        for i, (name, counted) in enumerate(
            zip(names, raw["activation_grads"], strict=True)
        )
        if bad(counted)
    ]
    for path, counted in zip(paths, raw["grads"], strict=True):
        if bad(counted):
            place = owners.get(path, 0)
            name = names[place] if path in owners else None
            what = event("backward", "gradients", counted, name, path)
            events.append((-place, 1, what))
    if events:
        return min(events, key=lambda each: each[:2])[2]
    if not math.isfinite(raw["grad_norm"]):
        return event("update", "the gradient norm")
    return event("update", "a gradient divided by the scale")


def tell(origin: dict[str, Any]) -> str:
    """What `origin` found, as one line."""
    scale = _power(origin["loss_scale"])
    if origin["finite"]:
        return f"nothing overflows at the loss scale {scale}"
    owner = origin["variable"] or origin["layer"]
    what = origin["values"] + (f" of {owner}" if owner else "")
    if origin["of"] == 1:
        said = f"{origin['pass']}: {what} is {origin['kind']}"
    else:
        amount = f"{origin['count']} of {origin['of']}"
        said = f"{origin['pass']}: {amount} {what} are {origin['kind']}"
    if origin["pass"] in ("backward", "update"):
        said += f" at the loss scale {scale}"
        fits = origin.get("largest_scale")
        said += "" if fits is None else f", none at {_power(fits)}"
    return said


def _entry(
    values: dict[str, Any] | None, share: float, scale: float | None = None
) -> dict[str, Any] | None:
    """One tensor as plain numbers.

    Args:
      values: what was counted.
      share: as for `line`.
      scale: the loss scale; None for what is not scaled.

    Returns:
      `count`; of the 16-bit pass: `inf`, `nan` (how many) and `zero_16` (the share
      that is 0). The rest is of the float32 pass, unscaled, where there is one:
      `zero` (share), `max`; shares of the nonzero numbers that float16 would lose as
      zeros without scaling (`underflow_unscaled`) and at the scale (`underflow`),
      that it would keep with fewer bits (`subnormal`), or that would overflow
      (`overflow`); `headroom` (powers of two from the largest to 65504, at the
      scale; None: there is nothing but 0); `first` and `histogram`: how many numbers
      have a magnitude of 2^first to 2^(first+1), of twice that, and so on. Gradients
      have `scale_from` and `scale_to`: powers of two, the loss scales that lose less
      than the share. None: nothing was seen here.
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
    # A scale that is not a power of two counts as the next one below.
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


def _updates(moved: dict[str, Any]) -> dict[str, Any]:
    """What an update does to the weights, as plain numbers.

    Returns:
      `changed` (share of the weights that change at all); shares of these whose
      change is less than half a unit of a 16-bit weight (`below`; 2^-11 of the
      weight in float16) and that such a weight would not show (`unseen`);
      `ratio` (the norm of the update by that of the weight, None for zero weights).
    """
    changed, below, unseen = (int(n) for n in moved["lost"])
    norm = float(moved["weight_norm"])
    return {
        "changed": changed / max(int(moved["size"]), 1),
        "below": below / max(changed, 1),
        "unseen": unseen / max(changed, 1),
        "ratio": float(moved["update_norm"]) / norm if norm else None,
    }


def _range(entry: dict[str, Any] | None) -> tuple[int, int] | None:
    if entry is None or entry.get("scale_from") is None:
        return None
    return entry["scale_from"], entry["scale_to"]


def _on_host(counts: Any) -> Any:
    return tf.nest.map_structure(lambda x: None if x is None else x.numpy(), counts)


def _power(scale: float) -> str:
    """A scale as a power of two where it is one."""
    power = math.log2(scale) if scale > 0 else math.nan
    return f"2^{power:.0f}" if power == round(power) else f"{scale:g}"
