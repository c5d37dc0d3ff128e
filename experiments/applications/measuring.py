"""Coverage, errors and audit of one model: the 16-bit twin, and Keras' policy.

for row in measure("GPT2Backbone", ["float16", "bfloat16"]): ...
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mp_loop
from experiments.applications import architectures, audit, backbones
from mp_loop.precision import coverage, pairs
from mp_loop.step import keras_step

SCALES = [2.0**power for power in range(15, -15, -1)]  # of the loss; float16 needs one
Row = dict[str, Any]


def measure(name: str, precisions: Sequence[str]) -> list[Row]:
    """Returns a row for each precision; "raises" in it says why there is no more."""
    try:
        keras.utils.set_random_seed(0)
        model, inputs = build(name)
        inputs = keras.tree.map_structure(tf.constant, inputs)
        exact = in_float32(model, inputs)
    except Exception as error:
        return [failure(name, precision, error) for precision in precisions]
    rows = []
    for precision in precisions:
        begun = time.monotonic()
        try:
            row = measure_twin(model, inputs, precision, exact)
        except Exception as error:
            rows.append(failure(name, precision, error))
            continue
        try:
            row["keras"] = measure_keras(name, model, inputs, precision, exact)
        except Exception as error:
            row["keras"] = {"raises": first_line(error)}
        seconds = round(time.monotonic() - begun)
        rows.append({"model": name, "precision": precision, **row, "seconds": seconds})
    return rows


def build(name: str) -> tuple[keras.Model, Any]:
    """Makes a model, and inputs for it."""
    if name in backbones.NAMES:
        model = backbones.build(name)
        return model, backbones.inputs(model)
    model, size = architectures.build(name, 10)
    shape = (16, size, size, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    architectures.adapt(model, images)
    return model, images[:4]


def under_keras_policy(
    name: str, model: keras.Model, policy: str
) -> tuple[keras.Model, list[keras.Variable]]:
    """Makes the model that Keras makes under a policy, of equal weights.

    Returns:
      The model, and its variables in the order of the trainable ones of `model`.
    """
    if name in backbones.NAMES:  # made once more, under the global policy
        try:
            mixed = backbones.build(name, policy)
        except Exception:  # some must be told which
            mixed = backbones.build(name, policy, dtype=policy)
        mixed.set_weights(model.get_weights())
        return mixed, mixed.trainable_variables
    mixed = keras_step.under_policy(model, policy)
    working = {id(master): copy for master, copy in pairs.of_weights(model, mixed)}
    return mixed, [working[id(variable)] for variable in model.trainable_variables]


def in_float32(model: keras.Model, inputs: Any) -> Values:
    """Computes what a float32 model itself gives.

    Returns:
      Its values; of no variables where TensorFlow has no gradient for this device, as
      of grouped convolutions on a processor.

    Raises:
      Exception: TensorFlow cannot trace it.
    """
    variables = model.trainable_variables
    try:
        exact = Values(model, variables, inputs)
        exact.compute(1.0)
    except tf.errors.OperatorNotAllowedInGraphError:  # it branches on a tensor
        exact = Values(model, variables, inputs, autograph=True)
        exact.compute(1.0)
    except tf.errors.InvalidArgumentError:
        exact = Values(model, [], inputs)
        exact.compute(1.0)
    return exact


def measure_twin(model: keras.Model, inputs: Any, precision: str, exact: Values) -> Row:
    """Returns what is measured of the 16-bit twin."""
    twin = mp_loop.half_precision_twin(model, precision)
    working = {id(master): copy for master, copy in pairs.of_weights(model, twin)}
    variables = [working[id(v)] for v in exact.variables]
    ours = Values(twin, variables, inputs, exact.autograph)
    found = coverage.of_twin(twin, model, precision, inputs)
    wide = [layer.layer for layer in found.by_layer if layer.float32]
    return {
        "parameters": model.count_params(),
        **compared(ours, exact, found),
        "float32": wide,
    }


def measure_keras(
    name: str, model: keras.Model, inputs: Any, precision: str, exact: Values
) -> Row:
    """Returns the same of the model that Keras makes under its mixed policy."""
    policy = keras_step.POLICIES[precision]
    mixed, variables = under_keras_policy(name, model, policy)
    variables = variables if exact.variables else []
    theirs = Values(mixed, variables, inputs, exact.autograph)
    return compared(theirs, exact, coverage.of_twin(mixed, model, precision, inputs))


def compared(values: Values, exact: Values, found: coverage.Coverage) -> Row:
    """Returns coverage, errors and audit of one model."""
    scale = values.largest_scale()
    return {
        "share": found.share,
        "outputs": relative(values.outputs, exact.outputs),
        "gradients": relative(values.gradients, exact.gradients)
        if exact.variables
        else None,
        "loss_scale": scale,
        "below": dict(collections.Counter(x.split()[0] for x in values.below())),
    }


class Values:
    """Outputs and gradients of a model.

    Attributes:
      variables: what gradients are computed of.
      autograph: whether the model's code is converted, which takes its time.
      outputs: float arrays, once computed.
      gradients: float32 arrays, once computed, divided by the loss scale; those of
        the mean squares of the outputs, added up.
    """

    def __init__(
        self,
        model: keras.Model,
        variables: Sequence[keras.Variable],
        inputs: Any,
        autograph: bool = False,
    ):
        self.variables, self._inputs = list(variables), inputs
        self.autograph = autograph
        self.outputs: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []
        values = [variable.value for variable in variables]

        @tf.function(autograph=autograph)
        def compute(inputs: Any, scale: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                outputs = [
                    tf.cast(tensor, tf.float32)
                    for tensor in tf.nest.flatten(model(inputs, training=False))
                    if tensor is not None and tensor.dtype.is_floating
                ]
                means = [tf.reduce_mean(tf.square(tensor)) for tensor in outputs]
                loss = tf.add_n(means) * scale
            grads = tape.gradient(
                loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return outputs, [
                tf.cast(tf.convert_to_tensor(grad), tf.float32) / scale
                for grad in grads
            ]

        self._compute: Callable[..., Any] = compute

    def compute(self, scale: float) -> bool:
        """Computes with a loss scale; tells whether every gradient is finite."""
        outputs, grads = self._compute(self._inputs, tf.constant(scale))
        self.outputs = [tensor.numpy() for tensor in outputs]
        self.gradients = [tensor.numpy() for tensor in grads]
        return all(np.isfinite(grad).all() for grad in self.gradients)

    def largest_scale(self) -> float:
        """Computes with the largest loss scale that does not overflow; or with 1."""
        return next((scale for scale in SCALES if self.compute(scale)), SCALES[-1])

    def below(self) -> list[str]:
        """Returns what forward and backward pass compute below float32."""
        return audit.half_precision_sums(
            self._compute, self._inputs, tf.constant(SCALES[0])
        )


def relative(values: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """The norm of all differences, divided by that of what is exact."""
    one, other = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in all_of])
        for all_of in (values, exact)
    )
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30))


def failure(name: str, precision: str, error: Exception) -> Row:
    """A row that says why there is no more of it."""
    return {"model": name, "precision": precision, "raises": first_line(error)}


def first_line(error: Exception) -> str:
    """The first line that says something, without colours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [x for x in lines if not x.startswith(("Exception encountered", "Graph ex"))]
    text = (told or lines or [""])[0].replace("\x1b[1m", "").replace("\x1b[0m", "")
    return f"{type(error).__name__}: {text}"[:200]
