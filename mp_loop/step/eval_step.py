"""Evaluation of a float32 model: mean loss and one metric over all examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mp_loop.distributed import replicas
from mp_loop.step import gradients, losses


class EvalStep:
    """Evaluates a float32 model: mean loss and one metric over all examples."""

    def __init__(self, model: keras.Model, loss: str | Callable[..., Any], metric: Any):
        """Prepares the metrics.

        Args:
          model: the model to evaluate, as its user would use it.
          loss: as for `TrainStep`.
          metric: Keras identifier or `keras.metrics.Metric`.
        """
        self._model = model
        self._loss = losses.of(loss, names=getattr(model, "output_names", None))
        self._metric = keras.metrics.get(metric)
        if not isinstance(self._metric, keras.metrics.Metric):
            self._metric = keras.metrics.MeanMetricWrapper(self._metric)
        self._mean = keras.metrics.Mean()
        run = replicas.Replicas().each(self._one_step, even=False)
        self._step = tf.function(run, autograph=False)

    def __call__(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Returns `eval_loss` and `eval_accuracy` over (inputs, labels) batches."""
        self._metric.reset_state()
        self._mean.reset_state()
        for inputs, labels in batches:
            self._step(inputs, labels)
        return {
            "eval_loss": float(self._mean.result()),
            "eval_accuracy": float(self._metric.result()),
        }

    def _one_step(self, inputs: Any, labels: Any) -> None:
        outputs = self._model(inputs, training=False)
        loss = self._loss(labels, gradients.outputs_in_float32(outputs))
        rows = tf.shape(tf.nest.flatten(labels)[0])[0]
        loss = tf.where(rows > 0, loss, 0.0)  # a replica may have none
        self._mean.update_state(loss, sample_weight=rows)
        self._metric.update_state(labels, outputs)
