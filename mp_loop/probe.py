"""Looks into one step, layer by layer, and leaves no trace.

    probe = Probe(step)                                # a TrainStep
    raw = probe.look(inputs, labels)                   # on the device, not waited for
    line = probe.read(raw)                             # plain numbers, for JSON
    origin = probe.origin(inputs, labels, scale=2.0**15)   # where it overflows
    print(tell(origin))

A probe runs the very step (`TrainStep`), with observers on the output of every
layer and on the gradient of that output, and then puts back every variable of the
training: weights, statistics, slots, seeds, loss scale and counters keep their
bits. What 16 bits do to the numbers is predicted from a float32 pass of the master
model over the same batch, where nothing has been lost yet; what really became inf,
NaN or 0 is counted in the 16-bit pass.

With micro-batches the layers are seen in the first one. Inside loops of TensorFlow
(recurrent layers) and inside recomputed blocks nothing is seen. A probe needs, for
its duration, the memory of a float32 step and a copy of the training state.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from mp_loop import numerics
from mp_loop import precision as precisions
from mp_loop import step as steps

# Less than this share of the nonzero gradients may be lost at a scale that suits.
SHARE = 0.01


class Probe:
    """Looks at what a `TrainStep` computes on a batch, without training on it."""

    def __init__(self, step: steps.TrainStep, share: float = SHARE):
        """Traces nothing yet.

        Args:
          step: the step to look into; one device.
          share: of the nonzero gradients of a layer, how many a suitable loss
            scale may lose.
        """
        self._step = step
        self._share = share
        self._kind = numerics.FORMATS.get(
            _half_dtype(step) or "float16", numerics.FLOAT16
        )
        self._full = tf.function(functools.partial(self._observe, full=True))
        self._brief = tf.function(functools.partial(self._observe, full=False))
        self._seen: dict[str, list[str]] = {}

    def look(
        self, inputs: Any, labels: Any, sample_weight: Any = None, scale: Any = None
    ) -> dict[str, Any]:
        """Counts on the device; what it returns is for `read`, at any later time.

        Args:
          inputs: as for `TrainStep`.
          labels: as for `TrainStep`.
          sample_weight: as for `TrainStep`.
          scale: the loss scale, float32 []; None: the one the next step will use.
        """
        return self._full(inputs, labels, sample_weight, self._scale(scale))

    def read(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Turns what `look` returned into plain numbers; waits for the device.

        Returns:
          `step`, `loss`, `loss_scale`, `grads_finite`, `loss_scales` (from and to,
          as powers of two: what suits every gradient; None where there is none),
          `layers` in order of execution and `variables`. A layer has `name`,
          `type`, `dtype`, `activations` and `activation_grads`; a variable `name`,
          `shape`, `dtype` (what the forward pass reads), `grads` and `updates`. For
          what these hold, see `_entry` and `_updates`.
        """
        raw = _on_host(raw)
        scale = float(raw["loss_scale"])
        layers = []
        for i, (name, kind) in enumerate(self._seen["layers"]):
            layers.append(
                {
                    "name": name,
                    "type": kind,
                    "dtype": self._seen["dtypes"][i],
                    "activations": self._entry(raw["activations"][i]),
                    "activation_grads": self._entry(raw["activation_grads"][i], scale),
                }
            )
        variables = []
        for i, variable in enumerate(self._step.model.trainable_variables):
            variables.append(
                {
                    "name": variable.path,
                    "shape": list(variable.shape),
                    "dtype": self._seen["variables"][i],
                    "grads": self._entry(raw["grads"][i], scale),
                    "updates": _updates(raw["updates"][i]),
                }
            )
        gradients = [
            *((layer["dtype"], layer["activation_grads"]) for layer in layers),
            *((variable["dtype"], variable["grads"]) for variable in variables),
        ]
        # What is stored in float32 does not limit the scale.
        narrow = [entry for dtype, entry in gradients if dtype != "float32"]
        common = numerics.common_scales(
            [_range(entry) for entry in narrow or [entry for _, entry in gradients]]
        )
        return {
            "step": int(raw["step"]),
            "loss": float(raw["loss"]),
            "loss_scale": scale,
            "grads_finite": bool(raw["grads_finite"]),
            "precision": _half_dtype(self._step) or "float32",
            "share": self._share,
            "loss_scales": list(common) if common else None,
            "layers": layers,
            "variables": variables,
        }

    def origin(
        self, inputs: Any, labels: Any, sample_weight: Any = None, scale: Any = None
    ) -> dict[str, Any]:
        """Tells where a batch overflows; the arguments are those of `look`.

        Returns:
          `finite`: whether nothing overflowed, `loss_scale`, and `variables` (by
          path, how many inf and nan its gradient has). If something overflowed, what
          was first: `pass` ("input", "weights", "forward", "loss", "backward" or
          "update"), `layer` and `variable` (names, or None), `values` (what is not
          finite there), `kind` ("inf", "nan" or "inf and nan"), `count` and `of`.
          Where only the backward pass overflowed, `largest_scale` is the largest
          power of two at which this batch does not; None if there is none down to
          2^-24 of the scale.
        """
        scale = self._scale(scale)
        batch = (inputs, labels, sample_weight)
        raw = self._brief(*batch, scale)
        found = self._origin(_on_host(raw))
        if found.get("pass") in ("backward", "update"):
            found["largest_scale"] = self._largest_scale(batch, float(scale))
        return found

    def _largest_scale(self, batch: tuple[Any, Any, Any], scale: float) -> float | None:
        """Bisects for the largest power of two below a scale that overflows."""
        bad = math.ceil(math.log2(scale))
        good = bad - 24

        def finite(power: int) -> bool:
            return bool(self._brief(*batch, self._scale(2.0**power))["grads_finite"])

        if not finite(good):
            return None
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if finite(middle) else (good, middle)
        return 2.0**good

    def _scale(self, scale: Any) -> tf.Tensor:
        scale = self._step.loss_scale if scale is None else scale
        return tf.cast(scale, tf.float32)

    def _observe(
        self, inputs: Any, labels: Any, sample_weight: Any, scale: Any, full: bool
    ) -> dict[str, Any]:
        """Takes the step under observation, and takes it back; traced."""
        step, state = self._step, self._step.state
        variables = _variables(step)
        before = [tf.identity(variable) for variable in variables]
        result = {"step": state.step.read_value()}
        if state.loss_scale:
            state.loss_scale[0].assign(scale)
        masters = [tf.identity(variable) for variable in state.master_weights]

        watch = _Watch()
        with watch.on(step.twin), _recorded(step) as recorded:
            metrics = step._one_step(inputs, labels, sample_weight)
        for name in ("loss", "loss_scale", "grads_finite", "grad_norm"):
            result[name] = metrics[name]
        grads = [_dense(grad) for grad in recorded["grads"]]
        self._seen["layers"] = watch.names
        self._seen["dtypes"] = watch.dtypes
        self._seen["variables"] = [
            working.dtype.name for working in state.working_weights
        ]
        result["activations"] = [_measured(x) for x in watch.outputs]
        result["activation_grads"] = [_measured(x) for x in watch.grads]
        result["grads"] = [_measured(x) for x in grads]
        if full:
            after = [tf.identity(variable) for variable in state.master_weights]
            result["updates"] = [
                _moved(old, new, tf.as_dtype(self._kind.name))
                for old, new in zip(masters, after, strict=True)
            ]
        else:
            result["batch"] = [_measured(x) for x in tf.nest.flatten((inputs, labels))]
            result["inputs"] = [[_measured(x) for x in each] for each in watch.inputs]
        _restore(variables, before)
        if not full:
            result["masters"] = [_measured(v) for v in state.master_weights]
            result["weights"] = [_measured(v) for v in state.working_weights]
            return result
        # After the step has been taken back, from the same weights and seeds.
        reference = self._reference(inputs, labels, sample_weight, watch)
        for name, counts in reference.items():
            result[name] = [
                None if here is None else {**here, **there}
                for here, there in zip(result[name], counts, strict=True)
            ]
        _restore(variables, before)
        return result

    def _reference(
        self, inputs: Any, labels: Any, sample_weight: Any, seen: _Watch
    ) -> dict[str, list[dict[str, tf.Tensor]]]:
        """Histograms of a float32 pass over the first micro-batch."""
        step, model = self._step, self._step.model
        count = step._accumulate_steps

        def first(x: Any) -> Any:
            return x[: tf.shape(x)[0] // count] if count > 1 else x

        inputs, labels = tf.nest.map_structure(first, (inputs, labels))
        if sample_weight is not None:
            sample_weight = first(sample_weight)
        # The same dropout, as far as 16 bits draw what float32 draws.
        for own, twins in zip(
            precisions.seeds(model), precisions.seeds(step.twin), strict=False
        ):
            own.assign(twins)
        watch = _Watch()
        with watch.on(model), tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = steps.mean_loss(step._loss, labels, outputs, sample_weight)
            for extra in model.losses:
                loss += tf.cast(extra, tf.float32)
        grads = tape.gradient(loss, step.state.master_weights)
        places = _places(seen.names, watch.names)
        return {
            "activations": _histograms(watch.outputs, places),
            "activation_grads": _histograms(watch.grads, places),
            "grads": _histograms([_dense(grad) for grad in grads], range(len(grads))),
        }

    def _entry(
        self, values: dict[str, Any] | None, scale: float | None = None
    ) -> dict[str, Any] | None:
        """One tensor as plain numbers.

        Args:
          values: what was counted.
          scale: the loss scale; None for what is not scaled.

        Returns:
          `count`; of the 16-bit pass: `inf`, `nan` (how many) and `zero_16` (the
          share that is 0). The rest is of the float32 pass, unscaled, where there
          is one: `zero` (share), `max`; shares of the nonzero numbers that float16
          would lose as zeros without scaling (`underflow_unscaled`) and at the
          scale (`underflow`), that it would keep with fewer bits (`subnormal`), or
          that would overflow (`overflow`); `headroom` (powers of two from the
          largest to 65504, at the scale; None: there is nothing but 0); `first` and
          `histogram`: how many numbers have a magnitude of 2^first to 2^(first+1),
          of twice that, and so on. Gradients have `scale_from` and `scale_to`:
          powers of two, the loss scales that lose less than the share. None: nothing
          was seen here.
        """
        if values is None:
            return None
        inf, nan = (int(n) for n in values["not_finite"])
        count = int(values["size"])
        entry = {
            "count": count,
            "inf": inf,
            "nan": nan,
            "zero_16": int(values["zeros"]) / max(count, 1),
        }
        if "histogram" not in values:
            return entry
        these = numerics.Numbers(values["histogram"])
        # A scale that is not a power of two counts as the next one below.
        power = math.floor(math.log2(scale or 1.0))
        kind, nonzero = numerics.FLOAT16, max(these.nonzero, 1)
        largest = float(values["largest"])
        exponents = these.exponents
        first = min(exponents, default=0)
        last = max(exponents, default=-1)
        room = numerics.headroom(largest, kind, scale or 1.0)
        if scale is not None:
            bounds = these.scales(kind, self._share) or (None, None)
            entry["scale_from"], entry["scale_to"] = bounds
        return entry | {
            "zero": these.zeros / max(these.count, 1),
            "underflow_unscaled": these.underflows(kind) / nonzero,
            "underflow": these.underflows(kind, power) / nonzero,
            "subnormal": these.subnormals(kind, power) / nonzero,
            "overflow": these.overflows(kind, power) / nonzero,
            "max": largest,
            "headroom": room if math.isfinite(room) else None,
            "first": first,
            "histogram": [exponents.get(e, 0) for e in range(first, last + 1)],
        }

    def _origin(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Finds the first thing that was not finite, in the order of the step."""
        names = [name for name, _ in self._seen["layers"]]
        paths = [v.path for v in self._step.model.trainable_variables]
        scale = float(raw["loss_scale"])
        found = {
            "finite": bool(raw["grads_finite"]),
            "loss_scale": scale,
            "variables": {
                path: [int(n) for n in values["not_finite"]]
                for path, values in zip(paths, raw["grads"], strict=True)
                if values is not None and values["not_finite"].any()
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
            kind: str = "inf",
        ) -> dict[str, Any]:
            count = of = 1
            if counted is not None:
                inf, nan = (int(n) for n in counted["not_finite"])
                kind = " and ".join(k for k, n in (("inf", inf), ("nan", nan)) if n)
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
            return counted is not None and bool(counted["not_finite"].any())

        for counted in filter(bad, raw["batch"]):
            return event("input", "numbers of the batch", counted)
        dtype = self._kind.name
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
            # All that the layer was given is finite: its own cast is at fault.
            for given in filter(bad, inputs):
                return event("forward", f"{dtype} inputs", given, name)
            if bad(counted):
                return event("forward", "activations", counted, name)
        if not math.isfinite(raw["loss"]):
            kind = "nan" if math.isnan(raw["loss"]) else "inf"
            return event("loss", "the loss", kind=kind)
        # Backwards: the gradient of a layer's output comes before its weights'.
        owners = self._owners(names)
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

    def _owners(self, names: list[str]) -> dict[str, int]:
        """Where, in order of execution, the layer stands that owns a variable."""
        places = {name: i for i, name in enumerate(names)}
        owners = {}
        for name, operation in _operations(self._step.model):
            for variable in getattr(operation, "trainable_variables", ()):
                if name in places:
                    owners[variable.path] = places[name]
        return owners


def tell(origin: dict[str, Any]) -> str:
    """What `Probe.origin` found, as one line."""
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


class _Watch:
    """Observes the outputs of layers, and their gradients, while a graph is traced.

    Attributes:
      names: (name, type) of each observed output, in order of execution.
      dtypes: of the outputs.
      outputs: the tensors.
      inputs: the tensors that each output was made from, as the layer casts them.
      grads: the gradients that arrived there, None where none did.
    """

    def __init__(self):
        self.names: list[tuple[str, str]] = []
        self.dtypes: list[str] = []
        self.outputs: list[tf.Tensor] = []
        self.inputs: list[list[tf.Tensor]] = []
        self.grads: list[tf.Tensor | None] = []
        self._graph = None

    @contextlib.contextmanager
    def on(self, model: keras.Model) -> Iterator[None]:
        """Inside, calls of the model are observed."""
        self._graph = None if tf.executing_eagerly() else _graph()
        hooked = []
        for name, operation in _operations(model):
            hooked.append(operation)
            # Not setattr: Keras tracks what is set.
            operation.__dict__["call"] = self._observed(name, operation)
        try:
            yield
        finally:
            for operation in hooked:
                del operation.__dict__["call"]

    def _observed(self, name: str, operation: Any) -> Callable[..., Any]:
        call = operation.call

        @functools.wraps(call)
        def observed(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            inputs = [x for x in tf.nest.flatten((args, kwargs)) if self._counts(x)]
            # Where a layer stores in 16 bits and multiplies in float32, the inputs
            # are cast inside.
            stored = getattr(operation, "variable_dtype", "float32")
            if stored in precisions.HALF_PRECISIONS:
                inputs = [tf.cast(x, stored) for x in inputs]
            tap = functools.partial(self._tap, name, type(operation).__name__, inputs)
            return keras.tree.map_structure(tap, outputs)

        return observed

    def _tap(self, name: str, kind: str, inputs: list[tf.Tensor], output: Any) -> Any:
        if not self._counts(output):
            return output
        again = sum(known.split("#")[0] == name for known, _ in self.names)
        place = len(self.names)
        self.names.append((f"{name}#{again + 1}" if again else name, kind.lstrip("_")))
        self.dtypes.append(output.dtype.name)
        self.outputs.append(output)
        self.inputs.append(inputs)
        self.grads.append(None)

        @tf.custom_gradient
        def watched(x: tf.Tensor) -> Any:
            def gradient(dy: tf.Tensor) -> tf.Tensor:
                if self._is_here(dy):
                    self.grads[place] = dy
                return dy

            return tf.identity(x), gradient

        return watched(output)

    def _counts(self, tensor: Any) -> bool:
        countable = (tf.float32, tf.float16, tf.bfloat16)
        return (
            tf.is_tensor(tensor) and tensor.dtype in countable and self._is_here(tensor)
        )

    def _is_here(self, tensor: tf.Tensor) -> bool:
        """Tells whether a tensor is not one of a loop's inside."""
        return self._graph is None or getattr(tensor, "graph", None) is self._graph


def _graph() -> Any:
    return tf.compat.v1.get_default_graph()


def _operations(model: keras.Model) -> list[tuple[str, Any]]:
    """Every layer and operation of a model once, with its name; nested ones too."""
    found: dict[int, tuple[str, Any]] = {}

    def visit(model: keras.Model, prefix: str) -> None:
        graph = model._functional if isinstance(model, keras.Sequential) else model
        if hasattr(graph, "_nodes_by_depth"):
            depths = sorted(graph._nodes_by_depth, reverse=True)
            nodes = itertools.chain(*(graph._nodes_by_depth[d] for d in depths))
            operations = [node.operation for node in nodes if not node.is_input]
        else:  # A subclassed model: the layers that it holds itself.
            operations = list(model.layers)
        for operation in operations:
            name = f"{prefix}{operation.name}"
            if isinstance(operation, keras.Model):
                visit(operation, f"{name}/")
            else:
                found.setdefault(id(operation), (name, operation))

    visit(model, "")
    return list(found.values())


@contextlib.contextmanager
def _recorded(step: steps.TrainStep) -> Iterator[dict[str, Any]]:
    """Inside, the step's scaled float32 gradients are noted as it finds them."""
    recorded: dict[str, Any] = {}
    accumulate = step._accumulate

    def record(*args: Any, **kwargs: Any) -> Any:
        loss, recorded["grads"] = accumulate(*args, **kwargs)
        return loss, recorded["grads"]

    step._accumulate = record
    try:
        yield recorded
    finally:
        del step._accumulate


def _variables(step: steps.TrainStep) -> list[tf.Variable]:
    """Every variable that a step, or a call of the model, may change."""
    of_models = [v.value for v in (*step.model.variables, *step.twin.variables)]
    unique = {id(v): v for v in (*step.state.variables, *of_models)}
    return list(unique.values())


def _restore(variables: list[tf.Variable], before: list[tf.Tensor]) -> None:
    for variable, old in zip(variables, before, strict=True):
        variable.assign(old)


def _on_host(raw: Any) -> Any:
    return tf.nest.map_structure(lambda x: None if x is None else x.numpy(), raw)


def _dense(grad: Any) -> tf.Tensor | None:
    return None if grad is None else tf.convert_to_tensor(grad)


def _measured(tensor: tf.Tensor | None) -> dict[str, tf.Tensor] | None:
    """Counts what became of a tensor's elements; None where it has no fractions."""
    if tensor is None:
        return None
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_floating:
        return None
    return {
        "size": tf.size(tensor),
        "not_finite": numerics.not_finite(tensor),
        "zeros": tf.math.count_nonzero(tensor == 0, dtype=tf.int32),
    }


def _histograms(
    tensors: list[tf.Tensor | None], places: Any
) -> list[dict[str, tf.Tensor]]:
    """Counts float32 tensors by magnitude; nothing where there is none."""
    counts = []
    for place in places:
        tensor = None if place is None else tensors[place]
        if tensor is None:
            counts.append({})
            continue
        counts.append(
            {
                "histogram": numerics.histogram(tensor),
                "largest": numerics.largest(tensor),
            }
        )
    return counts


def _places(
    here: list[tuple[str, str]], there: list[tuple[str, str]]
) -> list[int | None]:
    """Where, in another model of the same structure, each observed output is."""
    if len(here) == len(there):
        return list(range(len(here)))
    places = {name: i for i, (name, _) in enumerate(there)}
    return [places.get(name) for name, _ in here]


def _moved(old: tf.Tensor, new: tf.Tensor, dtype: tf.DType) -> dict[str, tf.Tensor]:
    return {
        "size": tf.size(old),
        "lost": numerics.lost_updates(old, new, dtype),
        "update_norm": tf.norm(new - old),
        "weight_norm": tf.norm(old),
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


def _half_dtype(step: steps.TrainStep) -> str | None:
    """The 16-bit dtype of the step's twin, None where it has none."""
    dtypes = {variable.dtype for variable in step.twin.variables}
    dtypes |= {operation.compute_dtype for _, operation in _operations(step.twin)
               if hasattr(operation, "compute_dtype")}  # fmt: skip
    return next((d for d in precisions.HALF_PRECISIONS if d in dtypes), None)


def _power(scale: float) -> str:
    """A scale as a power of two where it is one."""
    power = math.log2(scale) if scale > 0 else math.nan
    return f"2^{power:.0f}" if power == round(power) else f"{scale:g}"
