"""The training step of each phase of a run, as the settings describe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from mp_loop.config import errors, settings
from mp_loop.hardware import devices
from mp_loop.models import trainable_layers
from mp_loop.run import phases
from mp_loop.step import (
    keras_step,
    loss_scale,
    optimizers,
    preparing,
    protocol,
    schedules,
    train_step,
)

Rate = float | keras.optimizers.schedules.LearningRateSchedule


@dataclasses.dataclass(frozen=True)
class StepFactory:
    """Makes the step of each phase.

    Attributes:
      config: the settings, --precision=auto resolved.
      phases: where they end.
      model: the user's float32 model.
      trained: which layers of the model are trained.
      loss: of (labels, outputs).
      strategy: which devices share a step.
      metric: what else a step tells of its batch, or None.
      prepare: makes a model's inputs of those of a batch, or None.
    """

    config: settings.Config
    phases: phases.Phases
    model: keras.Model
    trained: trainable_layers.TrainableLayers
    loss: Callable[..., tf.Tensor]
    strategy: tf.distribute.Strategy
    metric: keras.metrics.Metric | None
    prepare: preparing.Prepare | None

    def make(self, phase: int) -> protocol.Step:
        """Makes the step of a phase.

        Raises:
          UsageError: the settings do not fit the model.
        """
        with errors.bad_input(ValueError), self.strategy.scope():
            rate = self._start_phase(phase)
            training = self.config.training
            if not training.rollback:
                return self._step(rate)
            rate = schedules.RollbackSchedule(rate, training.rollback_factor)
            step = self._step(rate)
            rate.rollbacks = step.state.rollbacks
            return step

    def _start_phase(self, phase: int) -> Rate:
        """Makes trainable what the phase trains; returns its learning rate."""
        if self.phases.trains_head_alone(phase):
            self.trained.head_alone()
            return self.config.model.head_learning_rate
        self.trained.everything()
        return schedules.from_settings(self.config.optimizer, self.phases.steps(phase))

    def _step(self, rate: Rate) -> protocol.Step:
        if self.config.precision.loop == "keras":
            return self._keras_step(rate)
        config = self.config
        keras_arithmetic = config.precision.keras_arithmetic
        return train_step.TrainStep(
            self.model,
            optimizers.from_settings(config.optimizer, rate, clips=keras_arithmetic),
            self.loss,
            config.precision.precision,
            loss_scale.from_settings(config.scale, config.loss_scale_kind),
            float32_layers=config.precision.float32_layers,
            clip_norm=0.0 if keras_arithmetic else config.optimizer.clip_norm,
            accumulate_steps=config.optimizer.accumulate_steps,
            jit_compile=devices.use_xla(config.training.jit_compile),
            keras_arithmetic=keras_arithmetic,
            recompute=config.precision.recompute,
            all_reduce_dtype=config.parallel.all_reduce_dtype,
            metrics=self.metric,
            prepare=self.prepare,
        )

    def _keras_step(self, rate: Rate) -> keras_step.KerasStep:
        config = self.config
        jit_compile = devices.use_xla(config.training.jit_compile)
        if config.precision.precision == "float16":
            # On a CPU Keras' float16 convolutions are emulated one number at a time,
            # five times slower than what XLA makes of them.
            jit_compile = config.training.jit_compile != "off"
        return keras_step.KerasStep(
            self.model,
            optimizers.from_settings(config.optimizer, rate, clips=True),
            self.loss,
            config.precision.precision,
            scaling=config.loss_scale_kind == "dynamic",
            jit_compile=jit_compile,
            metrics=self.metric,
            prepare=self.prepare,
            **config.scale.constants,  # the two that `config.rules` lets through
        )
