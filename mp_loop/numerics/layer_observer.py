"""Observes the layers of a model while its graph is traced.

    observer = LayerObserver(counting.outcomes)
    with observer.on(model), tf.GradientTape() as tape:
        loss = ...                                 # calls the model
    grads = tape.gradient(loss, weights)
    observer.layers, observer.outputs, observer.grads

What an observer's function returns for a tensor is kept; the tensor itself is not.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from mp_loop.config import choices
from mp_loop.distributed import nests
from mp_loop.numerics import observation


class LayerObserver:
    """Counts in the outputs of layers, and in their gradients, while they are traced.

    A tensor is counted before anything else is computed from it, so that it need not
    be kept until then: otherwise all tensors of a model would be in memory at once.

    Attributes:
      layers: the observed outputs, in order of execution.
      outputs: for each of them, what was counted in the output.
      inputs: what was counted in the tensors it was computed from, as the layer casts
        them.
      grads: what was counted in the gradient of the output; None without a gradient.
    """

    def __init__(
        self,
        count: Callable[[tf.Tensor], observation.DeviceCounts | None],
        and_inputs: bool = False,
    ):
        """Observes nothing yet.

        Args:
          count: returns nested tensors for a tensor, or None.
          and_inputs: whether inputs of layers are counted too.
        """
        self.layers: list[observation.ObservedLayer] = []
        self.outputs: list[observation.DeviceCounts | None] = []
        self.inputs: list[list[observation.DeviceCounts | None]] = []
        self.grads: list[observation.DeviceCounts | None] = []
        self._count = count
        self._and_inputs = and_inputs
        self._graph = None

    @contextlib.contextmanager
    def on(self, model: keras.Model) -> Iterator[None]:
        """Observes the calls of the model that are made inside."""
        self._graph = None if tf.executing_eagerly() else _graph()
        hooked = []
        for name, operation in operations(model):
            hooked.append(operation)
            # Not setattr: Keras tracks the attributes that it sets.
            operation.__dict__["call"] = self._observed(name, operation)
        try:
            yield
        finally:
            for operation in hooked:
                del operation.__dict__["call"]

    def _observed(
        self, name: str, operation: keras.Operation
    ) -> Callable[..., nests.Nest]:
        call = operation.call

        @functools.wraps(call)
        def observed(*args: nests.Nest, **kwargs: nests.Nest) -> nests.Nest:
            counts = []
            if self._and_inputs:
                inputs = [x for x in tf.nest.flatten((args, kwargs)) if self._counts(x)]
                # A layer that stores in 16 bits and multiplies in float32 casts its
                # inputs inside.
                stored = getattr(operation, "variable_dtype", "float32")
                if stored in choices.HALF_PRECISIONS:
                    inputs = [tf.cast(x, stored) for x in inputs]
                counts = [self._count(x) for x in inputs]
            outputs = call(*args, **kwargs)
            tap = functools.partial(
                self._tap, name, type(_inner(operation)).__name__, counts
            )
            return keras.tree.map_structure(tap, outputs)

        return observed

    def _tap(
        self,
        name: str,
        kind: str,
        inputs: list[observation.DeviceCounts | None],
        output: tf.Tensor,
    ) -> tf.Tensor:
        if not self._counts(output):
            return output
        again = sum(layer.name.split("#")[0] == name for layer in self.layers)
        place = len(self.layers)
        name = f"{name}#{again + 1}" if again else name
        self.layers.append(
            observation.ObservedLayer(name, kind.lstrip("_"), output.dtype.name)
        )
        self.outputs.append(self._count(output))
        self.inputs.append(inputs)
        self.grads.append(None)

        @tf.custom_gradient
        def watched(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def gradient(dy: tf.Tensor) -> tf.Tensor:
                if not self._is_here(dy):
                    return dy
                self.grads[place] = self._count(dy)
                return _after(self.grads[place], dy)

            return _after((self.outputs[place], inputs), x), gradient

        return watched(output)

    def _counts(self, tensor: nests.Nest) -> bool:
        countable = (tf.float32, tf.float16, tf.bfloat16)
        return (
            tf.is_tensor(tensor) and tensor.dtype in countable and self._is_here(tensor)
        )

    def _is_here(self, tensor: tf.Tensor) -> bool:
        """Tells whether a tensor belongs to this graph, not to a loop inside it."""
        return self._graph is None or getattr(tensor, "graph", None) is self._graph


def _graph() -> tf.Graph:
    return tf.compat.v1.get_default_graph()


def operations(model: keras.Model) -> list[tuple[str, keras.Operation]]:
    """Returns every layer and operation once, with its name; of nested models too."""
    found: dict[int, tuple[str, keras.Operation]] = {}

    def visit(model: keras.Model, prefix: str) -> None:
        graph = model._functional if isinstance(model, keras.Sequential) else model
        if hasattr(graph, "_nodes_by_depth"):
            depths = sorted(graph._nodes_by_depth, reverse=True)
            nodes = itertools.chain(*(graph._nodes_by_depth[d] for d in depths))
            operations = [node.operation for node in nodes if not node.is_input]
        else:  # A subclassed model: the layers that it holds itself.
            operations = list(model.layers)
        for operation in operations:
            name = f"{prefix}{_inner(operation).name}"
            if isinstance(operation, keras.Model):
                visit(operation, f"{name}/")
            else:
                found.setdefault(id(operation), (name, operation))

    visit(model, "")
    return list(found.values())


def _inner(operation: keras.Operation) -> keras.Operation:
    """Returns the operation itself, if a wrapper runs it in float32."""
    return getattr(operation, "_operation", operation)


def _after(counts: nests.Nest, tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor that is computed only after others."""
    first = [count for count in tf.nest.flatten(counts) if count is not None]
    with tf.control_dependencies(first):
        return tf.identity(tensor)
