"""The optimizers that a flag can name."""

from __future__ import annotations

import keras
import tensorflow as tf

from mp_loop.config import sections


def make(
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
      weight_decay: decoupled: an update takes `rate * weight_decay` of a weight off
        (Loshchilov and Hutter 2019, without their separate schedule). Biases and the
        parameters of normalization are exempt. Not for "adam".
      **arguments: passed on to Keras, such as `global_clipnorm`.
    """
    optimizers = keras.optimizers
    if name == "adam":
        return optimizers.Adam(rate, **arguments)
    if name == "adamw":
        optimizer = optimizers.AdamW(rate, weight_decay=weight_decay, **arguments)
    elif name in ("sgd", "momentum", "nesterov"):
        optimizer = optimizers.SGD(
            rate,
            momentum=0.0 if name == "sgd" else momentum,
            nesterov=name == "nesterov",
            weight_decay=weight_decay or None,
            **arguments,
        )
    else:
        raise ValueError(f"`name` ({name}) is not an optimizer that is known here.")
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def from_settings(
    optimizer: sections.Optimizer,
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    clips: bool,
) -> keras.optimizers.Optimizer:
    """Makes the optimizer that settings describe.

    Args:
      optimizer: the settings.
      rate: learning rate or schedule.
      clips: whether the optimizer itself clips gradients to `clip_norm`.
    """
    arguments = {}
    if clips and optimizer.clip_norm:
        arguments["global_clipnorm"] = optimizer.clip_norm
    return make(
        optimizer.optimizer,
        rate,
        optimizer.momentum,
        optimizer.weight_decay,
        **arguments,
    )


def learning_rate(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """The rate of the next update, float32 []; of a `MultiOptimizer` the largest."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of LossScaleOptimizer
    many = getattr(inner, "optimizers", None)
    rates = [
        tf.cast(tf.convert_to_tensor(one.learning_rate), tf.float32)
        for one in many or [inner]
    ]
    return tf.reduce_max(rates) if many else rates[0]
