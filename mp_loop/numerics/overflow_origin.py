"""The first number of a step that was not finite, and where it appeared.

    origin = find(observation)
    print(describe(origin))     # "forward: 12 of 64 activations of dense are infinite"

The places are searched in the order of the step: the batch, the weights, every layer
forward, the loss, every layer backward, and the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from mp_loop.config import json_values
from mp_loop.distributed import nests
from mp_loop.numerics import observation
from mp_loop.rendering import numbers


def find(
    observed: observation.Observation, forward: bool = True
) -> dict[str, json_values.Json]:
    """Finds the first number that was not finite, in the order of the step.

    Args:
      observed: a step, skipped or not, in which batch, weights and the inputs of layers
        were counted too.
      forward: whether the forward pass may be the origin.

    Returns:
      `finite`: whether nothing overflowed, `loss_scale`, and `variables` (by path, how
      many inf and nan the gradient has). If something overflowed, also what came first:
      `pass` ("input", "weights", "forward", "loss", "backward" or "update"), `layer`
      and `variable` (names, or None), `values` (what is not finite there), `kind`
      ("infinite", "NaN" or "infinite and NaN"), `count` and `of`.
    """
    raw = observed.on_host()
    found = {
        "finite": bool(raw["grads_finite"]),
        "loss_scale": float(raw["loss_scale"]),
        "variables": {
            variable.path: [int(n) for n in counted["nonfinite"]]
            for variable, counted in zip(observed.variables, raw["grads"], strict=True)
            if _is_bad(counted)
        },
    }
    if found["finite"]:
        return found
    return found | next(_events(observed, raw, forward))


def _events(
    observed: observation.Observation, raw: Mapping[str, nests.Nest], forward: bool
) -> Iterator[dict[str, json_values.Json]]:
    """Yields everything that was not finite, in the order of the step."""
    yield from _in_batch_and_weights(observed, raw)
    if forward:
        yield from _in_forward_pass(observed, raw)
    if not math.isfinite(raw["loss"]):
        kind = "NaN" if math.isnan(raw["loss"]) else "infinite"
        yield _event("loss", "the loss", kind=kind)
    yield from _in_backward_pass(observed, raw)
    if not math.isfinite(raw["grad_norm"]):
        yield _event("update", "the gradient norm")
    yield _event("update", "a gradient divided by the scale")


def _in_batch_and_weights(
    observed: observation.Observation, raw: Mapping[str, nests.Nest]
) -> Iterator[dict[str, json_values.Json]]:
    for counted in filter(_is_bad, raw["batch"]):
        yield _event("input", "numbers of the batch", counted)
    dtype = observed.half or "float32"
    for variable, master, working in zip(
        observed.variables, raw["masters"], raw["weights"], strict=True
    ):
        if _is_bad(master):
            yield _event("weights", "weights", master, variable=variable.path)
        if _is_bad(working):
            values = f"{dtype} weights"
            yield _event("weights", values, working, variable=variable.path)


def _in_forward_pass(
    observed: observation.Observation, raw: Mapping[str, nests.Nest]
) -> Iterator[dict[str, json_values.Json]]:
    dtype = observed.half or "float32"
    for layer, inputs, counted in zip(
        observed.layers, raw["inputs"], raw["activations"], strict=True
    ):
        # Everything that the layer was given is finite: its own cast overflows.
        for given in filter(_is_bad, inputs):
            yield _event("forward", f"{dtype} inputs", given, layer.name)
        if _is_bad(counted):
            yield _event("forward", "activations", counted, layer.name)


def _in_backward_pass(
    observed: observation.Observation, raw: Mapping[str, nests.Nest]
) -> Iterator[dict[str, json_values.Json]]:
    """From the last layer to the first: of its output, then of its weights."""
    events = [
        (-place, 0, _event("backward", "activation gradients", counted, layer.name))
        for place, (layer, counted) in enumerate(
            zip(observed.layers, raw["activation_grads"], strict=True)
        )
        if _is_bad(counted)
    ]
    for variable, counted in zip(observed.variables, raw["grads"], strict=True):
        if _is_bad(counted):
            path, place = variable.path, observed.owners.get(variable.path, 0)
            layer = observed.layers[place].name if path in observed.owners else None
            event = _event("backward", "gradients", counted, layer, path)
            events.append((-place, 1, event))
    for _, _, event in sorted(events, key=lambda event: event[:2]):
        yield event


def _event(
    where: str,
    values: str,
    counted: observation.HostCounts | None = None,
    layer: str | None = None,
    variable: str | None = None,
    kind: str = "infinite",
) -> dict[str, json_values.Json]:
    count = of = 1
    if counted is not None:
        inf, nan = (int(n) for n in counted["nonfinite"])
        kind = " and ".join(k for k, n in (("infinite", inf), ("NaN", nan)) if n)
        count, of = inf + nan, int(counted["size"])
    return {
        "pass": where,
        "layer": layer,
        "variable": variable,
        "values": values,
        "kind": kind,
        "count": count,
        "of": of,
    }


def _is_bad(counted: observation.HostCounts | None) -> bool:
    return counted is not None and bool(counted["nonfinite"].any())


def describe(origin: json_values.Object) -> str:
    """Describes what `find` returned in one line."""
    scale = numbers.power_of_two(origin["loss_scale"])
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
        said += "" if fits is None else f", none at {numbers.power_of_two(fits)}"
    return said
