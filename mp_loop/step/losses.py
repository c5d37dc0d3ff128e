"""The losses that a flag can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def make(name: str, from_logits: bool) -> Callable[..., Any]:
    """Makes a loss from its Keras identifier.

    Args:
      name: such as "sparse_categorical_crossentropy".
      from_logits: whether the model's outputs are logits; only a crossentropy that
        is named as a function is told.

    Raises:
      ValueError: Keras knows no such loss.
    """
    loss = keras.losses.get(name)
    if callable(loss) and hasattr(keras.losses, type(loss).__name__):
        return loss  # an object, which has its own `from_logits`
    if "crossentropy" not in name:
        return loss
    return lambda labels, outputs: loss(labels, outputs, from_logits=from_logits)
