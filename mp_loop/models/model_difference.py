"""Whether two models compute the same: their layers, and one forward pass.

    model_difference.describe(model, from_file)      # "" or the first difference

Weights say nothing of padding, epsilon, activation or preprocessing: an architecture of
the same name and the same shapes may compute something else from them.
"""

from __future__ import annotations

import itertools

import keras
import numpy as np

from mp_loop.config import json_values

# What a layer's config holds that its outputs in inference do not depend on.
_IRRELEVANT = ("name", "dtype", "trainable", "seed", "momentum", "synchronized")
_IRRELEVANT_ENDINGS = ("initializer", "regularizer", "constraint")
# Of the largest output: the same kernels on the same numbers differ by their order of
# summation alone, some 1e-6; another padding or epsilon by a few percent.
_TOLERANCE = 1e-3


def describe(ours: keras.Model, theirs: keras.Model) -> str:
    """Describes the first difference between a model and the beginning of another.

    Args:
      ours: one input, one output; holds the weights of `theirs`.
      theirs: may have more layers at its end. Its input has the shape of ours.

    Returns:
      What differs, on one line; "" if both compute the same.
    """
    mine, other = _operations(ours), _operations(theirs)
    for a, b in itertools.zip_longest(mine, other[: len(mine)]):
        if b is None or type(a) is not type(b):
            found = f"{b.name} ({type(b).__name__})" if b is not None else "nothing"
            return f"for {a.name} ({type(a).__name__}) there is {found}"
        here, there = _config(a), _config(b)
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                return (
                    f"{key} of {b.name} ({type(b).__name__}) is {there.get(key)}, not "
                    f"{here.get(key)}"
                )
    last = other[mine.index(ours.outputs[0]._keras_history.operation)]
    return _forward_difference(ours, _unwrapped(theirs), last)


def _operations(model: keras.Model) -> list[keras.Operation]:
    """The layers and functions of a model in order, those of nested models included."""
    found = []
    for one in getattr(model, "operations", model.layers):
        if isinstance(one, keras.Model):
            found += _operations(one)
        elif not isinstance(one, keras.layers.InputLayer):
            found.append(one)
    return found


def _unwrapped(model: keras.Model) -> keras.Model:
    """The model that a model begins with, or itself."""
    first = next(
        (x for x in model.layers if not isinstance(x, keras.layers.InputLayer)), None
    )
    return _unwrapped(first) if isinstance(first, keras.Model) else model


def _config(operation: keras.Operation) -> dict[str, json_values.Json]:
    """The part of a config that decides what is computed."""
    try:
        config = keras.saving.serialize_keras_object(operation)["config"]
    except (NotImplementedError, TypeError, ValueError):  # A layer without one.
        return {}
    return {
        key: value
        for key, value in config.items()
        if key not in _IRRELEVANT and not key.endswith(_IRRELEVANT_ENDINGS)
    }


def _forward_difference(
    ours: keras.Model, theirs: keras.Model, last: keras.Operation
) -> str:
    """Compares the outputs for one random input, in inference."""
    try:
        counterpart = keras.Model(theirs.inputs[0], last.output)
    except (AttributeError, ValueError):
        return f"the output of {last.name} cannot be computed alone"
    shape = [size or 64 for size in ours.inputs[0].shape[1:]]
    inputs = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype("float32")
    mine, other = (np.asarray(m(inputs, training=False)) for m in (ours, counterpart))
    difference = np.max(np.abs(mine - other)) / max(np.max(np.abs(other)), 1e-30)
    if difference <= _TOLERANCE:
        return ""
    return f"the outputs for the same input differ by {difference:.2g} of the largest"
