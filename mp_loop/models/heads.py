"""The last layers of a classifier, and what its outputs are."""

from __future__ import annotations

from collections.abc import Callable

import keras

# Of one image: height, width, channels; or of one row: columns.
Shape = tuple[int, ...]
# Makes a model from the shape of an example and the number of classes.
Maker = Callable[[Shape, int], keras.Model]


def logits(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Applies the linear layer that gives the logits."""
    return keras.layers.Dense(num_classes, name="logits")(x)


def with_head(
    features: keras.Model, num_classes: int, dropout: float = 0.0
) -> keras.Model:
    """Adds a linear classifier on the mean of a feature map.

    Args:
      features: its output is [batch, h, w, channels].
      num_classes: length of the logits.
      dropout: dropout rate before the classifier.

    Returns:
      A flat model: the layers of `features` are its own layers.
    """
    x = keras.layers.GlobalAveragePooling2D(name="mean")(features.outputs[0])
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(features.inputs[0], logits(x, num_classes), name=features.name)


def from_logits(model: keras.Model) -> bool:
    """Tells whether a loss on the model's output must apply softmax or sigmoid itself.

    Args:
      model: a functional or Sequential model.

    Returns:
      False if the output comes from a layer with a softmax or sigmoid activation, or
      from a softmax layer. Reshapes, linear activations (the usual cast to float32) and
      nested models are skipped.
    """
    return not ends_in(model)


def ends_in(model: keras.Model) -> str:
    """Returns what a model's outputs come from: `softmax`, `sigmoid`, or "" of logits.

    Args:
      model: see `from_logits`.
    """
    operation = model.outputs[0]._keras_history.operation
    while isinstance(operation, keras.layers.Reshape | keras.layers.Flatten) or (
        isinstance(operation, keras.layers.Activation)
        and operation.activation is keras.activations.linear
    ):
        operation = operation.input._keras_history.operation
    if isinstance(operation, keras.Model):
        return ends_in(operation)
    # Layers and functions of these names (`Softmax`, `ops.softmax`) count too.
    activation = getattr(operation, "activation", None)
    used = {type(operation).__name__.lower(), getattr(activation, "__name__", "")}
    return next((name for name in ("softmax", "sigmoid") if name in used), "")
