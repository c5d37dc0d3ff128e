"""Looks into one step, layer by layer, and leaves no trace.

    probe = Probe(step)                                    # a TrainStep
    observed = probe.look(inputs, labels)                  # counted on the device
    line = probe_report.summarize(observed)                # later: a JSON object
    origin = probe.origin(inputs, labels, scale=2.0**15)   # where it overflows

A probe runs the step itself (`TrainStep`), with observers on the output of every
layer and on the gradient of that output, and then restores every variable of the
training: weights, statistics, slots, seeds, loss scale and counters keep their
bits. What 16 bits do to the numbers is predicted from a float32 pass of the master
model over the same batch, where nothing has been lost yet; what really became inf,
NaN or 0 is counted in the 16-bit pass.

With micro-batches the layers are observed in the first one. Inside loops of
TensorFlow (recurrent layers) nothing is observed. While it runs, a probe needs the
memory of a float32 step and a copy of what a step changes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from mp_loop.config import choices, json_values
from mp_loop.distributed import nests
from mp_loop.numerics import counting, layer_observer, observation, overflow_origin
from mp_loop.precision import pairs
from mp_loop.step import gradients, train_step

# How many powers of two below a scale that overflows are searched for one that does
# not.
_SEARCHED_POWERS = 24


class Probe:
    """Observes what a `TrainStep` computes on a batch, without training on it."""

    def __init__(self, step: train_step.TrainStep):
        """Traces nothing yet.

        Args:
          step: the step to look into; one device.
        """
        self._step = step
        self._half = _half_dtype(step)
        self._full = tf.function(
            functools.partial(self._observe, full=True), autograph=False
        )
        self._brief = tf.function(
            functools.partial(self._observe, full=False), autograph=False
        )
        self._reference = tf.function(self._float32_pass, autograph=False)
        self._layers: list[observation.ObservedLayer] = []  # as last traced

    def look(
        self,
        inputs: nests.Nest,
        labels: nests.Nest,
        sample_weight: nests.Nest = None,
        scale: tf.Tensor | float | None = None,
    ) -> observation.Observation:
        """Observes a batch; does not wait for the device.

        Args:
          inputs: as for `TrainStep`.
          labels: as for `TrainStep`.
          sample_weight: as for `TrainStep`.
          scale: the loss scale, float32 []; None: the one the next step will use.

        Returns:
          What was observed, for `probe_report.summarize`.
        """
        batch = (self._step.prepare(inputs), labels, sample_weight)
        counts = self._restoring(self._full, batch, scale)
        reference = self._restoring(self._reference, batch, scale)
        for name, histograms in reference.items():
            counts[name] = [
                None if here is None else {**here, **there}
                for here, there in zip(counts[name], histograms, strict=True)
            ]
        return self._observation(counts)

    def origin(
        self,
        inputs: nests.Nest,
        labels: nests.Nest,
        sample_weight: nests.Nest = None,
        scale: tf.Tensor | float | None = None,
        search: bool = True,
    ) -> dict[str, json_values.Json]:
        """Finds where a batch overflows; waits for the device.

        Args:
          inputs: as for `look`.
          labels: as for `look`.
          sample_weight: as for `look`.
          scale: as for `look`.
          search: whether to search for `largest_scale`.

        Returns:
          What `overflow_origin.find` returns, its description as `text`, and, if only
          the backward pass overflowed, `largest_scale`: the largest power of two at
          which this batch does not overflow; None if there is none down to 2^-24 of
          the scale.
        """
        batch = (self._step.prepare(inputs), labels, sample_weight)
        scale = float(self._step.loss_scale if scale is None else scale)
        observed = self._observation(self._restoring(self._brief, batch, scale))
        found = overflow_origin.find(observed)
        # Infinity in the forward pass can be intended, as in a mask.
        intended = found.get("pass") == "forward" and math.isfinite(
            observed.counts["loss"]
        )
        if search and (intended or found.get("pass") in ("backward", "update")):
            largest = self._largest_scale(batch, scale)
            if intended and largest is not None:
                found = overflow_origin.find(observed, forward=False)
            found["largest_scale"] = largest
        return found | {"text": overflow_origin.describe(found)}

    def _largest_scale(self, batch: gradients.Batch, scale: float) -> float | None:
        """Bisects for the largest power of two below `scale` that does not overflow."""
        bad = math.ceil(math.log2(scale))
        good = bad - _SEARCHED_POWERS

        def finite(power: int) -> bool:
            counts = self._restoring(self._brief, batch, 2.0**power)
            return bool(counts["grads_finite"])

        if not finite(good):
            return None
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if finite(middle) else (good, middle)
        return 2.0**good

    def _restoring(
        self,
        look: Callable[..., dict[str, nests.Nest]],
        batch: gradients.Batch,
        scale: tf.Tensor | float | None,
    ) -> dict[str, nests.Nest]:
        """Calls what may change the training, and restores everything."""
        state = self._step.state
        changing = variables(self._step)
        # Not copied yet: an assignment to the variable does not change what was read.
        before = [variable.read_value() for variable in changing]
        try:
            if scale is not None and state.loss_scale:
                state.loss_scale[0].assign(scale)
            return look(*batch)
        finally:  # Also when the device ran out of memory.
            for variable, old in zip(changing, before, strict=True):
                variable.assign(old)

    def _observation(self, counts: dict[str, nests.Nest]) -> observation.Observation:
        state, trained = self._step.state, self._step.model.trainable_variables
        variables = [
            observation.ObservedVariable(
                master.path, tuple(master.shape), working.dtype.name
            )
            for master, working in zip(trained, state.working_weights, strict=True)
        ]
        places = {layer.name: i for i, layer in enumerate(self._layers)}
        owners = {
            variable.path: places[name]
            for name, operation in layer_observer.operations(self._step.model)
            for variable in getattr(operation, "trainable_variables", ())
            if name in places
        }
        return observation.Observation(
            self._layers, variables, owners, self._half, counts
        )

    def _observe(
        self,
        inputs: nests.Nest,
        labels: nests.Nest,
        sample_weight: nests.Nest,
        full: bool,
    ) -> dict[str, nests.Nest]:
        """Runs the step under observation; traced."""
        step, state = self._step, self._step.state
        counts = {"step": state.step.read_value()}
        masters = [tf.identity(variable) for variable in state.master_weights]
        if not full:
            counts["masters"] = [counting.outcomes(x) for x in masters]
            counts["weights"] = [counting.outcomes(v) for v in state.working_weights]
            counts["batch"] = [
                counting.outcomes(x) for x in tf.nest.flatten((inputs, labels))
            ]
        observer = layer_observer.LayerObserver(counting.outcomes, and_inputs=not full)
        with observer.on(step.twin):
            # Observers would see a recomputed layer twice.
            trace = step.trace(inputs, labels, sample_weight, recompute=False)
        for name in ("loss", "loss_scale", "grads_finite", "grad_norm"):
            counts[name] = trace.metrics[name]
        self._layers = observer.layers
        counts["activations"] = observer.outputs
        counts["activation_grads"] = observer.grads
        counts["grads"] = [counting.outcomes(x) for x in trace.scaled_grads]
        if full:
            dtype = tf.as_dtype(self._half or "float16")
            after = [tf.identity(variable) for variable in state.master_weights]
            counts["updates"] = [
                counting.changes(old, new, dtype)
                for old, new in zip(masters, after, strict=True)
            ]
        else:
            counts["inputs"] = observer.inputs
        return counts

    def _float32_pass(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest
    ) -> dict[str, list[dict[str, tf.Tensor]]]:
        """Histograms of the master model on the first micro-batch; traced."""
        step, model = self._step, self._step.model
        count = step.gradients.accumulate_steps

        def first(x: tf.Tensor) -> tf.Tensor:
            return x[: gradients.micro_batch_size(x, count)[1]] if count > 1 else x

        inputs, labels = tf.nest.map_structure(first, (inputs, labels))
        if sample_weight is not None:
            sample_weight = first(sample_weight)
        # The same dropout, if 16 bits draw the same masks as float32.
        for own, working in pairs.of_seeds(model, step.twin):
            own.assign(working)
        observer = layer_observer.LayerObserver(counting.distribution)
        with observer.on(model), tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = step.loss(labels, outputs, sample_weight)
            for extra in model.losses:
                loss += tf.cast(extra, tf.float32)
        grads = tape.gradient(loss, step.state.master_weights)
        places = _places(self._layers, observer.layers)

        def counted(
            found: list[observation.DeviceCounts | None],
        ) -> list[dict[str, tf.Tensor]]:
            return [(found[p] or {}) if p is not None else {} for p in places]

        return {
            "activations": counted(observer.outputs),
            "activation_grads": counted(observer.grads),
            "grads": [
                {} if grad is None else counting.distribution(grad) for grad in grads
            ],
        }


def variables(step: train_step.TrainStep) -> list[tf.Variable]:
    """Returns every variable that a step, or a call of the model, may change."""
    of_models = [v.value for v in (*step.model.variables, *step.twin.variables)]
    unique = {id(v): v for v in (*step.state.variables, *of_models)}
    return list(unique.values())


def _places(
    here: list[observation.ObservedLayer], there: list[observation.ObservedLayer]
) -> list[int | None]:
    """Finds each observed output in another model of the same structure."""
    if len(here) == len(there):
        return list(range(len(here)))
    places = {layer.name: i for i, layer in enumerate(there)}
    return [places.get(layer.name) for layer in here]


def _half_dtype(step: train_step.TrainStep) -> str | None:
    """Returns the 16-bit dtype of the step's twin; None if it has none."""
    dtypes = {variable.dtype for variable in step.twin.variables}
    for _, operation in layer_observer.operations(step.twin):
        dtypes.add(getattr(operation, "compute_dtype", "float32"))
    return next((d for d in choices.HALF_PRECISIONS if d in dtypes), None)
