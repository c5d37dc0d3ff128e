"""What stateful recurrent layers carry from batch to batch.

Keras counts it among no variables of a model: whoever keeps, restores or recomputes
those must ask here as well.
"""

from __future__ import annotations

import keras
import tensorflow as tf


def of(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of a model's stateful recurrent layers, each once."""
    found = {
        id(state): state
        for layer in model._flatten_layers()
        for state in tf.nest.flatten(getattr(layer, "states", None))
        if isinstance(state, keras.Variable)
    }
    known = {id(variable) for variable in model.variables}
    return [state for i, state in found.items() if i not in known]
