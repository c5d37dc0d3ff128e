"""Which variable of a copied layer stands for which one of the original.

    pairing.record(layer, copy)          # where the copy is made
    pairing.source(copy)                 # the layer
    pairing.variables(layer, copy)       # [(original, copied), ...]

Neither order nor shape tells: a functional model that sets its layers as attributes
lists their weights in another order than a clone of its graph does, and two weights
of one shape may change places unnoticed. What tells, layer by layer from outside in:
the place in the graph of two models (which makes both compute the same function),
the attribute that holds a layer or a variable, and, where neither reaches, a name
that occurs once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import keras
from keras.src.ops.node import KerasHistory, Node

# Lists that Keras keeps of what a layer holds, in the order in which it came.
_LISTS = (
    "_trainable_variables",
    "_non_trainable_variables",
    "_seed_generators",
    "_layers",
)
_BOOKKEEPING = (*_LISTS, "_metrics", "_tracked", "_operations", "_operations_by_depth")

# What a layer holds itself.
_Held: TypeAlias = keras.Operation | keras.Variable

# Weak on both sides: a copy must keep neither itself nor the original alive.
_sources: weakref.WeakKeyDictionary[_Held, weakref.ref] = weakref.WeakKeyDictionary()


def record(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Remembers that `copy` was made of `layer`, as long as both live."""
    _sources[copy] = weakref.ref(layer)


def source(copy: keras.layers.Layer) -> keras.layers.Layer | None:
    """Returns what a layer was made of; None for one that is no copy."""
    reference = _sources.get(copy)
    return reference and reference()


def variables(
    layer: keras.layers.Layer, copy: keras.layers.Layer
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs the variables of two layers, those of their inner layers included.

    Args:
      layer: any layer or model.
      copy: one that is made like it; both built.

    Returns:
      `(original, copied)` for each variable, seeds included, that has a counterpart;
      the same object twice where the layers share it. Whether all have one is for
      the caller to check.
    """
    found, seen, left = [], set(), [(layer, copy)]
    while left:
        one, other = left.pop()
        if (id(one), id(other)) in seen:
            continue
        seen.add((id(one), id(other)))
        kinds = [isinstance(x, keras.layers.Layer) for x in (one, other)]
        if all(kinds):
            left += reversed(list(_children(one, other)))
        elif not any(kinds):
            found.append((one, other))
    return found


def other_weights(layer: keras.layers.Layer) -> ValueError:
    """Makes the error for a layer whose copy does not have its weights."""
    return ValueError(
        f"`model`: layer '{layer.name}' ({type(layer).__name__}) cannot be converted "
        "to 16 bits: its copy has other weights. Keep it in float32 with "
        f"`float32_layers` ({layer.name})."
    )


def _children(
    layer: keras.layers.Layer, copy: keras.layers.Layer
) -> Iterator[tuple[_Held, _Held]]:
    """Pairs what two layers hold themselves: variables and layers."""
    held, copied = ({id(x): x for x in _held(one)} for one in (layer, copy))

    def take(pairs: Iterable[tuple[object, object]]) -> Iterator[tuple[_Held, _Held]]:
        for one, other in pairs:
            if id(one) in held and id(other) in copied:
                del held[id(one)], copied[id(other)]
                yield one, other

    yield from take((x, x) for x in list(held.values()))
    yield from take(_by_graph(layer, copy))
    yield from take(_common(_by_attribute(layer), _by_attribute(copy)))
    # Last, because Keras numbers the layers that nobody named.
    yield from take(_common(_by_name(held.values()), _by_name(copied.values())))


def _held(layer: keras.layers.Layer) -> list[_Held]:
    """What a layer holds itself; of a random generator, its state."""
    return [_state(x) for name in _LISTS for x in getattr(layer, name)]


def _state(x: object) -> object:
    return x.state if isinstance(x, keras.random.SeedGenerator) else x


def _common(
    ours: dict[tuple, object], theirs: dict[tuple, object]
) -> list[tuple[object, object]]:
    return [(x, theirs[key]) for key, x in ours.items() if key in theirs]


def _by_graph(
    one: keras.layers.Layer, other: keras.layers.Layer
) -> list[tuple[keras.Operation, keras.Operation]]:
    """Pairs the operations of two models whose graphs are alike; else none."""
    outputs = [getattr(model, "outputs", None) or [] for model in (one, other)]
    left, seen, found = [outputs], set(), {}
    while left:
        tensors, others = left.pop()
        if len(tensors) != len(others):
            return []
        for pair in zip(tensors, others, strict=True):
            first, second = (tensor._keras_history for tensor in pair)
            match = (first.operation, second.operation)
            if found.setdefault(id(match[0]), match)[1] is not match[1]:
                return []
            if id(pair[0]) not in seen:
                seen.add(id(pair[0]))
                left.append([_node(place).input_tensors for place in (first, second)])
    distinct = {id(operation) for _, operation in found.values()}
    return list(found.values()) if len(distinct) == len(found) else []


def _node(place: KerasHistory) -> Node:
    """The call that made a symbolic tensor."""
    return place.operation._inbound_nodes[place.node_index]


def _by_attribute(layer: keras.layers.Layer) -> dict[tuple, object]:
    """What the attributes of a layer hold, in lists and dictionaries too."""
    found = {}

    def visit(path: tuple, value: object) -> None:
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for key, item in value.items():
                visit((*path, key), item)
        else:
            found[path] = _state(value)

    for name, value in vars(layer).items():
        if name not in _BOOKKEEPING and not name.startswith("_self_"):
            visit((name,), value)
    return found


def _by_name(held: Iterable[_Held]) -> dict[tuple, _Held]:
    """Layers and variables by name, as far as that occurs once."""
    found: dict[tuple, list[_Held]] = {}
    for x in held:
        key = (isinstance(x, keras.layers.Layer), x.name)
        found.setdefault(key, []).append(x)
    return {key: one for key, (one, *others) in found.items() if not others}
