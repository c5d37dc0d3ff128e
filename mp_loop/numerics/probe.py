"""Looks into one step, layer by layer, and leaves no trace.

    probe = Probe(step)                                # a TrainStep
    sight = probe.look(inputs, labels)                 # counted on the device
    line = reading.line(sight)                         # later: plain numbers, for JSON
    origin = probe.origin(inputs, labels, scale=2.0**15)   # where it overflows

A probe runs the very step (`TrainStep`), with observers on the output of every
layer and on the gradient of that output, and then puts back every variable of the
training: weights, statistics, slots, seeds, loss scale and counters keep their
bits. What 16 bits do to the numbers is predicted from a float32 pass of the master
model over the same batch, where nothing has been lost yet; what really became inf,
NaN or 0 is counted in the 16-bit pass.

With micro-batches the layers are seen in the first one. Inside loops of TensorFlow
(recurrent layers) nothing is seen. A probe needs, while it runs, the memory of a
float32 step and a copy of what a step changes.
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

from mp_loop.config import choices
from mp_loop.numerics import counting, probe_report
from mp_loop.precision import pairs
from mp_loop.step import train_step

# How many powers of two below a scale that overflows another one is looked for.
_SEARCHED = 24


class Probe:
    """Looks at what a `TrainStep` computes on a batch, without training on it."""

    def __init__(self, step: train_step.TrainStep):
        """Traces nothing yet.

        Args:
          step: the step to look into; one device.
        """
        self._step = step
        self._half = _half_dtype(step)
        self._full = tf.function(functools.partial(self._observe, full=True))
        self._brief = tf.function(functools.partial(self._observe, full=False))
        self._reference = tf.function(self._float32_pass)
        self._layers: list[probe_report.Layer] = []  # as last traced

    def look(
        self, inputs: Any, labels: Any, sample_weight: Any = None, scale: Any = None
    ) -> probe_report.Sight:
        """Counts on the device; nothing is waited for.

        Args:
          inputs: as for `TrainStep`.
          labels: as for `TrainStep`.
          sample_weight: as for `TrainStep`.
          scale: the loss scale, float32 []; None: the one the next step will use.

        Returns:
          What was seen, for `reading.line`.
        """
        batch = (inputs, labels, sample_weight)
        counts = self._taken_back(self._full, batch, scale)
        reference = self._taken_back(self._reference, batch, scale)
        for name, histograms in reference.items():
            counts[name] = [
                None if here is None else {**here, **there}
                for here, there in zip(counts[name], histograms, strict=True)
            ]
        return self._sight(counts)

    def origin(
        self,
        inputs: Any,
        labels: Any,
        sample_weight: Any = None,
        scale: Any = None,
        search: bool = True,
    ) -> dict[str, Any]:
        """Tells where a batch overflows; waits for the device.

        Args:
          inputs: as for `look`.
          labels: as for `look`.
          sample_weight: as for `look`.
          scale: as for `look`.
          search: whether `largest_scale` is looked for.

        Returns:
          What `reading.origin` says, and, where only the backward pass overflowed,
          `largest_scale`: the largest power of two at which this batch does not;
          None if there is none down to 2^-24 of the scale.
        """
        batch = (inputs, labels, sample_weight)
        scale = float(self._step.loss_scale if scale is None else scale)
        sight = self._sight(self._taken_back(self._brief, batch, scale))
        found = probe_report.origin(sight)
        # Infinity in the forward pass can be meant, as in a mask.
        meant = found.get("pass") == "forward" and math.isfinite(sight.counts["loss"])
        if search and (meant or found.get("pass") in ("backward", "update")):
            largest = self._largest_scale(batch, scale)
            if meant and largest is not None:
                found = probe_report.origin(sight, forward=False)
            found["largest_scale"] = largest
        return found | {"text": probe_report.tell(found)}

    def _largest_scale(self, batch: tuple[Any, Any, Any], scale: float) -> float | None:
        """Bisects for the largest power of two below a scale that overflows."""
        bad = math.ceil(math.log2(scale))
        good = bad - _SEARCHED

        def finite(power: int) -> bool:
            counts = self._taken_back(self._brief, batch, 2.0**power)
            return bool(counts["grads_finite"])

        if not finite(good):
            return None
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if finite(middle) else (good, middle)
        return 2.0**good

    def _taken_back(
        self, look: Callable[..., Any], batch: tuple[Any, Any, Any], scale: Any
    ) -> dict[str, Any]:
        """Calls what may change the training, and puts everything back."""
        state = self._step.state
        variables = _variables(self._step)
        # No copies yet: a variable that is written to leaves what was read alone.
        before = [variable.read_value() for variable in variables]
        try:
            if scale is not None and state.loss_scale:
                state.loss_scale[0].assign(scale)
            return look(*batch)
        finally:  # Also when the device's memory was not enough.
            for variable, old in zip(variables, before, strict=True):
                variable.assign(old)

    def _sight(self, counts: dict[str, Any]) -> probe_report.Sight:
        state, trained = self._step.state, self._step.model.trainable_variables
        variables = [
            probe_report.Variable(master.path, tuple(master.shape), working.dtype.name)
            for master, working in zip(trained, state.working_weights, strict=True)
        ]
        places = {layer.name: i for i, layer in enumerate(self._layers)}
        owners = {
            variable.path: places[name]
            for name, operation in _operations(self._step.model)
            for variable in getattr(operation, "trainable_variables", ())
            if name in places
        }
        return probe_report.Sight(self._layers, variables, owners, self._half, counts)

    def _observe(
        self, inputs: Any, labels: Any, sample_weight: Any, full: bool
    ) -> dict[str, Any]:
        """Takes the step under observation; traced."""
        step, state = self._step, self._step.state
        counts = {"step": state.step.read_value()}
        masters = [tf.identity(variable) for variable in state.master_weights]
        if not full:
            counts["masters"] = [counting.outcomes(x) for x in masters]
            counts["weights"] = [counting.outcomes(v) for v in state.working_weights]
            counts["batch"] = [
                counting.outcomes(x) for x in tf.nest.flatten((inputs, labels))
            ]
        watch = _Watch(counting.outcomes, and_inputs=not full)
        with watch.on(step.twin):
            # Observers would see a recomputed layer twice.
            trace = step.trace(inputs, labels, sample_weight, recompute=False)
        for name in ("loss", "loss_scale", "grads_finite", "grad_norm"):
            counts[name] = trace.metrics[name]
        self._layers = watch.layers
        counts["activations"] = watch.outputs
        counts["activation_grads"] = watch.grads
        counts["grads"] = [counting.outcomes(x) for x in trace.scaled_grads]
        if full:
            dtype = tf.as_dtype(self._half or "float16")
            after = [tf.identity(variable) for variable in state.master_weights]
            counts["updates"] = [
                counting.changes(old, new, dtype)
                for old, new in zip(masters, after, strict=True)
            ]
        else:
            counts["inputs"] = watch.inputs
        return counts

    def _float32_pass(
        self, inputs: Any, labels: Any, sample_weight: Any
    ) -> dict[str, list[dict[str, tf.Tensor]]]:
        """Histograms of the master model on the first micro-batch; traced."""
        step, model = self._step, self._step.model
        count = step.gradients.accumulate_steps

        def first(x: Any) -> Any:
            return x[: tf.shape(x)[0] // count] if count > 1 else x

        inputs, labels = tf.nest.map_structure(first, (inputs, labels))
        if sample_weight is not None:
            sample_weight = first(sample_weight)
        # The same dropout, as far as 16 bits draw what float32 draws.
        for own, working in pairs.of_seeds(model, step.twin):
            own.assign(working)
        watch = _Watch(counting.distribution)
        with watch.on(model), tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = step.loss(labels, outputs, sample_weight)
            for extra in model.losses:
                loss += tf.cast(extra, tf.float32)
        grads = tape.gradient(loss, step.state.master_weights)
        places = _places(self._layers, watch.layers)

        def counted(found: list[Any]) -> list[dict[str, tf.Tensor]]:
            return [(found[p] or {}) if p is not None else {} for p in places]

        return {
            "activations": counted(watch.outputs),
            "activation_grads": counted(watch.grads),
            "grads": [
                {} if grad is None else counting.distribution(grad) for grad in grads
            ],
        }


class _Watch:
    """Counts the outputs of layers, and their gradients, while a graph is traced.

    Each is counted before anything is computed from it, so that it need not be kept
    for that: else all of a model's tensors would be in memory at once.

    Attributes:
      layers: whose outputs were observed, in order of execution.
      outputs: what was counted in each.
      inputs: in the tensors that each was made from, as the layer casts them.
      grads: in the gradients that arrived there, None where none did.
    """

    def __init__(self, count: Callable[[Any], Any], and_inputs: bool = False):
        """Observes nothing yet.

        Args:
          count: returns nested tensors for a tensor, or None.
          and_inputs: whether inputs are counted.
        """
        self.layers: list[probe_report.Layer] = []
        self.outputs: list[Any] = []
        self.inputs: list[list[Any]] = []
        self.grads: list[Any] = []
        self._count = count
        self._and_inputs = and_inputs
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
            counts = []
            if self._and_inputs:
                inputs = [x for x in tf.nest.flatten((args, kwargs)) if self._counts(x)]
                # Where a layer stores in 16 bits and multiplies in float32, the
                # inputs are cast inside.
                stored = getattr(operation, "variable_dtype", "float32")
                if stored in choices.HALF_PRECISIONS:
                    inputs = [tf.cast(x, stored) for x in inputs]
                counts = [self._count(x) for x in inputs]
            outputs = call(*args, **kwargs)
            tap = functools.partial(
                self._tap, name, type(_inner(operation)).__name__, counts
            )
            return keras.tree.map_structure(tap, outputs)

        return observed

    def _tap(self, name: str, kind: str, inputs: list[Any], output: Any) -> Any:
        if not self._counts(output):
            return output
        again = sum(layer.name.split("#")[0] == name for layer in self.layers)
        place = len(self.layers)
        name = f"{name}#{again + 1}" if again else name
        self.layers.append(
            probe_report.Layer(name, kind.lstrip("_"), output.dtype.name)
        )
        self.outputs.append(self._count(output))
        self.inputs.append(inputs)
        self.grads.append(None)

        @tf.custom_gradient
        def watched(x: tf.Tensor) -> Any:
            def gradient(dy: tf.Tensor) -> tf.Tensor:
                if not self._is_here(dy):
                    return dy
                self.grads[place] = self._count(dy)
                return _after(self.grads[place], dy)

            return _after((self.outputs[place], inputs), x), gradient

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
            name = f"{prefix}{_inner(operation).name}"
            if isinstance(operation, keras.Model):
                visit(operation, f"{name}/")
            else:
                found.setdefault(id(operation), (name, operation))

    visit(model, "")
    return list(found.values())


def _inner(operation: Any) -> Any:
    """The operation itself, where something runs it in float32."""
    return getattr(operation, "_operation", operation)


def _variables(step: train_step.TrainStep) -> list[tf.Variable]:
    """Every variable that a step, or a call of the model, may change."""
    of_models = [v.value for v in (*step.model.variables, *step.twin.variables)]
    unique = {id(v): v for v in (*step.state.variables, *of_models)}
    return list(unique.values())


def _after(counts: Any, tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor that is there only after others."""
    first = [count for count in tf.nest.flatten(counts) if count is not None]
    with tf.control_dependencies(first):
        return tf.identity(tensor)


def _places(
    here: list[probe_report.Layer], there: list[probe_report.Layer]
) -> list[int | None]:
    """Where, in another model of the same structure, each observed output is."""
    if len(here) == len(there):
        return list(range(len(here)))
    places = {layer.name: i for i, layer in enumerate(there)}
    return [places.get(layer.name) for layer in here]


def _half_dtype(step: train_step.TrainStep) -> str | None:
    """The 16-bit dtype of the step's twin, None where it has none."""
    dtypes = {variable.dtype for variable in step.twin.variables}
    for _, operation in _operations(step.twin):
        dtypes.add(getattr(operation, "compute_dtype", "float32"))
    return next((d for d in choices.HALF_PRECISIONS if d in dtypes), None)
