"""Finds by measuring what to change where 16 bits are not enough.

    judge = Judge(model, loss, batches, precision="float16")
    judge.error(())                      # how far 16 bits are from float32, or inf
    islands = fewest(
        judge.candidates, lambda names: judge.error(names).within(0.05, 0.5)
    )
    judge.error(islands.names)           # ... with these layers in float32

Errors are relative, in the Euclidean norm, of a forward and a backward pass on real
batches, against the same model in float32 or float64. Dropout is left out, since a
16-bit layer would draw another mask. The search is delta debugging (Zeller and
Hildebrandt 2002, "Simplifying and Isolating Failure-Inducing Input"): from all
layers in float32, parts are given back to 16 bits as long as the error stays below
the bound, until no layer can be. Then smaller sets are tried, all of them where
they are few.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mp_loop.hardware import devices
from mp_loop.numerics import histogram
from mp_loop.precision import cloning, copies, pairs, twins
from mp_loop.step import loss_scale

# A variable whose gradient is smaller than this part of the largest one is not
# judged: it may be nothing but rounding (a bias in front of a batch norm).
_NEGLIGIBLE = 1e-3
# How many smaller sets of layers are tried, at most.
_TRIES = 64
_RANDOM = (
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


@dataclasses.dataclass(frozen=True)
class Error:
    """How far a 16-bit pass is from the reference; inf where it overflows.

    Attributes:
      outputs: relative error of the model's outputs.
      grads: the largest relative error of the gradient of a variable.
      variable: the path of that variable.
      scale: the loss scale at which the gradients were finite, and used.
    """

    outputs: float
    grads: float
    variable: str
    scale: float

    def within(self, bound: float, grad_bound: float) -> bool:
        """Tells whether outputs and gradients are near enough."""
        return self.outputs <= bound and self.grads <= grad_bound


class Judge:
    """Measures a model in 16 bits, with any of its layers in float32."""

    def __init__(
        self,
        model: keras.Model,
        loss: Callable[..., tf.Tensor],
        batches: Sequence[tuple[Any, Any]],
        precision: str = "float16",
        scale: float = 2.0**15,
        reference: str = "float32",
    ):
        """Computes the reference.

        Args:
          model: a float32 model that can be converted; nothing in it is changed.
          loss: from (labels, outputs) to a float32 loss, [].
          batches: of (inputs, labels).
          precision: "float16" or "bfloat16".
          scale: the loss scale to try first; smaller ones follow while gradients
            overflow, as the dynamic rule would try them.
          reference: "float32" or "float64".
        """
        self._model, self._loss, self._batches = model, loss, list(batches)
        self._precision, self._scale = precision, scale
        self._slow = devices.multiplies_slowly(precision)
        self._errors: dict[tuple[str, ...], Error] = {}
        twin = self._twin(())
        islands = {id(layer) for layer in model._flatten_layers()}
        self.candidates = [
            layer.name
            for layer in twin._flatten_layers(include_self=False, recursive=True)
            if id(layer) not in islands
            and layer.variable_dtype == precision
            and layer.name in _names(model)
        ]
        reference_model = model if reference == "float32" else _in_float64(model)
        with _exact_products():
            self._truth = [self._pass(reference_model, *b, 1.0) for b in self._batches]

    @property
    def evaluations(self) -> int:
        """How many sets of layers were measured."""
        return len(self._errors)

    def error(self, names: Sequence[str]) -> Error:
        """Measures with the named layers in float32; the worst of the batches."""
        key = tuple(sorted(names))
        if key not in self._errors:
            self._errors[key] = self._measure(self._twin(key))
        return self._errors[key]

    def _measure(self, twin: keras.Model) -> Error:
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
    ) -> Error:
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
        return Error(output, errors.get(worst, 0.0), worst, scale)

    def _pass(
        self,
        model: keras.Model,
        inputs: Any,
        labels: Any,
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
            self._model, self._precision, regex(names), float32_products=self._slow
        )


@dataclasses.dataclass(frozen=True)
class Islands:
    """Layers that must stay in float32.

    Attributes:
      names: of the layers, in order of the model.
      fewest: whether every smaller set was tried and is not enough.
    """

    names: tuple[str, ...]
    fewest: bool


def fewest(
    candidates: Sequence[str], is_enough: Callable[[Sequence[str]], bool]
) -> Islands | None:
    """Searches for the fewest layers that must stay in float32.

    Args:
      candidates: the layers that could, in order of the model.
      is_enough: tells whether a set of them is; more layers should not do worse.

    Returns:
      A set of which no layer can be left out; None if not even all are enough.
    """
    if is_enough(()):
        return Islands((), True)
    if not is_enough(tuple(candidates)):
        return None
    current, parts = tuple(candidates), 2
    while len(current) > 1:
        chunks = _split(current, parts)
        rests = [tuple(n for n in current if n not in chunk) for chunk in chunks]
        smaller = next(filter(is_enough, chunks), None)
        if smaller:
            current, parts = smaller, 2
            continue
        smaller = next(filter(is_enough, rests), None) if parts > 2 else None
        if smaller:
            current, parts = smaller, max(parts - 1, 2)
        elif parts < len(current):
            parts = min(2 * parts, len(current))
        else:
            break
    tries = 0
    for size in range(1, len(current)):
        for names in itertools.combinations(candidates, size):
            tries += 1
            if tries > _TRIES:
                return Islands(current, False)
            if is_enough(names):
                return Islands(names, True)
    return Islands(current, True)


def regex(names: Sequence[str]) -> str:
    """The value of --float32_layers that finds exactly these layers."""
    return f"^({'|'.join(map(re.escape, names))})$" if names else ""


Limits = list[tuple[int, tuple[int, int]]]


def limits(
    lines: Sequence[dict[str, Any]], float32_layers: Sequence[str] = ()
) -> Limits:
    """Reads from looks at a model which loss scales suit it.

    Args:
      lines: from `mp_loop.numerics.probe_report.summarize`.
      float32_layers: layers that will be in float32, and do not count.

    Returns:
      (step, (from, to)), as powers of two, for each look that has gradients in 16
      bits.
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
        common = histogram.common_scales(
            [
                (entry["scale_from"], entry["scale_to"])
                for entry in entries
                if entry and entry.get("scale_from") is not None
            ]
        )
        if common:
            found.append((line["step"], common))
    return found


