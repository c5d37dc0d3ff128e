"""Tries the loss and the metric on a few examples, before anything is written.

    trial.check(config.model, model, loss, source)     # UsageError: --loss (mse): ...

What a flag names may exist and still not fit the labels, which are class numbers or
standardized targets, or the outputs of the model. TensorFlow would say so in the first
step, or, where shapes happen to broadcast, never.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import errors, sections
from mp_loop.data import batching, sources
from mp_loop.models import heads
from mp_loop.run import metric
from mp_loop.step import losses

# Not the number of classes: labels of shape [n] must not broadcast with [n, n].
_ROWS = (3, 2)
# The module of Keras' metrics of numbers.
_OF_NUMBERS = keras.metrics.MeanSquaredError.__module__


def check(
    named: sections.Model,
    model: keras.Model,
    loss: Callable[..., Any],
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
    hint = "" if source.targets else _sparse(name)
    with _blamed("loss", name, f"does not fit {shapes}", hint):
        value = losses.of(loss)(labels, outputs)
        if source.targets:
            _check_distance(value, losses.of(loss)(labels + 1, outputs + 1))
    with _blamed("metric", named.measured_by, f"does not fit {shapes}"):
        made = metric.make(
            named.measured_by, heads.from_logits(model), source.targets
        ).metric
        if made is not None:
            _try_metric(made, labels, outputs)


def _check_distance(value: tf.Tensor, shifted: tf.Tensor) -> None:
    """Refuses a loss of raw numbers: of a ratio, of a count, of a probability."""
    if not np.isclose(value, shifted, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "targets are standardized, and so a loss must be of the difference alone, "
            "as mse, mae, huber and log_cosh are"
        )


def _try_metric(
    found: keras.metrics.Metric, labels: tf.Tensor, outputs: tf.Tensor
) -> None:
    if isinstance(found, metric.InUnits):
        own, is_function = type(found.metric).__module__, _is_function(found.metric)
        if own.startswith("keras.") and own != _OF_NUMBERS and not is_function:
            raise ValueError(
                "targets are numbers, as for mean_absolute_error and r2_score"
            )
        found.update_state(labels, outputs)
        float(np.asarray(found.result()))
        return
    is_kerass = type(found).__module__.startswith("keras.")
    of_class_numbers = type(found).__name__.startswith("Sparse")
    fits = outputs.shape[1:] in ([], [1]) or labels.shape == outputs.shape
    if is_kerass and not (of_class_numbers or fits):
        raise ValueError(
            "labels are class numbers, as for accuracy and "
            "sparse_top_k_categorical_accuracy"
        )
    found.update_state(labels, outputs)
    float(np.asarray(found.result()))


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
