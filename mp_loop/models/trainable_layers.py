"""Which layers of a model are trained.

    trainable_layers.freeze(model, "BN|Conv1")    # layers whose name matches
    layers = trainable_layers.TrainableLayers(model)
    layers.head_alone()                           # for now only the last layer
    layers.everything()                           # and then all that is not frozen

A step is made after the choice: it has masters for what is trained then.
"""

from __future__ import annotations

import itertools
import re

import keras

from mp_loop.config import errors


def freeze(model: keras.Model, pattern: str) -> None:
    """Freezes the layers, and parts of layers, whose name matches a pattern.

    Frozen batch norm uses its moving statistics and does not update them.

    Args:
      model: a built model.
      pattern: regular expression, searched in the names.

    Raises:
      ModelError: no name matches, or no trainable weight is left.
    """
    layers = list(model._flatten_layers(include_self=False))
    found = [layer for layer in layers if re.search(pattern, layer.name)]
    if not found:
        raise errors.ModelError(
            f"`freeze` ({pattern}) matches no layer of '{model.name}'."
        )
    for layer in found:
        layer.trainable = False
    if not model.trainable_weights:
        raise errors.ModelError(
            f"`freeze` ({pattern}) leaves nothing to train in '{model.name}'."
        )


class TrainableLayers:
    """Switches between training all layers that are not frozen, and the last one."""

    def __init__(self, model: keras.Model):
        """Records which layers may be trained: those that are not frozen now."""
        self._model = model
        # A layer comes before its parts, because setting it sets its parts too.
        self._before = [
            (layer, layer.trainable)
            for layer in model._flatten_layers(include_self=False)
        ]
        # A layer with an adapter has weights that are trained and others.
        self._weights = [(v, v.trainable) for v in model.weights]

    def everything(self) -> None:
        """Makes every layer and every weight as trainable as it was."""
        for layer, trainable in self._before:
            layer.trainable = trainable
        for weight, trainable in self._weights:
            weight.trainable = trainable

    def head_alone(self) -> None:
        """Freezes all layers but the last one that has weights to train.

        Raises:
          ModelError: no other layer has weights to train.
        """
        self.everything()
        layers = [x for x in _layers(self._model) if x.trainable_weights]
        if len(layers) < 2:
            raise errors.ModelError(
                f"'{self._model.name}' has nothing to train but its last layer: "
                "`head_epochs` must be 0."
            )
        for layer in layers[:-1]:
            layer.trainable = False


def last(model: keras.Model) -> keras.layers.Layer:
    """Returns the last layer of a model that has weights."""
    return [layer for layer in _layers(model) if layer.weights][-1]


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model in order, and those inside nested models."""
    opened = [
        _layers(layer) if isinstance(layer, keras.Model) else [layer]
        for layer in model.layers
    ]
    return list(itertools.chain(*opened))
