"""Learning rates over the updates of a run.

A schedule reads `applied_steps`, as Keras' do: a skipped step does not move it.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mp_loop.config import json_values, sections


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

    def get_config(self) -> dict[str, json_values.Json]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "peak": self.peak, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, json_values.Json]) -> Warmup:
        """Returns the schedule that `get_config` described."""
        inner = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": inner})


# The registered name is that of saved models.
@keras.saving.register_keras_serializable(package="mp_loop", name="Lowered")
class RollbackSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A rate or schedule times `factor` for each rollback there was.

    Attributes:
      rollbacks: variable, integer []; set it before the first step is traced.
    """

    def __init__(
        self,
        schedule: float | keras.optimizers.schedules.LearningRateSchedule,
        factor: float,
    ):
        self.schedule, self.factor = schedule, factor
        self.rollbacks: tf.Variable | int = 0

    def __call__(self, applied_steps: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate, float32 [], of update `applied_steps`."""
        rate = self.schedule
        rate = tf.cast(rate(applied_steps) if callable(rate) else rate, tf.float32)
        return rate * tf.pow(self.factor, tf.cast(self.rollbacks, tf.float32))

    def get_config(self) -> dict[str, json_values.Json]:
        """Returns the arguments of the constructor."""
        return {"schedule": self.schedule, "factor": self.factor}


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
      schedule: "constant", "cosine" or "linear" (both to zero), or "piecewise".
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
    elif schedule == "linear":
        after = schedules.PolynomialDecay(peak, total_steps - warmup_steps, 0.0)
    elif schedule == "piecewise":
        boundaries = [round(f * total_steps) - warmup_steps for f in decay_fractions]
        values = [peak * decay_factor**i for i in range(len(boundaries) + 1)]
        after = schedules.PiecewiseConstantDecay([float(b) for b in boundaries], values)
    else:
        after = peak
    if schedule == "constant" and not warmup_steps:
        return peak
    return Warmup(after, peak, warmup_steps) if warmup_steps else after


def from_settings(
    optimizer: sections.Optimizer, total_steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Makes the learning rate that settings describe, for so many updates."""
    return learning_rate(
        optimizer.schedule,
        optimizer.learning_rate,
        total_steps,
        optimizer.warmup_steps,
        optimizer.decay_fractions,
        optimizer.decay_factor,
    )
