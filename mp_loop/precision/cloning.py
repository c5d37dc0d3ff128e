"""Clones of a functional model, made layer by layer, that know their originals.

    twin = cloning.clone(model, convert)       # convert: from a layer to its copy

A layer that `convert` returns itself is in both models.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator

import keras

from mp_loop.config import choices
from mp_loop.precision import pairing, pairs


def clone(
    model: keras.Model, convert: Callable[[keras.Operation], keras.Operation]
) -> keras.Model:
    """Clones a model layer by layer; the copies get its values.

    Args:
      model: a built functional or Sequential model.
      convert: from a layer, or another operation, to what stands for it in the clone:
        a copy, or the same object. It is called once for each, and for no model that
        is a graph itself: these are entered.

    Returns:
      A model for which `pairs` knows what was made of what.

    Raises:
      ValueError: a copy has other weights than its layer, or the graph is not all
        that a model computes, by name.
    """
    check_cloneable(model)

    def recorded(layer: keras.Operation) -> keras.Operation:
        copy = convert(layer)
        if copy is not layer and isinstance(copy, keras.layers.Layer):
            pairing.record(layer, copy)
        return copy

    # Keras would enter a graph with a `call` of its own; what is given is taken.
    given = {
        id(layer): recorded(layer)
        for layer in operations(model)
        if is_graph(layer) and not is_cloneable(layer)
    }
    with _uncompiled(model):
        twin = keras.models.clone_model(
            model, clone_function=recorded, recursive=True, cache=given
        )
    pairing.record(model, twin)
    for master, working in [
        *pairs.of_weights(model, twin),
        *pairs.of_seeds(model, twin),
    ]:
        if working is not master:
            working.assign(keras.ops.cast(master, working.dtype))
    return twin


@contextlib.contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Inside, Keras copies no losses, metrics and optimizers with the models."""
    models = [x for x in model._flatten_layers() if getattr(x, "compiled", False)]
    for one in models:
        one.compiled = False
    try:
        yield
    finally:
        for one in models:
            one.compiled = True


def operations(model: keras.Model) -> Iterator[keras.Operation]:
    """Yields what a model calls, once for each call, inside nested models as well."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    for node in itertools.chain(*graph._nodes_by_depth.values()):
        yield node.operation
        if is_graph(node.operation) and is_cloneable(node.operation):
            yield from operations(node.operation)


def output_operations(model: keras.Model) -> set[int]:
    """Returns ids of the layers that make the model's outputs, nested ones opened."""
    found = set()
    for tensor in keras.tree.flatten(model.outputs):
        operation = tensor._keras_history.operation
        if is_graph(operation) and is_cloneable(operation):
            found |= output_operations(operation)
        else:
            found.add(id(operation))
    return found


def is_graph(layer: keras.Operation) -> bool:
    """Tells whether a layer is a model that is entered, not copied as a whole."""
    has_graph = isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    return isinstance(layer, keras.Model) and has_graph and bool(layer.built)


def is_cloneable(layer: keras.Operation) -> bool:
    """Tells whether the graph of a model is all that it computes."""
    owner = next(base for base in type(layer).__mro__ if "call" in vars(base))
    return is_graph(layer) and owner.__module__.startswith("keras.src.")


def check_cloneable(model: keras.Model) -> None:
    """Raises ValueError, by name, unless the graph of a model is all it computes."""
    if is_cloneable(model):
        return
    raise ValueError(
        f"`model` ({type(model).__name__} '{model.name}') must be a built functional "
        "or Sequential model, with no `call` of its own, to be converted; a subclassed "
        "one cannot be cloned: build its 16-bit twin yourself and pass it as `twin`."
    )


def call_counts(model: keras.Model) -> collections.Counter[int]:
    """Counts by id how often each layer is called."""
    return collections.Counter(map(id, operations(model)))


def check_dtypes(model: keras.Model, dtype: str) -> None:
    """Raises ValueError, by name, unless a 16-bit twin can be made of a model."""
    if dtype not in choices.HALF_PRECISIONS:
        raise ValueError(f"`dtype` ({dtype}) must be one of {choices.HALF_PRECISIONS}.")
    if not model.built:
        raise ValueError(
            f"`model` ({type(model).__name__} '{model.name}') must be built to be "
            "converted: call it once on a batch, or give it a `keras.Input`."
        )
    for variable in model.weights:
        if variable.dtype in choices.HALF_PRECISIONS:
            raise ValueError(
                f"`model` ({model.name}) must have float32 weights: "
                f"{variable.path} is {variable.dtype}."
            )
