"""What a training step is to everything around it: `TrainStep` and `KerasStep`."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.step import gradients, metrics, preparing, train_state


@dataclasses.dataclass(frozen=True)
class Trace:
    """All that a step computed, for those who look inside while it is traced.

    Attributes:
      metrics: what the step returns.
      scaled_grads: what the update got, one for each master, float32 or 16 bits.
      outputs: of the twin, in float32; None where there were micro-batches, or where
        XLA compiles the step of a replica.
    """

    metrics: metrics.Metrics
    scaled_grads: gradients.Gradients
    outputs: nests.Nest


class Step(Protocol):
    """One training step of a float32 Keras model.

    `TrainStep` has `reload` and `back_off` besides: a run goes on in another precision,
    or goes back to a checkpoint, with our own loop alone.

    Attributes:
      model: the user's float32 model.
      twin: the model that computes.
      optimizer: the user's.
      prepare: makes the model's inputs of what the step is given.
      state: every variable that training changes.
    """

    model: keras.Model
    twin: keras.Model
    optimizer: keras.optimizers.Optimizer
    prepare: preparing.Prepare
    state: train_state.TrainState

    @property
    def loss_scale(self) -> tf.Tensor:
        """The loss scale of the next step, float32 []."""

    @property
    def min_scale(self) -> float:
        """The smallest scale that an overflow can lead to; 0 if there is no floor."""

    def __call__(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> metrics.Metrics:
        """Takes one step on one batch; returns scalars by name."""

    def run(self, iterator: nests.Batches, steps: int) -> metrics.Metrics:
        """Takes many steps in one call; returns metrics of shape [steps]."""

    def export(self) -> keras.Model:
        """Returns `model` with the trained weights in it."""

    def continue_from(self, before: Step) -> None:
        """Takes over from a step that trained other layers of the same model."""

    def graph(
        self, inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> tf.Graph:
        """Returns the traced step, for TensorBoard; `tf.TensorSpec`s will do."""