def initial_scale(rule: loss_scale.DynamicLossScale, limits: Limits) -> float:
    """Returns the scale to start at: two doublings below the largest that suits.

    Not below the smallest that suits, if there is one that suits; within the bounds
    of the rule; its own initial scale where nothing limits it.
    """
    if not limits:
        return rule.initial_scale
    low = max(pair[0] for _, pair in limits)
    high = min(pair[1] for _, pair in limits)
    power = max(high - 2, min(low, high))
    return min(max(2.0**power, rule.min_scale), rule.max_scale)


def growth_interval(
    rule: loss_scale.DynamicLossScale,
    limits: Limits,
    steps: int,
    choices: Sequence[int] = (50, 100, 200, 500, 1000, 2000),
) -> int:
    """Plays the rule against measured limits, and returns the interval that fits.

    Args:
      rule: with the initial scale that will be used.
      limits: what suited each step looked at; in between a straight line, and after
        the last one no change.
      steps: length of the run.
      choices: intervals to play.

    Returns:
      The interval with the fewest skipped steps and steps at too small a scale; the
      longest of those.
    """
    if not limits:
        return rule.growth_interval
    known = [step for step, _ in limits]
    positions = np.arange(steps)
    low = np.interp(positions, known, [pair[0] for _, pair in limits])
    high = np.interp(positions, known, [pair[1] for _, pair in limits])

    return min(
        sorted(choices, reverse=True),
        key=lambda interval: lost_steps(rule, interval, low, high),
    )


def lost_steps(
    rule: loss_scale.DynamicLossScale, interval: int, low: np.ndarray, high: np.ndarray
) -> int:
    """Counts the steps of a run that a dynamic scale skips, or takes too low.

    Args:
      rule: its factors, bounds and initial scale are used, without hysteresis.
      interval: the growth interval.
      low: [steps], the smallest power of two that suits each step.
      high: [steps], the largest; a step above it is skipped.
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


def _relative(found: Any, true: np.ndarray) -> float:
    if found is None or not np.isfinite(found).all():
        return math.inf
    norm = float(np.linalg.norm(true))
    return float(np.linalg.norm(found - true)) / norm if norm else 0.0


def _split(names: tuple[str, ...], parts: int) -> list[tuple[str, ...]]:
    bounds = [round(i * len(names) / parts) for i in range(parts + 1)]
    return [names[a:b] for a, b in itertools.pairwise(bounds) if a < b]


def _names(model: keras.Model) -> set[str]:
    """Names of the layers that clone_model meets, inside nested models as well."""
    found = set()
    for layer in model.layers:
        found.add(layer.name)
        if isinstance(layer, keras.Model):
            found |= _names(layer)
    return found


def _in_float64(model: keras.Model) -> keras.Model:
    """A copy that computes in float64."""

    def convert(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        config = copies.under_policy(layer, keras.DTypePolicy("float64"))
        return copies.copy(layer, config)

    return cloning.clone(model, convert)


@contextlib.contextmanager
def _kept(*models: keras.Model) -> Iterator[None]:
    """Inside, a forward pass may move statistics; afterwards they are back."""
    unique = {id(v): v.value for model in models for v in model.variables}
    before = [(variable, variable.read_value()) for variable in unique.values()]
    try:
        yield
    finally:
        for variable, old in before:
            variable.assign(old)


@contextlib.contextmanager
def _deterministic(model: keras.Model) -> Iterator[None]:
    """Inside, dropout and noise do nothing."""
    stilled = [layer for layer in model._flatten_layers() if isinstance(layer, _RANDOM)]
    for layer in stilled:
        # Not setattr: Keras tracks what is set.
        layer.__dict__["call"] = lambda inputs, training=False: inputs
    try:
        yield
    finally:
        for layer in stilled:
            del layer.__dict__["call"]


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Inside, float32 products are not rounded to TF32."""
    rounded = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounded)
