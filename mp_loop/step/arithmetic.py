"""What a step computes its own way, and how Keras computes the same.

The step asks an arithmetic wherever there are two right answers: `Arithmetic` is this
project's, `KerasArithmetic` gives the bits of Keras' mixed precision, to compare with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.precision import coverage, keras_twin, twins
from mp_loop.step import gradients, loss_scale, updates, variables

logger = logging.getLogger(__name__)


class Arithmetic:
    """Reductions in float32; a skip leaves every bit of the training as it was."""

    def __init__(self, float32_layers: str = ""):
        """Takes what the twin depends on.

        Args:
          float32_layers: regular expression over names of layers to leave in float32.
        """
        self._float32_layers = float32_layers

    def twin(self, model: keras.Model, dtype: str) -> keras.Model:
        """Makes the model that computes forward and backward pass in 16 bits."""
        return twins.half_precision_twin(
            model, dtype, self._float32_layers, float32_outputs=False
        )

    def logits(self, outputs: nests.Nest) -> nests.Nest:
        """Returns what the loss reads; it casts outputs of 16 bits itself."""
        return outputs

    def update(
        self, optimizer: keras.optimizers.Optimizer, masters: Sequence[keras.Variable]
    ) -> updates.KerasUpdate:
        """Makes the update of the masters, on fused kernels where they can do it."""
        return updates.make(optimizer, masters)

    def sparse(self, gradient: gradients.Gradient) -> gradients.Gradient:
        """Adds up the repeated rows of a sparse gradient before it is checked."""
        return gradients.dense(gradient)

    def restored(
        self, of_step: variables.StepVariables, before: variables.Remembered
    ) -> variables.Remembered:
        """Returns what the forward pass wrote, which is checked and a skip restores."""
        return of_step.written(before)

    def causes(self, found: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        """Returns which of the causes of a skip, bool [] by reason, count: all."""
        return found


class KerasArithmetic(Arithmetic):
    """Every bit as under Keras' mixed policy and LossScaleOptimizer."""

    def twin(self, model: keras.Model, dtype: str) -> keras.Model:
        """Softmax and bias sums are of 16 bits; no layer is exempt."""
        return keras_twin.keras_twin(model, dtype)

    def logits(self, outputs: nests.Nest) -> nests.Nest:
        """Losses are computed of float32 copies."""
        return gradients.outputs_in_float32(outputs)

    def update(
        self, optimizer: keras.optimizers.Optimizer, masters: Sequence[keras.Variable]
    ) -> updates.KerasUpdate:
        """Keras' own."""
        return updates.make(optimizer, masters, fused=False)

    def sparse(self, gradient: gradients.Gradient) -> gradients.Gradient:
        """Repeated rows are left to the optimizer."""
        return gradient

    def restored(
        self, of_step: variables.StepVariables, before: variables.Remembered
    ) -> variables.Remembered:
        """A skip leaves batch-norm statistics moved."""
        return [None for _ in before]

    def causes(self, found: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        """The gradients alone decide."""
        return {name: found[name] for name in ("gradient", "norm")}


def make(keras_arithmetic: bool, float32_layers: str = "") -> Arithmetic:
    """Makes the arithmetic that the arguments of a step ask for.

    Raises:
      ValueError: Keras' arithmetic leaves no layer in float32.
    """
    if not keras_arithmetic:
        return Arithmetic(float32_layers)
    if float32_layers:
        raise ValueError(
            f"`float32_layers` ({float32_layers}) must be empty with "
            "`keras_arithmetic`."
        )
    return KerasArithmetic()


def default_rule(
    precision: str, model: keras.Model, twin: keras.Model | None
) -> loss_scale.LossScale:
    """Only float16 loses gradients at the lower end of its range.

    Args:
      precision: of the step.
      model: in float32.
      twin: what was made of it; None: one of the user's own.
    """
    if precision != "float16":
        return loss_scale.NoLossScale()
    if twin and coverage.is_nothing(twin, model):
        logger.warning("Nothing of the model runs in float16; no gradient is scaled.")
        return loss_scale.NoLossScale()
    return loss_scale.DynamicLossScale()
