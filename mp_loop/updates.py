"""Applies float32 gradients to master weights, or leaves every bit as it was.

    update = KerasUpdate(optimizer, model.trainable_variables)
    update(grads, apply=grads_finite)        # branchless

The skip is a select, never a `tf.cond`: nothing waits for the host, and the
same code runs under XLA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class KerasUpdate:
    """The general path: any Keras optimizer, made skippable from outside.

    Keras on TensorFlow has no pure update, so the variables are remembered,
    the optimizer is applied to gradients that are zero on a skip, and what was
    remembered is selected back.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, masters: Sequence[keras.Variable]
    ):
        """Builds the optimizer's slots.

        Args:
          optimizer: any Keras optimizer but LossScaleOptimizer.
          masters: the trainable float32 variables, in the order of the gradients.

        Raises:
          ValueError: the optimizer scales the loss by itself.
        """
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scales or getattr(optimizer, "loss_scale_factor", None):
            raise ValueError(
                f"`optimizer` ({optimizer.name}) must not scale the loss: the step "
                "does."
            )
        optimizer.build(masters)
        self._optimizer = optimizer
        self._masters = list(masters)
        self.slots = [variable.value for variable in optimizer.variables]

    @property
    def learning_rate(self) -> tf.Tensor:
        """The rate of the next update, float32 []."""
        return tf.cast(tf.convert_to_tensor(self._optimizer.learning_rate), tf.float32)

    @property
    def clips(self) -> bool:
        """Whether the optimizer divides by a norm, which must then be finite."""
        optimizer = self._optimizer
        return bool(optimizer.global_clipnorm or optimizer.clipnorm)

    def __call__(self, grads: Sequence[tf.Tensor | None], apply: tf.Tensor) -> None:
        """Updates masters and slots where `apply`, else changes no bit of them.

        Args:
          grads: float32 gradients, unscaled; None where there is none.
          apply: bool [].
        """
        variables = list(
            {
                id(variable): variable
                for variable in [*self.slots, *(v.value for v in self._masters)]
            }.values()
        )
        before = [tf.identity(variable) for variable in variables]
        safe = [None if g is None else tf.where(apply, g, 0) for g in grads]
        self._optimizer.apply(safe, self._masters)
        select(apply, variables, before)


def select(
    keep: tf.Tensor, variables: Sequence[tf.Variable], before: Sequence[tf.Tensor]
) -> None:
    """Puts `before` back into the variables unless `keep` (bool [])."""
    for variable, old in zip(variables, before, strict=True):
        variable.assign(tf.where(keep, variable, old))


def clip_by_norm(
    grads: Sequence[tf.Tensor | None], norm: tf.Tensor, clip_norm: float
) -> list[tf.Tensor | None]:
    """Scales gradients down to a global norm.

    Args:
      grads: float32 gradients.
      norm: their global norm, float32 []. If it is not finite the result is
        meaningless, and the update must be skipped.
      clip_norm: the largest norm allowed.

    Returns:
      The gradients, times `clip_norm / norm` where the norm is larger.
    """
    factor = tf.where(norm > clip_norm, clip_norm / norm, 1.0)
    return [None if g is None else g * factor for g in grads]


@keras.saving.register_keras_serializable(package="mp_loop")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that starts after a linear rise from zero.

    Update `i` (from 0) of the first `steps` ones uses `(i + 1) / steps` of the
    peak rate; the schedule then starts at its own update 0.
    """

    def __init__(
        self,
        schedule: float | keras.optimizers.schedules.LearningRateSchedule,
        peak: float,
        steps: int,
    ):
        self.schedule, self.peak, self.steps = schedule, peak, steps

    def __call__(self, applied_steps: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate, float32 [], of update `applied_steps`."""
        done = tf.cast(applied_steps, tf.float32)
        rest = tf.maximum(done - self.steps, 0.0)
        after = self.schedule(rest) if callable(self.schedule) else self.schedule
        if not self.steps:
            return tf.cast(after, tf.float32)
        rising = self.peak * (done + 1.0) / self.steps
        return tf.where(done < self.steps, rising, after)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "peak": self.peak, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Warmup:
        """Returns the schedule that `get_config` described."""
        inner = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": inner})


def learning_rate(
    schedule: str,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_fractions: Sequence[float] = (),
    decay_factor: float = 0.1,
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Makes a learning rate for a Keras optimizer; it reads `applied_steps`.

    Args:
      schedule: "constant", "cosine" (to zero) or "piecewise".
      peak: rate after warm-up.
      total_steps: updates of the whole run.
      warmup_steps: updates of the linear rise, fewer than `total_steps`.
      decay_fractions: piecewise: parts of the run after which the rate drops.
      decay_factor: piecewise: each drop multiplies by this.

    Raises:
      ValueError: the warm-up is as long as the run.
    """
    if warmup_steps and warmup_steps >= total_steps:
        raise ValueError(
            f"--warmup_steps ({warmup_steps}) must be fewer than the {total_steps} "
            "steps of the run."
        )
    schedules = keras.optimizers.schedules
    if schedule == "cosine":
        after = schedules.CosineDecay(peak, total_steps - warmup_steps)
    elif schedule == "piecewise":
        boundaries = [round(f * total_steps) - warmup_steps for f in decay_fractions]
        values = [peak * decay_factor**i for i in range(len(boundaries) + 1)]
        after = schedules.PiecewiseConstantDecay([float(b) for b in boundaries], values)
    else:
        after = peak
    if schedule == "constant" and not warmup_steps:
        return peak
    return Warmup(after, peak, warmup_steps) if warmup_steps else after


def make_optimizer(
    name: str,
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **arguments: float,
) -> keras.optimizers.Optimizer:
    """Makes one of the optimizers that flags can name.

    Args:
      name: "sgd", "momentum", "nesterov", "adam" or "adamw".
      rate: learning rate or schedule.
      momentum: for "momentum" and "nesterov".
      weight_decay: decoupled, for "adamw"; biases and normalization parameters
        are decayed as well.
      **arguments: passed on to Keras, such as `global_clipnorm`.
    """
    optimizers = keras.optimizers
    if name == "sgd":
        return optimizers.SGD(rate, **arguments)
    if name in ("momentum", "nesterov"):
        nesterov = name == "nesterov"
        return optimizers.SGD(rate, momentum, nesterov=nesterov, **arguments)
    if name == "adam":
        return optimizers.Adam(rate, **arguments)
    if name == "adamw":
        return optimizers.AdamW(rate, weight_decay=weight_decay, **arguments)
    raise ValueError(f"`name` ({name}) is not an optimizer that is known here.")
