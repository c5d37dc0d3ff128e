"""The architectures of keras.applications, untrained, ready to be measured."""

from __future__ import annotations

import keras
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.models import catalog

SIZES = (32, 71, 75, 224)  # of images; the smallest that an architecture takes


def build(name: str, num_classes: int) -> tuple[keras.Model, int]:
    """Returns the architecture at the smallest size it takes."""
    for size in SIZES:
        try:
            return catalog.build(name, (size, size, 3), num_classes), size
        except errors.ModelError:
            if size == SIZES[-1]:
                raise
    raise AssertionError


def adapt(model: keras.Model, inputs: tf.Tensor) -> None:
    """Gives batch norm the statistics of a batch, as training would.

    With those of a new model, deep networks give outputs below 1e-8.
    """
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(inputs, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
