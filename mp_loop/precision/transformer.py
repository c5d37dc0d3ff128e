"""What a Transformer is made of, beside products, norms and embeddings, in 16 bits.

    attention(mha, policy)              16-bit products, float32 softmax
    dropout(layer, policy)              16-bit in and out, the masks of float32
    composite(layer, policy, parts)     a layer made of other layers

As in `precision.products`, each layer stands in for one of the user's float32
model, and shares those of its variables that a 16-bit copy would hurt.
"""

from __future__ import annotations

import functools
import math

import keras
import tensorflow as tf

from mp_loop.operations import again, blocks
from mp_loop.precision import copies, embeddings, products

# Layers of keras_hub that only call other layers, add what these return, and pass
# masks on.
_COMPOSITES = ("TokenAndPositionEmbedding", "TransformerEncoder")


class _Attention(keras.layers.MultiHeadAttention):
    """Multi-head attention: 16-bit products, softmax in float32."""

    def share(self, master: keras.layers.MultiHeadAttention, few_bits: bool) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self._few_bits = few_bits

    def build(
        self,
        query_shape: tuple[int | None, ...],
        value_shape: tuple[int | None, ...],
        key_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        super().build(query_shape, value_shape, key_shape)
        # Replaced by projections with float32 bias gradients. Tracked in the
        # master's order: query, key, value, output.
        for name in ("_query_dense", "_key_dense", "_value_dense", "_output_dense"):
            plain, master = getattr(self, name), getattr(self._master(), name)
            self._tracker.untrack(plain)
            twin = products.with_float32_bias(master, self.dtype_policy)
            twin.build(tuple(master._build_shapes_dict["input_shape"]))
            setattr(self, name, twin)
        axis = self._softmax.axis
        self._tracker.untrack(self._softmax)
        self._softmax = keras.layers.Softmax(axis=axis, dtype="float32")
        if self._dropout > 0:
            self._tracker.untrack(self._dropout_layer)
            self._dropout_layer = dropout(
                self._master()._dropout_layer, self.dtype_policy, self._few_bits
            )

    def _compute_attention(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        attention_mask: tf.Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if attention_mask is not None:
            attention_mask = tf.cast(attention_mask, tf.bool)
        if use_causal_mask:
            causal = self._compute_causal_mask(query, value)
            if attention_mask is not None:
                causal = tf.logical_and(attention_mask, causal)
            attention_mask = causal
        if attention_mask is not None:
            axis = -len(self._attention_axes) * 2 - 1
            scores_rank = len(query.shape) + len(self._attention_axes) - 1
            for _ in range(scores_rank - len(attention_mask.shape)):
                attention_mask = tf.expand_dims(attention_mask, axis)
        seed = None
        if self._dropout > 0 and training:
            seed = self._dropout_layer.seed_generator.next()
        if return_attention_scores or not self._grows(query, key):
            scores = self._scores(query, key, attention_mask)
            return self._combined(scores, value, seed), scores
        return self._again(query, key, value, attention_mask, seed), None

    def _again(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        mask: tf.Tensor | None,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        """Attends, and attends again in the backward pass; some queries at a time."""

        def attend(
            query: tf.Tensor,
            key: tf.Tensor,
            value: tf.Tensor,
            places: tf.Tensor | None = None,
            mask: tf.Tensor | None = mask,
        ) -> tf.Tensor:
            drawn = seed
            if seed is not None and places is not None:  # each block draws its own
                drawn = tf.random.fold_in(seed, places[0])
            return self._combined(self._scores(query, key, mask), value, drawn)

        cut = self._cut(query, key, value, mask)
        # The masks that float32 draws are drawn for all queries at once.
        if cut is None or (seed is not None and not self._few_bits):
            (made,) = again.run(lambda *x: [attend(*x)], (query, key, value))
            return made
        tensors = [query, key, value, tf.range(cut.size)]
        axes = [cut.axis, None, None, 0]
        if mask is not None:
            tensors.append(mask)
            axes.append(None if mask.shape[-2] == 1 else len(mask.shape) - 2)
        dtype = tf.as_dtype(self.variable_dtype)
        return blocks.run(attend, tensors, axes, cut, dtype)

    def _cut(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        mask: tf.Tensor | None,
    ) -> blocks.Cut | None:
        """How queries are cut, if there are many more weights than what makes them."""
        axis, *others = self._attention_axes
        if others or axis < 0:
            return None
        queries, keys = query.shape[axis], key.shape[axis]
        known = mask is None or mask.shape[-2] in (1, queries)
        if not queries or not keys or not known:
            return None
        taken = queries * query.shape[-1] + keys * (key.shape[-1] + value.shape[-1])
        return blocks.cut(axis, queries, queries * keys, taken)

    def _grows(self, query: tf.Tensor, key: tf.Tensor) -> bool:
        """Whether there are more weights than numbers they are made of; see `spans`."""
        lengths = [
            math.prod(x.shape[axis] or math.inf for axis in self._attention_axes)
            for x in (query, key)
        ]
        return math.prod(lengths) >= sum(lengths) * self._key_dim

    def _scores(
        self, query: tf.Tensor, key: tf.Tensor, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the weight of each key for each query, float32 [..., T, S]."""
        # Added, it costs nothing in the backward pass. In float32: no infinity.
        bias = 0.0 if mask is None else tf.where(mask, 0.0, -1e9)
        # Scaled before the product, which is where float16 would overflow.
        query = query * tf.cast(self._inverse_sqrt_key_dim, query.dtype)
        scores = self._product(self._dot_product_equation, key, query)
        return self._softmax(tf.cast(scores, tf.float32) + bias)  # 16 bits -> float32

    def _combined(
        self, scores: tf.Tensor, value: tf.Tensor, seed: tf.Tensor | None
    ) -> tf.Tensor:
        weights = tf.cast(scores, value.dtype)  # float32 -> 16 bits
        if seed is not None:
            weights = self._dropout_layer.drop(weights, seed)
        return self._product(self._combine_equation, weights, value)

    def _product(self, equation: str, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        a, b = tf.cast(a, self.compute_dtype), tf.cast(b, self.compute_dtype)
        return tf.cast(keras.ops.einsum(equation, a, b), self.variable_dtype)


def attention(
    layer: keras.layers.MultiHeadAttention,
    policy: keras.DTypePolicy,
    few_bits: bool = False,
    each_call: bool = False,
) -> keras.layers.MultiHeadAttention:
    """Copies a built `MultiHeadAttention` to 16 bits, its softmax in float32.

    Args:
      layer: a built float32 layer. Its projections' biases are shared.
      policy: dtype of kernels and results, and of the products.
      few_bits: as for `dropout`.
      each_call: whether the copy can `copies.read_in_each_call`.

    Returns:
      A layer with 16-bit projection kernels of its own.
    """
    config = copies.twin_config(layer, policy)
    config["flash_attention"] = False
    twin = copies.made(_Attention, config, each_call)
    twin.share(layer, few_bits)
    return twin


class _Float32Masks:
    """Mixin: Keras' dropout in float32, of 16-bit inputs and outputs.

    In 16 bits Keras draws other masks, of another rate where a bfloat16 number in
    [0, 1) is one of 128, and rounds 1 / (1 - rate).
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return inputs
        outputs = super().call(tf.cast(inputs, tf.float32), training)
        return tf.cast(outputs, self.variable_dtype)  # float32 -> 16 bits

    def drop(self, inputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Drops the single numbers that a seed, integer [2], says."""
        outputs = tf.nn.experimental.stateless_dropout(
            tf.cast(inputs, tf.float32), self.rate, _of_tensorflow(seed)
        )
        return tf.cast(outputs, self.variable_dtype)  # float32 -> 16 bits


DROPOUTS = {
    kind: type(kind.__name__, (_Float32Masks, kind), {})
    for kind in (
        keras.layers.Dropout,
        keras.layers.SpatialDropout1D,
        keras.layers.SpatialDropout2D,
        keras.layers.SpatialDropout3D,
    )
}


class _FewBitsDropout(keras.layers.Dropout):
    """Dropout that draws 16 random bits for each number, where float32 takes 32.

    The factor is rounded to 16 bits, and the rate gives way: it is such that the mean
    of the outputs is that of the inputs.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return inputs
        return self.drop(inputs, self.seed_generator.next())

    def drop(self, inputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Drops what a seed, integer [2], says."""
        x = tf.cast(inputs, self.variable_dtype)
        factor = tf.cast(1.0 / (1.0 - self.rate), x.dtype)
        dropped = 1.0 - 1.0 / tf.cast(factor, tf.float32)  # of all
        keep = _random_bits(tf.shape(x), seed) >= tf.cast(
            tf.round(dropped * 2.0**16), tf.uint16
        )
        return tf.where(keep, x * factor, 0)


def _random_bits(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns uniform uint16 of a shape of one dimension or more.

    Args:
      shape: int32 [rank].
      seed: integer [2].
    """
    pairs = (shape[-1] + 1) // 2
    words = tf.random.stateless_uniform(
        tf.concat([shape[:-1], [pairs]], 0),
        _of_tensorflow(seed),
        minval=None,
        maxval=None,
        dtype=tf.uint32,
    )
    halves = tf.bitcast(words, tf.uint16)  # [..., pairs, 2]
    both = tf.reshape(halves, tf.concat([shape[:-1], [2 * pairs]], 0))
    return both[..., : shape[-1]]


def _of_tensorflow(seed: tf.Tensor) -> tf.Tensor:
    """Makes the int32 seed that Keras makes of one of its own."""
    return tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)


def _may_draw_few_bits(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer drops independent numbers, at a rate of 16 bits."""
    # At a rate near 1 the factor would overflow, and at one near 0 nothing drop.
    return (
        type(layer) is keras.layers.Dropout
        and layer.noise_shape is None
        and 2.0**-6 <= layer.rate <= 0.99
    )


def dropout(
    layer: keras.layers.Layer, policy: keras.DTypePolicy, few_bits: bool = False
) -> keras.layers.Layer:
    """Copies a dropout to 16 bits; the mean of its outputs is that of its inputs.

    Args:
      layer: one of `DROPOUTS`, whose seed the copy continues from.
      policy: dtype of inputs and outputs.
      few_bits: drop other numbers than the float32 layer does from the same seed, for
        half the random bits. Very large and small rates, and layers that drop more
        than single numbers, do not.
    """
    narrow = keras.DTypePolicy(policy.variable_dtype)
    few_bits = few_bits and _may_draw_few_bits(layer)
    twin = _FewBitsDropout if few_bits else DROPOUTS[type(layer)]
    return twin.from_config(copies.twin_config(layer, narrow))


def parts(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The layers that a composite layer of a known type is made of, in order.

    Args:
      layer: any built layer.

    Returns:
      Its layers by attribute name; empty for every other layer, and for one that
      holds layers elsewhere too.
    """
    if type(layer) not in embeddings.of_keras_hub(_COMPOSITES):
        return {}
    names = {
        id(value): name
        for name, value in vars(layer).items()
        if isinstance(value, keras.layers.Layer)
    }
    if any(id(part) not in names for part in layer._layers):
        return {}
    return {names[id(part)]: part for part in layer._layers}


def composite(
    layer: keras.layers.Layer,
    policy: keras.DTypePolicy,
    twins: dict[str, keras.layers.Layer],
    each_call: bool = False,
) -> keras.layers.Layer:
    """Copies a built composite layer, with twins in the place of its parts.

    Args:
      layer: one that has `parts`.
      policy: dtype of what the layer itself computes: sums of two tensors.
      twins: of all its `parts`, by the same names in the same order; not built.
      each_call: whether the copy can `copies.read_in_each_call`.

    Returns:
      A layer of the same type.
    """
    config = copies.twin_config(layer, policy)
    twin = copies.made(_made_of_twins(type(layer)), config, each_call)
    twin._twins = lambda: (layer, twins)  # a closure hides them from tracking
    return twin


@functools.cache
def _made_of_twins(base: type) -> type:
    @functools.wraps(base.build)
    def build(self: keras.layers.Layer, *args: object, **kwargs: object) -> None:
        base.build(self, *args, **kwargs)
        master, twins = self._twins()
        # Tracked in the master's order: all out before the first goes in.
        for name in twins:
            self._tracker.untrack(getattr(self, name))
        for name, twin in twins.items():
            twin.build_from_config(getattr(master, name).get_build_config())
            setattr(self, name, twin)

    return type(base.__name__, (base,), {"build": build})
