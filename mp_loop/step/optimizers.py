"""The optimizers that a flag can name."""

from __future__ import annotations

import inspect

import keras
import tensorflow as tf

from mp_loop.config import sections

_SGD = ("momentum", "nesterov")


def make(
    name: str,
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **arguments: object,
) -> keras.optimizers.Optimizer:
    """Makes an optimizer by its name.

    Args:
      name: "sgd", "momentum", "nesterov", "adam", "adamw", or another of Keras, in
        any case.
      rate: learning rate or schedule.
      momentum: for "momentum" and "nesterov".
      weight_decay: decoupled: an update takes `rate * weight_decay` of a weight off
        (Loshchilov and Hutter 2019, without their separate schedule). Biases and the
        parameters of normalization are exempt. Not for "adam".
      **arguments: passed on to Keras, such as `global_clipnorm`.

    Raises:
      ValueError: Keras knows no such optimizer.
    """
    kind = _kind("sgd" if name in _SGD else name)
    if kind is keras.optimizers.SGD:
        arguments["momentum"] = momentum if name in _SGD else 0.0
        arguments["nesterov"] = name == "nesterov"
    if name != "adam":
        is_adamw = kind is keras.optimizers.AdamW
        arguments["weight_decay"] = weight_decay if is_adamw else weight_decay or None
    optimizer = kind(rate, **arguments)
    if name != "adam":
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _kind(name: str) -> type[keras.optimizers.Optimizer]:
    """Returns the class of a name, in any case, or of a user's registered name."""
    known = {key.lower(): value for key, value in vars(keras.optimizers).items()}
    kind = known.get(name.lower()) or keras.saving.get_registered_object(name)
    if not (inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer)):
        raise ValueError(f"`name` ({name}) is not an optimizer that is known here.")
    return kind


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
    arguments: dict[str, float] = {}
    if optimizer.ema:
        arguments |= {"use_ema": True, "ema_momentum": optimizer.ema}
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
