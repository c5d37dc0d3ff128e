"""Layers that have no twin of their own, their products in 16 bits.

    twin = by_operation.layer(block, how)            # how: an `emission.Emission`

The twin is the user's float32 layer itself, with all its variables: its call is traced
as it is, and emitted again operation by operation; see `mp_loop.operations`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import keras
import tensorflow as tf
from keras.src.backend.common import stateless_scope

from mp_loop.config import choices
from mp_loop.distributed import nests
from mp_loop.operations import calls, emission, planning, rules

# What a layer is called with: by place, and by name.
_Arguments: TypeAlias = tuple[tuple[nests.Nest, ...], dict[str, nests.Nest]]


def layer(
    layer: keras.layers.Layer, how: emission.Emission, float32_outputs: bool = False
) -> keras.layers.Layer:
    """Makes a layer compute in 16 bits, operation by operation.

    Args:
      layer: any built float32 layer, a model among them.
      how: which 16 bits.
      float32_outputs: whether what it returns is cast to float32.

    Returns:
      A layer that shares all variables of `layer`; what it returns is of 16 bits, or
      float32 where its last operation is.
    """
    return _made(layer, how, keras.layers.Layer, float32_outputs)


def model(
    model: keras.Model, how: emission.Emission, float32_outputs: bool = True
) -> keras.Model:
    """Makes a model of any kind compute in 16 bits, operation by operation."""
    return _made(model, how, keras.Model, float32_outputs)


def operation(
    operation: keras.Operation, how: emission.Emission, float32_outputs: bool = False
) -> keras.Operation:
    """Makes an operation of a functional model (`x + y`, say) compute in 16 bits."""
    return _Operation(operation, how, float32_outputs)


def copied(twin: keras.layers.Layer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Returns `(original, copy)` of the weights of which a layer has 16-bit copies."""
    return list(twin.rounded) if is_twin(twin) else []


