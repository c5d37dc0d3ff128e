"""Evaluation of a float32 model: mean loss and one metric over all examples.

evaluate = EvalStep(model, loss, "sparse_categorical_accuracy")
evaluate(batches)             # {"eval_loss": ..., "eval_accuracy": ...}
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mp_loop.distributed import nests, replicas
from mp_loop.step import batch_metrics, gradients, losses, preparing


class EvalStep:
    """Evaluates a float32 model: mean loss and one metric over all examples."""

    def __init__(
        self,
        model: keras.Model,
        loss: losses.LossesLike,
        metric: batch_metrics.MetricLike,
        prepare: preparing.Prepare | None = None,
    ):
        """Prepares the metrics.

        Args:
          model: the model to evaluate, as its user would use it.
          loss: as for `TrainStep`.
          metric: Keras identifier or `keras.metrics.Metric`; None: the loss alone.
          prepare: as for `TrainStep`.
        """
        self._model = model
        self._prepare = preparing.or_unchanged(prepare)
        self._loss = losses.of(loss, names=getattr(model, "output_names", None))
        self._metric = batch_metrics.as_object(metric)
        self._mean = keras.metrics.Mean()
        run = replicas.Replicas().each(self._one_step, even=False)
        self._step = tf.function(run, autograph=False)

    def __call__(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Returns `eval_loss`, and `eval_accuracy` if there is a metric.

        Args:
          batches: of (inputs, labels[, sample_weight]).
        """
        counted = [self._mean, *([] if self._metric is None else [self._metric])]
        for one in counted:
            one.reset_state()
        for batch in batches:
            self._step(*batch)
        results = [float(one.result()) for one in counted]
        return dict(zip(("eval_loss", "eval_accuracy"), results, strict=False))

    def _one_step(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> None:
        outputs = self._model(self._prepare(inputs), training=False)
        loss = self._loss(labels, gradients.outputs_in_float32(outputs), sample_weight)
        rows = tf.shape(tf.nest.flatten(labels)[0])[0]
        loss = tf.where(rows > 0, loss, 0.0)  # a replica may have none
        self._mean.update_state(loss, sample_weight=rows)
        if self._metric is not None:
            weights = () if sample_weight is None else (sample_weight,)
            self._metric.update_state(labels, outputs, *weights)
