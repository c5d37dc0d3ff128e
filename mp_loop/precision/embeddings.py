"""Embeddings in 16 bits: their tables stay float32, and so do sums of gradients.

    embedding(layer, policy)            rows of the float32 table, rounded
    position_embedding(layer, policy)   likewise, their gradient a float32 sum

As in `precision.products`, each layer stands in for one of the user's float32 model,
and shares its table. keras_hub is never imported here: who has a layer of it has done
so.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from mp_loop.precision import copies, products

# Layers of keras_hub that number positions, and those that look rows up.
_POSITIONS = ("PositionEmbedding",)
_TABLES = ("ReversibleEmbedding",)


def of_keras_hub(names: tuple[str, ...]) -> tuple[type, ...]:
    """Layer types of keras_hub, none as long as nobody has imported it."""
    hub = getattr(sys.modules.get("keras_hub"), "layers", None)
    types = [getattr(hub, name, None) for name in names]
    return tuple(found for found in types if found is not None)


class _Embedding:
    """Mixin: looks up rows of the master's own float32 table, and rounds these.

    A 16-bit copy of the table would be made anew in every step, of all its rows.
    """

    def share(self, master: keras.layers.Embedding) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking

    def build(self, input_shape: tuple[int | None, ...] | None = None) -> None:
        master = self._master()
        self._embeddings = master.embeddings  # tracked, in the master's order
        if not getattr(master, "tie_weights", True):
            self.reverse_embeddings = master.reverse_embeddings


class _ReversibleEmbedding(_Embedding):
    """Mixin: multiplies with the table as another twin of the master does.

    A frozen table need not be rounded anew in every step: there is a 16-bit copy, of
    which rows are looked up as well.
    """

    # None inside a composite layer, which looks rows up alone.
    _head: Callable[[], keras.layers.Layer] | None = None

    def multiply_by(self, head: keras.layers.Layer) -> None:
        self._head = lambda: head  # a closure hides it from Keras' tracking

    def build(self, input_shape: tuple[int | None, ...] | None = None) -> None:
        super().build(input_shape)
        if self._head is None:
            return
        copied = []
        for name in ("_embeddings", "reverse_embeddings"):
            shared = vars(self).get(name)
            if shared is None or shared.trainable:
                continue
            self._tracker.untrack(shared)
            copy = self.add_weight(
                name=shared.name,
                shape=shared.shape,
                dtype=self.compute_dtype,
                initializer="zeros",  # the cloning assigns it
                trainable=False,
            )
            setattr(self, name, copy)
            copied.append((shared, copy))
        self._head().rounded = tuple(copied)

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        if reverse and self._head is not None:
            return self._head()(inputs, reverse=True)
        return super().call(inputs, reverse=reverse)

    def compute_output_spec(
        self, inputs: keras.KerasTensor, reverse: bool = False
    ) -> keras.KerasTensor:
        if reverse and self._head is not None:
            return self._head().compute_output_spec(inputs, reverse=True)
        return super().compute_output_spec(inputs, reverse=reverse)


def can_look_up(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer looks up rows of a table, and no more."""
    known = (keras.layers.Embedding, getattr(keras.layers, "ReversibleEmbedding", None))
    return type(layer) in (*known, *of_keras_hub(_TABLES))


def is_reversible(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer can also multiply with its table, as a head does."""
    return can_look_up(layer) and type(layer) is not keras.layers.Embedding


def embedding(
    layer: keras.layers.Embedding, policy: keras.DTypePolicy
) -> keras.layers.Embedding:
    """Makes a built float32 embedding layer return 16-bit rows.

    Args:
      layer: one that `can_look_up`. Its table is shared, so that rows that repeat
        have their gradients summed in float32.
      policy: dtype of the rows.

    Returns:
      A layer; of one that `is_reversible`, it must be told what it is to
      `multiply_by`.
    """
    # Under a mixed policy, Keras rounds the rows, not the table.
    mixed = keras.DTypePolicy(f"mixed_{policy.variable_dtype}")
    twin = _looking_up(type(layer)).from_config(copies.twin_config(layer, mixed))
    twin.share(layer)
    return twin


@functools.cache
def _looking_up(base: type) -> type:
    plain = base is keras.layers.Embedding
    mixin = _Embedding if plain else _ReversibleEmbedding
    return type(base.__name__, (mixin, base), {})


class _PositionEmbedding(keras.layers.Layer):
    """The master's position embedding, rounded to 16 bits and then repeated.

    Its gradient, a sum over the batch, is of float32.
    """

    def share(self, master: keras.layers.Layer) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self.trainable = master.trainable

    def build(self, inputs_shape: tuple[int | None, ...]) -> None:
        self.position_embeddings = self._master().position_embeddings

    def call(
        self,
        inputs: tf.Tensor,
        start_index: int | tf.Tensor = 0,
        positions: tf.Tensor | None = None,
    ):
        rows, shape = self.position_embeddings.value, tf.shape(inputs)
        if positions is not None:
            rows = tf.gather(rows, positions)
        else:
            rows = rows[start_index : start_index + shape[-2]]
        repeated = products.add_bias(tf.zeros(shape, self.variable_dtype), rows)
        return tf.ensure_shape(repeated, inputs.shape)

    def compute_output_spec(
        self, inputs: keras.KerasTensor, *_: object, **__: object
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, self.variable_dtype)


def can_number(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer is keras_hub's learned position embedding."""
    return type(layer) in of_keras_hub(_POSITIONS)


def position_embedding(
    layer: keras.layers.Layer, policy: keras.DTypePolicy
) -> keras.layers.Layer:
    """Makes keras_hub's built float32 `PositionEmbedding` return 16 bits.

    Args:
      layer: one that `can_number`. Its variable is shared.
      policy: dtype of the outputs.
    """
    twin = _PositionEmbedding(name=layer.name, dtype=policy.variable_dtype)
    twin.share(layer)
    return twin