def is_twin(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer is one that this module made."""
    return isinstance(layer, _ByOperation)


def gains(layer: keras.Operation, how: emission.Emission) -> bool:
    """Tells whether some of what a layer does would run, or be stored, in 16 bits.

    Args:
      layer: one that was called in a functional model.
      how: which 16 bits.
    """
    if not _is_of_keras(layer):
        return True
    return _planned(layer, _given(layer, 0, how), how)[1].gains


def _given(layer: keras.Operation, call: int, how: emission.Emission) -> _Arguments:
    """What a layer was given in one of its calls in a model, floats in 16 bits."""
    arguments = layer._inbound_nodes[call].arguments
    return keras.tree.map_structure(
        lambda x: _specification(x, how.narrow), (arguments.args, arguments.kwargs)
    )


def _only_rounded(
    layer: keras.layers.Layer, how: emission.Emission
) -> list[keras.Variable]:
    """The frozen weights of a layer that all that reads them reads in 16 bits."""
    frozen = {
        id(v.value): v
        for v in layer.weights
        if not v.trainable and v.dtype == "float32" and len(v.shape) > 1
    }
    known = [v.value for v in layer.variables]
    calls_in_models = range(len(layer._inbound_nodes)) if frozen else ()
    for call in calls_in_models:
        try:
            traced, plan = _planned(layer, _given(layer, call, how), how, known)
        except Exception:  # A user's call need not take a batch of unknown size.
            return []
        wide = planning.read_in_float32(traced.graph, plan)
        frozen = {i: v for i, v in frozen.items() if i not in wide}
    return list(frozen.values()) if calls_in_models else []


def _is_of_keras(layer: keras.Operation) -> bool:
    """Tells whether a layer can surely be called on a batch of unknown size."""
    return type(layer).__module__.startswith("keras.src.")


def _as_float32(x: nests.Nest) -> nests.Nest:
    """A symbolic tensor, as the float32 layer knows it."""
    if getattr(x, "dtype", None) not in choices.HALF_PRECISIONS:
        return x
    wide = keras.KerasTensor(x.shape, "float32", name=x.name)
    if getattr(x, "_keras_mask", None) is not None:
        wide._keras_mask = x._keras_mask
    return wide


def _specification(x: nests.Nest, dtype: tf.DType | None = None) -> nests.Nest:
    """A tensor that is not there yet; a float of `dtype`, if one is given."""
    if not isinstance(x, keras.KerasTensor):
        return x
    is_float32 = dtype and x.dtype == "float32"
    return tf.TensorSpec(x.shape, dtype if is_float32 else x.dtype)


def _planned(
    layer: keras.Operation,
    given: _Arguments,
    how: emission.Emission,
    variables: Sequence[tf.Variable] = (),
) -> tuple[calls.Traced, planning.Plan]:
    """Traces a call, and plans it, without a trace of it."""
    with keras.StatelessScope():  # nothing is written
        traced = calls.trace(
            lambda given: layer(*given[0], **given[1]), given, how.narrow, variables
        )
    return traced, how.plan(traced.graph, traced.tensors, traced.kinds)


def _output_spec(
    layer: keras.Operation, how: emission.Emission | None, args: tuple, kwargs: dict
) -> nests.Nest:
    """What a layer returns; a dtype that is not known is said to be float32.

    Args:
      layer: in float32.
      how: which 16 bits; None: all is cast to float32.
      args: symbolic tensors and others.
      kwargs: likewise.
    """
    wide = keras.tree.map_structure(_as_float32, (args, kwargs))
    spec = layer.compute_output_spec(*wide[0], **wide[1])
    if how is None or not _is_of_keras(layer):
        return spec
    given = keras.tree.map_structure(_specification, (args, kwargs))
    traced, plan = _planned(layer, given, how)
    narrow = iter(
        plan.kinds.get(id(value)) is rules.Kind.NARROW for value in traced.graph.outputs
    )

    def told(x: nests.Nest) -> nests.Nest:
        if not isinstance(x, keras.KerasTensor) or not next(narrow):
            return x
        return keras.KerasTensor(x.shape, how.narrow.name, name=x.name)

    return keras.tree.map_structure(told, spec)


def _made(
    layer: keras.layers.Layer, how: emission.Emission, base: type, float32_outputs: bool
) -> keras.layers.Layer:
    twin = _kind(type(layer), base)(name=layer.name, dtype="float32")
    twin.stand_for(layer, how, float32_outputs)
    return twin


@functools.cache
def _kind(of: type, base: type) -> type:
    @functools.wraps(of.call)
    def call(self: _ByOperation, *args: nests.Nest, **kwargs: nests.Nest) -> nests.Nest:
        return self.emit(args, kwargs)

    return type(of.__name__, (_ByOperation, base), {"call": call})


class _ByOperation:
    """Mixin: calls a float32 layer, its operations cast one by one."""

    def stand_for(
        self, layer: keras.layers.Layer, how: emission.Emission, float32_outputs: bool
    ) -> None:
        self.layer = layer  # tracked: its variables are this layer's
        self._how, self._float32_outputs = how, float32_outputs
        # In a tuple, which Keras does not track: they take the originals' places.
        self.rounded = tuple(
            (v, _rounded(v, how.narrow)) for v in _only_rounded(layer, how)
        )
        self.autocast = False
        self.built = True
        self.supports_masking = True

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of the float32 layer, copies in the places of what is only rounded."""
        return self._with_copies(super().variables)

    @property
    def weights(self) -> list[keras.Variable]:
        """Likewise."""
        return self._with_copies(super().weights)

    def _with_copies(self, variables: list[keras.Variable]) -> list[keras.Variable]:
        pairs = getattr(self, "rounded", ())  # not yet, where Keras makes the layer
        copy_of = {id(original): copy for original, copy in pairs}
        return [copy_of.get(id(v), v) for v in variables]

    def compute_mask(self, inputs: nests.Nest, previous_mask: nests.Nest) -> None:
        """Leaves the mask that the layer's own call has set."""

    def compute_output_spec(
        self, *args: nests.Nest, **kwargs: nests.Nest
    ) -> nests.Nest:
        """As the layer tells it; of layers not of Keras, all floats are of float32."""
        how = None if self._float32_outputs else self._how
        return _output_spec(self.layer, how, args, kwargs)

    def emit(self, args: tuple, kwargs: dict[str, nests.Nest]) -> nests.Nest:
        outer = stateless_scope.get_stateless_scope()
        trainable = {id(v) for v in self.layer.trainable_variables}
        given = dict(outer.state_mapping) if outer else {}
        losses, written = [], {}

        def call(arguments: nests.Nest) -> nests.Nest:
            args, kwargs, *copies = arguments
            known = given | {
                id(original): copy
                for (original, _), copy in zip(self.rounded, copies, strict=True)
            }
            if outer is None and not copies:
                outputs = self.layer(*args, **kwargs)
                losses.extend(_take_losses(self.layer))
            else:
                with keras.StatelessScope(collect_losses=True) as scope:
                    scope.state_mapping |= known
                    outputs = self.layer(*args, **kwargs)
                losses.extend(scope.losses)
                for variable in self.layer.variables:
                    value = scope.state_mapping.get(id(variable))
                    if value is not known.get(id(variable)):
                        written[id(variable)] = value
            return outputs, _masks(outputs), losses, written

        traced = calls.trace(
            call,
            (args, kwargs, *(copy.value for _, copy in self.rounded)),
            self._how.narrow,
            [v.value for v in self.layer.variables if id(v) not in given],
            [value for i, value in given.items() if i in trainable],
        )
        outputs, masks, emitted_losses, values = traced.emit(self._how)
        for variable in self.layer.variables:
            if id(variable) in values:
                variable.assign(values[id(variable)])
        for loss in emitted_losses:
            self.add_loss(loss)
        if self._float32_outputs:
            outputs = _in_float32(outputs, self._how)
        for tensor, mask in zip(tf.nest.flatten(outputs), masks, strict=True):
            if mask is not None:
                tensor._keras_mask = mask
        return outputs


class _Operation(keras.Operation):
    def __init__(
        self,
        operation: keras.Operation,
        how: emission.Emission,
        float32_outputs: bool,
    ):
        super().__init__(name=operation.name)
        self._operation, self._how = operation, how
        self._float32_outputs = float32_outputs

    def compute_output_spec(
        self, *args: nests.Nest, **kwargs: nests.Nest
    ) -> nests.Nest:
        how = None if self._float32_outputs else self._how
        return _output_spec(self._operation, how, args, kwargs)

    def call(self, *args: nests.Nest, **kwargs: nests.Nest) -> nests.Nest:
        def call(arguments: nests.Nest) -> nests.Nest:
            args, kwargs = arguments
            return self._operation.call(*args, **kwargs)

        traced = calls.trace(call, (args, kwargs), self._how.narrow)
        outputs = traced.emit(self._how)
        return _in_float32(outputs, self._how) if self._float32_outputs else outputs


def _in_float32(outputs: nests.Nest, how: emission.Emission) -> nests.Nest:
    """Casts 16-bit tensors, nested, to float32."""

    def widen(x: nests.Nest) -> nests.Nest:
        return tf.cast(x, tf.float32) if getattr(x, "dtype", None) == how.narrow else x

    return tf.nest.map_structure(widen, outputs)


def _rounded(original: keras.Variable, narrow: tf.DType) -> keras.Variable:
    """Makes a 16-bit copy of a weight that is not trained."""
    value = tf.cast(original.value, narrow)  # float32 -> 16 bits
    return keras.Variable(value, narrow.name, trainable=False, name=original.name)


def _masks(outputs: nests.Nest) -> list[tf.Tensor | None]:
    """What Keras has attached to tensors."""
    return [getattr(x, "_keras_mask", None) for x in tf.nest.flatten(outputs)]


def _take_losses(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """Takes the losses that a call added to layers."""
    here, found = tf.compat.v1.get_default_graph(), []
    for part in layer._flatten_layers():
        made = [x for x in part._losses if getattr(x, "graph", None) is here]
        found += made
        part._losses = [x for x in part._losses if not any(x is y for y in made)]
    return found
