"""Which weight of a model belongs to which of its twin.

for master, working in pairs.of_weights(model, twin): ...
for own, other in pairs.of_seeds(model, twin): ...
"""

from __future__ import annotations

import keras

from mp_loop.precision import by_operation, pairing

Pair = tuple[keras.Variable, keras.Variable]


def of_weights(model: keras.Model, twin: keras.Model) -> list[Pair]:
    """Pairs the weights of a model with those of its twin.

    A converted layer knows what it was made of. In a twin of your own, weights belong
    together by what `pairing` goes by.

    Args:
      model: the float32 model.
      twin: what was made of it, or a twin of your own, which may hold one.

    Returns:
      `(master, working)` for every weight of `model`, in its order; the same object
      twice where it is shared, or where a conversion found that nothing reads it.

    Raises:
      ValueError: not each weight has exactly one counterpart, of its shape.
    """
    working_of, master_of, known = {}, {}, set()
    masters = {id(variable) for variable in model.weights}
    workings = {id(variable) for variable in twin.weights}
    for master, working in _matches(model, twin):
        if id(master) not in masters or id(working) not in workings:
            continue
        one = working_of.setdefault(id(master), working) is working
        if not one or master_of.setdefault(id(working), master) is not master:
            raise ValueError(
                f"`model` ({model.name}): {master.path} belongs to several layers of "
                "it, or of its twin, whose copies would not stay equal. Keep these "
                "layers in float32 with `float32_layers`."
            )
        if tuple(master.shape) == tuple(working.shape):
            known |= {id(master), id(working)}
    # A model may hold layers beside its graph, which nothing made of that reads.
    made = pairing.source(twin) is model
    for layer, copy in _copies(twin) if made else ():
        if not {id(v) for v in [*layer.weights, *copy.weights]} <= known:
            raise pairing.other_weights(layer)
    for variable in [*twin.weights, *([] if made else model.weights)]:
        if id(variable) not in known:
            raise ValueError(
                f"`twin` ({twin.name}) must have the weights of `model` "
                f"({model.name}): {variable.path} has no counterpart of its shape. "
                "Give layers and weights equal attributes, or equal names, in both."
            )
    return [(master, working_of.get(id(master), master)) for master in model.weights]


def of_seeds(model: keras.Model, twin: keras.Model) -> list[Pair]:
    """Pairs the states of random generators, as far as both models have them."""
    ours, theirs = ({id(v): v for v in seeds(one)} for one in (model, twin))
    twin_of = {
        id(own): other
        for own, other in _matches(model, twin)
        if id(own) in ours and id(other) in theirs
    }
    return [(own, twin_of[i]) for i, own in ours.items() if i in twin_of]


def seeds(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's random generators, in order."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _matches(model: keras.Model, twin: keras.Model) -> list[Pair]:
    """Each variable with what was made of it; by `pairing` in a twin of your own."""
    workings = {id(variable) for variable in twin.variables}
    found = [(v, v) for v in model.variables if id(v) in workings]
    for layer, copy in _copies(twin):
        found += by_operation.copied(copy) or pairing.variables(layer, copy)
    if workings - {id(variable) for _, variable in found}:
        found += pairing.variables(model, twin)
    return found


def _copies(
    twin: keras.Model,
) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """The layers of a twin that are copies, each after what it was made of."""
    inside = twin._flatten_layers(include_self=False)
    made = [(pairing.source(copy), copy) for copy in inside]
    return [(layer, copy) for layer, copy in made if layer is not None]
