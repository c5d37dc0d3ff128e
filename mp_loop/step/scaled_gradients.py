"""Forward pass, float32 loss, and backward pass of the scaled loss.

    scaled = ScaledGradients(twin, loss, variables, arithmetic)
    means, grads, outputs = scaled((inputs, labels, None), scale)   # means["loss"]

The first half of a step: what is computed before anything is checked or changed. A
loop of one's own can call it alone, and hand the gradients to `TrainStep.apply`.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.precision import recomputation
from mp_loop.step import arithmetic, batch_metrics, gradients, losses, variables


class ScaledGradients:
    """The gradients of a batch's scaled loss, over micro-batches if there are any.

    Attributes:
      accumulate_steps: micro-batches that a batch is split into.
    """

    def __init__(
        self,
        twin: keras.Model,
        loss: losses.Loss | None,
        of_step: variables.StepVariables,
        ways: arithmetic.Arithmetic,
        accumulate_steps: int = 1,
        recomputed: recomputation.Recomputed | None = None,
        measure: batch_metrics.BatchMetrics | None = None,
    ):
        """Computes nothing yet.

        Args:
          twin: the model that computes.
          loss: the mean loss of a batch, see `losses.of`; None: what is added to it.
          of_step: the variables whose gradients are wanted.
          ways: how sparse gradients are treated.
          accumulate_steps: micro-batches that a batch is split into.
          recomputed: the twin's forward pass without keeping activations, or None.
          measure: what else is told of a batch.
        """
        self.accumulate_steps = accumulate_steps
        self._twin = twin
        self._loss = loss
        self._variables = of_step
        self._arithmetic = ways
        self._recomputed = recomputed
        self._measure = measure or batch_metrics.BatchMetrics(None, None)

    def loss(
        self, labels: nests.Nest, outputs: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Tensor:
        """Returns the mean loss of a batch, float32 [], without regularizers."""
        if self._loss is None:
            return tf.constant(0.0)
        return self._loss(labels, outputs, sample_weight)

    def check_labels(
        self, labels: nests.Nest, loss: losses.Loss | None = None
    ) -> list[tf.Operation]:
        """Returns what a step must wait for: `losses.check_classes`.

        Args:
          labels: of a batch.
          loss: what tells which labels are class numbers; default: the loss itself.
        """
        graph = getattr(self._twin, "_functional", None) or self._twin
        outputs = getattr(graph, "_outputs_struct", None)
        return losses.check_classes(loss or self._loss, labels, outputs)

    def total(
        self, batch: gradients.Batch, outputs: nests.Nest, added: list[tf.Tensor]
    ) -> tf.Tensor:
        """Returns what is minimized, float32 []; to be replaced by a loss in one piece.

        Args:
          batch: (inputs, labels, sample_weight).
          outputs: of the twin.
          added: float32 [] each, of regularizers and layers.

        Raises:
          ValueError: there is no loss.
        """
        if self._loss is None and not added:
            raise ValueError(
                "`loss` (None) must be given: neither a layer nor a regularizer adds "
                "one."
            )
        loss = self.loss(batch[1], outputs, batch[2])
        for extra in added:
            loss += extra
        return loss

    def forward(
        self, inputs: nests.Nest, recompute: bool = True
    ) -> tuple[nests.Nest, list[tf.Tensor]]:
        """Returns the twin's outputs in training, and the losses its layers added.

        Args:
          inputs: what the model takes, batch first.
          recompute: False: keeps activations, whatever the step was made for.
        """
        if self._recomputed is None or not recompute:
            return self._twin(inputs, training=True), self._twin.losses
        outputs, losses = self._recomputed(inputs)
        return outputs, [*losses, *self._twin.losses]  # here those of variables alone

    def __call__(
        self, batch: gradients.Batch, scale: tf.Tensor, recompute: bool = True
    ) -> tuple[gradients.Means, gradients.Gradients, nests.Nest]:
        """Computes gradients, inside a `tf.function`.

        Args:
          batch: (inputs, labels, sample_weight), batch first; the last may be None.
          scale: float32 [], what the loss is multiplied by.
          recompute: as for `forward`.

        Returns:
          `loss` and the metrics by name, float32 [] each, means over the rows; the
          gradients of `loss * scale`, one for each master, in the dtype that they
          were computed in (sums of micro-batches: float32); and the outputs, as in
          `TrainStep.trace`.

        Raises:
          ValueError: no gradient reaches any weight.
        """
        outputs = None

        def of_rows(
            rows: gradients.Batch,
        ) -> tuple[gradients.Means, gradients.Gradients]:
            nonlocal outputs
            loss, scaled_grads, outputs = self._of_rows(rows, scale, recompute)
            measured = self._measure(rows[1], outputs, rows[2])
            return {"loss": loss, **measured}, scaled_grads

        means, scaled_grads = gradients.accumulated(
            of_rows, batch, self.accumulate_steps
        )
        if scaled_grads and all(grad is None for grad in scaled_grads):
            paths = ", ".join(v.path for v in self._variables.masters)
            raise ValueError(f"No gradient reaches any weight: {paths}.")
        return means, scaled_grads, outputs if self.accumulate_steps == 1 else None

    def _of_rows(
        self, batch: gradients.Batch, scale: tf.Tensor, recompute: bool
    ) -> tuple[tf.Tensor, gradients.Gradients, nests.Nest]:
        """Returns the loss, its gradients times `scale`, and the outputs in float32."""
        workings = [variable.value for variable in self._variables.workings]
        regularized = {
            i: self._variables.masters[i] for i in self._variables.regularized
        }
        with tf.GradientTape() as tape:
            outputs, added = self.forward(batch[0], recompute)
            outputs = self._arithmetic.logits(outputs)
            added = [
                *(master.regularizer(master.value) for master in regularized.values()),
                *added,
            ]
            # 16 bits -> float32: what a layer of the twin added
            added = [tf.cast(extra, tf.float32) for extra in added]
            loss = self.total(batch, outputs, added)
            scaled_loss = loss * scale
        sources = [*workings, *(master.value for master in regularized.values())]
        found = tape.gradient(scaled_loss, sources)
        grads = [
            self._arithmetic.sparse(gradients.as_computed(grad))
            for grad in found[: len(workings)]
        ]
        for i, grad in zip(regularized, found[len(workings) :], strict=True):
            of_loss = gradients.dense(gradients.to_float32(grads[i]))
            grads[i] = grad if of_loss is None else grad + of_loss
        return loss, grads, gradients.outputs_in_float32(outputs)
