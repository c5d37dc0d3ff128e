"""How far a 16-bit model is from its float32 reference, with any layers in float32.

    meter = ErrorMeter(model, loss, batches, precision="float16")
    meter.errors(())                    # how far 16 bits are from float32, or inf
    meter.errors(("logits",))           # ... with this layer in float32

Errors are relative, in the Euclidean norm, of a forward and a backward pass over real
batches, against the same model in float32 or float64. Dropout is left out, because a
16-bit layer would draw another mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.hardware import devices
from mp_loop.numerics import layer_search
from mp_loop.precision import by_operation, cloning, copies, pairs, twins
from mp_loop.step import loss_scale

# A variable whose gradient is smaller than this part of the largest one is ignored: its
# gradient may be nothing but rounding (a bias in front of a batch norm).
_NEGLIGIBLE = 1e-3
_RANDOM = (
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


@dataclasses.dataclass(frozen=True)
class PassErrors:
    """Relative errors of a 16-bit forward and backward pass; inf if it overflows.

    Attributes:
      outputs: relative error of the model's outputs.
      grads: the largest relative error of the gradient of a variable.
      variable: the path of that variable.
      scale: the loss scale at which the gradients were finite.
    """

    outputs: float
    grads: float
    variable: str
    scale: float

    def within(self, bound: float, grad_bound: float) -> bool:
        """Tells whether the errors of outputs and gradients are within bounds."""
        return self.outputs <= bound and self.grads <= grad_bound


class ErrorMeter:
    """Measures the errors of a model in 16 bits, with any of its layers in float32.

    Attributes:
      precision: "float16" or "bfloat16".
      reference: the dtype that errors are measured against.
      candidates: the names of the layers that compute in 16 bits, those of few weights
        first.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable[..., tf.Tensor],
        batches: Sequence[tuple[nests.Nest, nests.Nest]],
        precision: str = "float16",
        scale: float = 2.0**15,
        reference: str = "float32",
    ):
        """Computes the reference.

        Args:
          model: a float32 model that can be converted; it is not changed.
          loss: takes (labels, outputs); returns a float32 loss, [].
          batches: pairs of (inputs, labels).
          precision: "float16" or "bfloat16".
          scale: the loss scale to try first; smaller ones follow while gradients
            overflow, as with the dynamic rule.
          reference: "float32" or "float64".
        """
        self._model, self._loss, self._batches = model, loss, list(batches)
        self.precision, self.reference, self._scale = precision, reference, scale
        self._slow = devices.multiplies_slowly(precision)
        self._errors: dict[tuple[str, ...], PassErrors] = {}
        twin = self._twin(())
        unchanged = {id(layer) for layer in model._flatten_layers()}
        converted = [
            layer
            for layer in twin._flatten_layers(include_self=False, recursive=True)
            if id(layer) not in unchanged
            and (layer.variable_dtype == precision or by_operation.is_twin(layer))
            and layer.name in _names(model)
        ]
        # In float32, a layer of few weights costs least.
        converted.sort(key=lambda layer: layer.count_params())
        self.candidates = [layer.name for layer in converted]
        reference_model = model if reference == "float32" else _in_float64(model)
        with _exact_products():
            self._truth = [self._pass(reference_model, *b, 1.0) for b in self._batches]

    @property
    def evaluations(self) -> int:
        """How many sets of layers were measured."""
        return len(self._errors)

    def at(self, precision: str, scale: float) -> ErrorMeter:
        """Returns a meter of the same model and batches in another precision."""
        return ErrorMeter(
            self._model, self._loss, self._batches, precision, scale, self.reference
        )

    def errors(self, names: Sequence[str]) -> PassErrors:
        """Measures with the named layers in float32; returns the worst batch."""
        key = tuple(sorted(names))
        if key not in self._errors:
            self._errors[key] = self._measure(self._twin(key))
        return self._errors[key]

    def _measure(self, twin: keras.Model) -> PassErrors:
        workings = {id(m): w for m, w in pairs.of_weights(self._model, twin)}
        weights = [workings[id(m)] for m in self._model.trainable_variables]
        found = []
        for batch, truth in zip(self._batches, self._truth, strict=True):
            scale = self._scale
            while True:
                outputs, grads = self._pass(twin, *batch, scale, weights)
                fits = all(np.isfinite(g).all() for g in grads if g is not None)
                overflows = not all(np.isfinite(x).all() for x in outputs)
                if fits or overflows or scale <= loss_scale.DynamicLossScale.min_scale:
                    break
                scale /= 16.0
            found.append(self._compare(outputs, grads, truth, scale))
        return max(found, key=lambda error: error.outputs + error.grads)

    def _compare(
        self, outputs: list, grads: list, truth: tuple[list, list], scale: float
    ) -> PassErrors:
        paths = [v.path for v in self._model.trainable_variables]
        norms = [0.0 if g is None else float(np.linalg.norm(g)) for g in truth[1]]
        errors = {
            path: _relative(grad, true)
            for path, grad, true, norm in zip(
                paths, grads, truth[1], norms, strict=True
            )
            if true is not None and norm > _NEGLIGIBLE * max(norms)
        }
        worst = max(errors, key=errors.get, default="")
        output = max(map(_relative, outputs, truth[0]))
        return PassErrors(output, errors.get(worst, 0.0), worst, scale)

    def _pass(
        self,
        model: keras.Model,
        inputs: nests.Nest,
        labels: nests.Nest,
        scale: float,
        weights: Sequence[keras.Variable] | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """Returns outputs and unscaled gradients, float64, in the masters' order."""
        weights = [
            v.value for v in (model.trainable_variables if weights is None else weights)
        ]
        with _kept(self._model, model), _deterministic(model):
            with tf.GradientTape() as tape:
                outputs = model(inputs, training=True)
                loss = self._loss(labels, outputs) * scale
            grads = tape.gradient(loss, weights)
        return (
            [np.asarray(x, np.float64) for x in tf.nest.flatten(outputs)],
            [
                None
                if grad is None
                # 16 bits -> float32, as the step does, then divided
                else np.asarray(
                    tf.cast(tf.convert_to_tensor(grad), tf.float32) / scale, np.float64
                )
                for grad in grads
            ],
        )

    def _twin(self, names: Sequence[str]) -> keras.Model:
        return twins.half_precision_twin(
            self._model,
            self.precision,
            layer_search.regex(names),
            float32_products=self._slow,
        )


def _relative(found: np.ndarray | None, true: np.ndarray) -> float:
    if found is None or not np.isfinite(found).all():
        return math.inf
    norm = float(np.linalg.norm(true))
    return float(np.linalg.norm(found - true)) / norm if norm else 0.0


def _names(model: keras.Model) -> set[str]:
    """Returns the names of the layers that clone_model visits, in nested models too."""
    found = set()
    for layer in model.layers:
        found.add(layer.name)
        if isinstance(layer, keras.Model):
            found |= _names(layer)
    return found


def _in_float64(model: keras.Model) -> keras.Model:
    """Returns a copy that computes in float64."""

    def convert(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        config = copies.under_policy(layer, keras.DTypePolicy("float64"))
        return copies.copy(layer, config)

    return cloning.clone(model, convert)


@contextlib.contextmanager
def _kept(*models: keras.Model) -> Iterator[None]:
    """Restores, on exit, the statistics that a forward pass updates."""
    unique = {id(v): v.value for model in models for v in model.variables}
    before = [(variable, variable.read_value()) for variable in unique.values()]
    try:
        yield
    finally:
        for variable, old in before:
            variable.assign(old)


@contextlib.contextmanager
def _deterministic(model: keras.Model) -> Iterator[None]:
    """Turns dropout and noise off inside."""
    stilled = [layer for layer in model._flatten_layers() if isinstance(layer, _RANDOM)]
    for layer in stilled:
        # Not setattr: Keras tracks the attributes that it sets.
        layer.__dict__["call"] = lambda inputs, training=False: inputs
    try:
        yield
    finally:
        for layer in stilled:
            del layer.__dict__["call"]


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Turns the rounding of float32 products to TF32 off inside."""
    rounded = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounded)
