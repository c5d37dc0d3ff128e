"""Losses by the names that Keras has for them.

loss = loss_names.make("binary_crossentropy", from_logits=True)
loss(labels, outputs)                  # [n, classes] each -> [n]
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from mp_loop.step import class_losses


def make(
    name: str,
    from_logits: bool,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> Callable[..., tf.Tensor]:
    """Makes a loss from its Keras identifier.

    Args:
      name: such as "sparse_categorical_crossentropy".
      from_logits: whether the model's outputs are logits; a loss that asks is told.
      label_smoothing: of "binary_crossentropy", as Keras does it, and of the functions
        of `class_losses`.
      class_weights: of the latter alone, one for each class, or none.

    Raises:
      ValueError: Keras knows no such loss.
    """
    loss = keras.losses.get(name)
    if label_smoothing and loss is keras.losses.binary_crossentropy:
        loss = functools.partial(loss, label_smoothing=label_smoothing)
    elif label_smoothing or class_weights:
        loss = functools.partial(
            getattr(class_losses, name),
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )
    is_object = hasattr(keras.losses, type(loss).__name__)
    taken = inspect.signature(type(loss) if is_object else loss).parameters
    if "from_logits" not in taken:
        return loss
    if is_object:
        return type(loss)(from_logits=from_logits)
    return functools.partial(loss, from_logits=from_logits)
