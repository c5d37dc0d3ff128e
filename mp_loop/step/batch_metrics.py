"""Metrics of each training batch, from the outputs that the step computed anyway.

    measure = BatchMetrics(["accuracy"], names=None)
    measure(labels, outputs)           # {"accuracy": float32 []}

Keras' metric objects add up over batches. Here each batch begins anew, so that a step
returns what it measured, as it returns its loss, and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.step import gradients, losses, metrics

# What a user gives: a metric, several, or one or several for each output.
MetricLike: TypeAlias = str | keras.metrics.Metric | Callable[..., tf.Tensor] | None
MetricsLike: TypeAlias = (
    MetricLike | Sequence[MetricLike] | Mapping[str, MetricLike | Sequence[MetricLike]]
)

# Metrics of one output, by the names of their values; and of each output.
_Named: TypeAlias = list[tuple[str, keras.metrics.Metric]]
_PerOutput: TypeAlias = Mapping[str, _Named] | list[_Named]


class BatchMetrics:
    """Measures a batch by any metric of Keras.

    Attributes:
      names: of the values.
    """

    def __init__(self, given: MetricsLike, names: Sequence[str] | None):
        """Makes the metric objects.

        Args:
          given: Keras identifier, `keras.metrics.Metric`, or function of (labels,
            outputs) that returns values to be averaged; a list of such; or a dict of
            these by output, whose name then comes first: "top_accuracy".
          names: of the outputs, where the model returns a list of them.

        Raises:
          ValueError: Keras knows no such metric, or two values have one name.
        """
        if isinstance(given, Mapping):
            alone = names is not None and len(names) == 1
            by_output: _PerOutput = {
                output: _named("" if alone else f"{output}_", of_one)
                for output, of_one in given.items()
            }
            groups = list(by_output.values())
        else:
            by_output = groups = [_named("", given)]
        self.names = [name for group in groups for name, _ in group]
        taken = [*self.names, *metrics.METRICS]
        for name in self.names:
            if taken.count(name) > 1:
                raise ValueError(
                    f"`metrics`: '{name}' is the name of another value; give the "
                    "metric a `name`."
                )
        self._by_output: losses.ByOutput[_Named] = losses.ByOutput(
            by_output, None, names, argument="metrics"
        )

    @property
    def dtypes(self) -> dict[str, tf.DType]:
        """The dtype of each value by its name."""
        return dict.fromkeys(self.names, tf.float32)

    def __call__(
        self, labels: nests.Nest, outputs: nests.Nest, sample_weight: nests.Nest = None
    ) -> dict[str, tf.Tensor]:
        """Returns the value of each metric by its name, float32 [].

        Args:
          labels: of a batch.
          outputs: of the model, of any dtype.
          sample_weight: as the loss takes it.

        Raises:
          ValueError: labels, outputs and metrics do not fit.
        """
        if not self.names:
            return {}
        outputs = gradients.outputs_in_float32(outputs)
        rows = self._by_output.by_output(labels, outputs, sample_weight)
        return {
            name: _value(metric, label, output, weight)
            for output, of_one, _, label, weight in rows
            for name, metric in of_one or ()
        }


def _named(prefix: str, given: MetricLike | Sequence[MetricLike]) -> _Named:
    """Returns the metrics of one output with the names of their values."""
    several = given if isinstance(given, list | tuple) else [given]
    found = [_metric(one) for one in several if one is not None]
    return [(f"{prefix}{metric.name}", metric) for metric in found]


def _metric(given: MetricLike) -> keras.metrics.Metric:
    if given in ("accuracy", "acc"):
        return keras.metrics.MeanMetricWrapper(_accuracy, name=given)
    return as_object(given)


def as_object(given: MetricLike) -> keras.metrics.Metric | None:
    """Returns a metric object: of an identifier, or the mean of a function's values."""
    found = keras.metrics.get(given)
    if isinstance(found, keras.metrics.Metric | None):
        return found
    return keras.metrics.MeanMetricWrapper(found, name=getattr(found, "__name__", None))


def _accuracy(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """The accuracy that these shapes mean to `compile`."""
    if outputs.shape[-1] == 1:
        return keras.metrics.binary_accuracy(labels, outputs)
    if len(labels.shape) < len(outputs.shape) or labels.shape[-1] == 1:
        return keras.metrics.sparse_categorical_accuracy(labels, outputs)
    return keras.metrics.categorical_accuracy(labels, outputs)


def _value(
    metric: keras.metrics.Metric,
    label: nests.Nest,
    output: nests.Nest,
    weight: nests.Nest,
) -> tf.Tensor:
    """Returns the metric of one batch, float32 []; raises ValueError if it is more."""
    result = of_one_batch(metric, label, output, weight)
    if tf.nest.is_nested(result) or len(result.shape):
        raise ValueError(f"`metrics`: {metric.name} must be one number.")
    return tf.cast(result, tf.float32)


def of_one_batch(
    metric: keras.metrics.Metric,
    label: nests.Nest,
    output: nests.Nest,
    weight: nests.Nest = None,
) -> nests.Nest:
    """Returns the metric of one batch alone; the object's variables stay as they are.

    Args:
      metric: any of Keras' kind.
      label: of the batch.
      output: of the model.
      weight: sample weights, or None.
    """
    weighed = {} if weight is None else {"sample_weight": weight}
    state = metric.stateless_reset_state()
    state = metric.stateless_update_state(state, label, output, **weighed)
    return metric.stateless_result(state)
