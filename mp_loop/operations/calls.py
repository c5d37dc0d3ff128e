"""Traces a float32 call and emits it again.

outputs = calls.trace(function, arguments, tf.float16).emit(how)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.operations import emission, nodes, rules


@dataclasses.dataclass(frozen=True)
class Traced:
    """A call, as float32 made it.

    Attributes:
      graph: its nodes.
      tensors: what its inputs were given, of 16 bits where `graph` says float32.
      kinds: of inputs of which more is known than their dtype, by id.
      outputs: what it returned, nested; tensors are those of the traced graph.
    """

    graph: nodes.Graph
    tensors: Sequence[tf.Tensor]
    kinds: Mapping[int, rules.Kind]
    outputs: nests.Nest

    def emit(self, how: emission.Emission) -> nests.Nest:
        """Computes what the call returned, in 16 bits and float32."""
        emitted = iter(how.graph(self.graph, self.tensors, self.kinds))
        found = [
            next(emitted) if _is_tensor(x) else x
            for x in tf.nest.flatten(self.outputs, expand_composites=True)
        ]
        return tf.nest.pack_sequence_as(self.outputs, found, expand_composites=True)


def trace(
    function: Callable[[nests.Nest], nests.Nest],
    arguments: nests.Nest,
    narrow: tf.DType,
    variables: Iterable[tf.Variable] = (),
    weights: Iterable[tf.Tensor] = (),
) -> Traced:
    """Calls a function of float32 tensors once, in a graph of its own.

    Args:
      function: it takes `arguments`, all their floats in float32.
      arguments: nested tensors, `tf.TensorSpec`s and other things.
      narrow: tf.float16 or tf.bfloat16.
      variables: those that it may read.
      weights: tensors that stand for trained variables.
    """
    flat = tf.nest.flatten(arguments, expand_composites=True)
    graph = tf.__internal__.FuncGraph("call")
    with graph.as_default():
        given = [_placeholder(x, narrow) for x in flat]
        outputs = function(
            tf.nest.pack_sequence_as(arguments, given, expand_composites=True)
        )
        returned = [
            graph.capture(tf.convert_to_tensor(x)) if _is_tensor(x) else x
            for x in tf.nest.flatten(outputs, expand_composites=True)
        ]
    inputs = {
        id(placeholder): (nodes.Value(placeholder), x)
        for x, placeholder in zip(flat, given, strict=True)
        if isinstance(placeholder, tf.Tensor)
    }
    handles = {id(v.handle): v for v in variables}
    known, kinds = {id(x) for x in weights}, {}
    for outer, inner in graph.captures:
        value = nodes.Value(inner, variable=handles.get(id(outer)))
        inputs[id(inner)] = (value, outer)
        if id(outer) in known and value.is_float32:
            kinds[id(value)] = rules.Kind.WEIGHT
    values = [value for value, _ in inputs.values()]
    read = nodes.of_graph(graph, [x for x in returned if _is_tensor(x)], values)
    tensors = [
        tf.convert_to_tensor(x) if _is_tensor(x) else x for _, x in inputs.values()
    ]
    return Traced(read, tensors, kinds, outputs)


def _is_tensor(x: object) -> bool:
    return isinstance(x, tf.Tensor | tf.Variable)


def _placeholder(x: nests.Nest, narrow: tf.DType) -> nests.Nest:
    """The float32 tensor that the function sees for one of its arguments."""
    if not _is_tensor(x) and not isinstance(x, tf.TensorSpec):
        return x
    dtype = tf.float32 if x.dtype == narrow else x.dtype
    return tf.compat.v1.placeholder(dtype, x.shape)
