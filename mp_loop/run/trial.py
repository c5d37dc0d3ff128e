"""Tries the loss and the metric on a few examples, before anything is written.

    trial.check(config.model, model, loss, source)     # UsageError: --loss (mse): ...

What a flag names may exist and still not fit the labels, which are class numbers,
standardized targets, or 0 and 1 of several classes, or the outputs of the model.
TensorFlow would say so in the first step, or, where shapes happen to broadcast, never.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import errors, sections
from mp_loop.data import batching, sources
from mp_loop.models import heads
from mp_loop.run import metric
from mp_loop.step import batch_metrics, losses

# Not the number of classes: labels of shape [n] must not broadcast with [n, n].
_ROWS = (3, 2)
# The module of Keras' metrics of numbers.
_OF_NUMBERS = keras.metrics.MeanSquaredError.__module__


def check(
    named: sections.Model,
    model: keras.Model,
    loss: losses.Loss,
    source: sources.Source,
) -> None:
    """Computes loss and metric of a few test examples.

    Args:
      named: the names of loss, metric and model.
      model: the user's float32 model.
      loss: of (labels, outputs).
      source: the data.

    Raises:
      UsageError: one of them fails, or does not fit; the message names the flag.
    """
    rows = next(n for n in _ROWS if n != source.num_classes)
    inputs, labels, *_ = next(iter(batching.evaluation_batches(source, rows)))
    with _blamed("model", named.model, "cannot take a batch"):
        outputs = tf.cast(model(inputs, training=False), tf.float32)
    shapes = f"labels {labels.shape} and outputs {outputs.shape}"
    name = named.trained_by
    of_numbers = source.targets is None and source.task != "multilabel"
    hint = _sparse(name) if of_numbers else ""
    with _blamed("loss", name, f"does not fit {shapes}", hint):
        value = losses.of(loss)(labels, outputs)
        if source.targets:
            _check_distance(value, losses.of(loss)(labels + 1, outputs + 1))
        if source.task == "multilabel":
            _check_each_class(losses.of(loss), heads.ends_in(model))
    with _blamed("metric", named.measured_by, f"does not fit {shapes}"):
        made = metric.make(named.measured_by, heads.from_logits(model), source).metric
        if made is not None:
            _try_metric(made, labels, outputs, source.task)


def _check_distance(value: tf.Tensor, shifted: tf.Tensor) -> None:
    """Refuses a loss of raw numbers: of a ratio, of a count, of a probability."""
    if not np.isclose(value, shifted, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "targets are standardized, and so a loss must be of the difference alone, "
            "as mse, mae, huber and log_cosh are"
        )


def _check_each_class(loss: Callable[..., tf.Tensor], end: str) -> None:
    """Refuses a loss that is not of each class for itself.

    It must be 0 of what is right everywhere, and more of what is wrong anywhere.

    Args:
      loss: of (labels, outputs), [n, classes].
      end: see `heads.ends_in`.
    """
    rows = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0]], np.float32)
    no, yes = (0.0, 1.0) if end else (-20.0, 20.0)

    def value(flags: np.ndarray) -> float:
        outputs = np.where(flags == 1, yes, no).astype(np.float32)
        return float(loss(tf.constant(rows), tf.constant(outputs)))

    places = np.eye(rows.size).reshape(-1, *rows.shape)
    right, wrong = value(rows), [value(np.abs(rows - place)) for place in places]
    if abs(right) > 1e-3 or min(wrong) < 1e-3:
        raise ValueError(
            "several classes may be right, and so a loss must be of each for itself, "
            "as binary_crossentropy and binary_focal_crossentropy are"
        )


def _try_metric(
    found: keras.metrics.Metric, labels: tf.Tensor, outputs: tf.Tensor, task: str
) -> None:
    if isinstance(found, metric.InUnits):
        own, is_function = type(found.metric).__module__, _is_function(found.metric)
        if own.startswith("keras.") and own != _OF_NUMBERS and not is_function:
            raise ValueError(
                "targets are numbers, as for mean_absolute_error and r2_score"
            )
        return _measure(found, labels, outputs)
    if isinstance(found, metric.OfProbabilities):
        if task == "multilabel" and "Categorical" in type(found.metric).__name__:
            raise ValueError(
                "several classes may be right, as for auc, binary_accuracy and f1_score"
            )
        return _measure(found, labels, outputs)
    if task == "segmentation" and isinstance(found, keras.metrics.MeanIoU):
        return _measure(found, labels, outputs)
    count = outputs.shape[-1]
    if getattr(found, "k", 0) >= count:
        raise ValueError(f"of {count} classes one of {found.k} is always right")
    is_kerass = type(found).__module__.startswith("keras.")
    of_class_numbers = type(found).__name__.startswith("Sparse")
    fits = outputs.shape[1:] in ([], [1]) or labels.shape == outputs.shape
    if is_kerass and not (of_class_numbers or fits):
        fitting = "accuracy, auc and sparse_top_k_categorical_accuracy"
        if task == "segmentation":
            fitting = "accuracy and mean_iou"
        raise ValueError(f"labels are class numbers, as for {fitting}")
    return _measure(found, labels, outputs)


def _measure(
    found: keras.metrics.Metric, labels: tf.Tensor, outputs: tf.Tensor
) -> None:
    """Computes a metric as a step does, in a graph."""

    @tf.function(autograph=False)
    def measure(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return batch_metrics.of_one_batch(found, labels, outputs)

    traced = measure.get_concrete_function(labels, outputs)
    float(np.asarray(traced(labels, outputs)))


def _is_function(found: keras.metrics.Metric) -> bool:
    """Tells whether a metric is the mean of a user's function."""
    return type(found) is keras.metrics.MeanMetricWrapper


@contextlib.contextmanager
def _blamed(flag: str, value: str, what: str, hint: str = "") -> Iterator[None]:
    """Inside, what a user's loss, metric or model raises is told in one line."""
    try:
        yield
    except Exception as error:  # A user's function can raise any type.
        why = error.message if isinstance(error, tf.errors.OpError) else error
        said = errors.because(f"--{flag} ({value}) {what}", why)
        raise errors.UsageError(f"{said}{hint}") from error


def _sparse(loss: str) -> str:
    """Names the loss of class numbers where there is one."""
    sparse = f"sparse_{loss}"
    if not hasattr(keras.losses, sparse):
        return ""
    return f" The labels are class numbers: --loss={sparse}."
