"""Normalization, 16-bit in and out: its sums and statistics are of float32.

    batch_norm(bn, policy)    on TensorFlow's fused kernel
    layer_norm(ln, policy)    one XLA loop each way
    relu(layer, policy)       after frozen batch norm, in one loop with it

As in `precision.products`, each layer stands in for one of the user's float32
model and shares its variables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from mp_loop.operations import again, differentiation
from mp_loop.precision import activations, origins


class _Norm(keras.layers.Layer):
    """Stands in for a normalization layer of the float32 model."""

    def share(self, master: keras.layers.Layer) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self.trainable = master.trainable
        self.supports_masking = True


class _BatchNorm(_Norm):
    """The master's batch normalization on TensorFlow's fused kernel.

    16-bit in and out, statistics and their gradients in float32; Keras keeps
    several float32 tensors of the layer's size instead.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        master = self._master()
        # Tracked, in the master's order.
        self.gamma, self.beta = master.gamma, master.beta
        self.moving_mean = master.moving_mean
        self.moving_variance = master.moving_variance

    def call(
        self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        master = self._master()
        dtype = self.variable_dtype
        if mask is not None:  # a weighted mean, which the kernel lacks
            wide = tf.cast(inputs, tf.float32)
            normalized = master(wide, training=training, mask=mask)
            return tf.cast(normalized, dtype)
        mean, variance = self.moving_mean.value, self.moving_variance.value
        gamma = tf.ones_like(mean) if self.gamma is None else self.gamma.value
        beta = tf.zeros_like(mean) if self.beta is None else self.beta.value
        x = tf.cast(inputs, dtype)
        if len(x.shape) != 4:  # all the kernel takes
            x = tf.reshape(x, (1, 1, -1, x.shape[-1]))
        if training and master.trainable:
            wide = self.compute_dtype != dtype
            # Where the convolution before is cheap, what it was made of is kept
            # instead of what it made: its own gradient keeps that anyway.
            made = origins.of(inputs, origins.Product) or (tf.identity, x)
            y, batch_mean, batch_variance = _normalize(
                made, gamma, beta, master.epsilon, wide
            )
            rate = 1.0 - master.momentum
            self.moving_mean.assign(mean * master.momentum + batch_mean * rate)
            self.moving_variance.assign(
                variance * master.momentum + batch_variance * rate
            )
        else:
            factor = gamma * tf.math.rsqrt(variance + master.epsilon)
            affine = origins.Affine(x, factor, beta - mean * factor)
            y = _affine()(*affine)
            if len(inputs.shape) == 4:
                origins.note(y, affine)  # for `_ReLU`
        return tf.reshape(y, tf.shape(inputs)) if len(inputs.shape) != 4 else y


@functools.cache
def _affine(low: float = -math.inf, high: float = math.inf) -> Callable[..., tf.Tensor]:
    """Makes `x * factor + offset`, between bounds, in float32, one loop each way.

    Where factor and offset are not trained, the output alone is kept for the
    backward pass, and nothing where there are no bounds.

    Args:
      low: least value of the output.
      high: largest value.

    Returns:
      A function of x, 16-bit [..., channels], factor and offset, float32 [channels].
    """
    bounded = low > -math.inf

    @tf.function(jit_compile=True, autograph=False)
    def forward(x: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32) * factor + offset
        # A NaN stays one.
        return tf.cast(tf.minimum(tf.maximum(wide, low), high), x.dtype)

    def through(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        dy = tf.cast(dy, tf.float32)
        return tf.where((y > low) & (y < high), dy, 0.0) if bounded else dy

    @tf.function(jit_compile=True, autograph=False)
    def backward(y: tf.Tensor, factor: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        return tf.cast(through(y, dy) * factor, dy.dtype)

    @tf.function(jit_compile=True, autograph=False)
    def sums(x: tf.Tensor, y: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        dy = through(y, dy)
        axes = list(range(x.shape.rank - 1))
        return tf.reduce_sum(dy * tf.cast(x, tf.float32), axes), tf.reduce_sum(dy, axes)

    @differentiation.custom_gradient
    def compute(
        x: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor
    ) -> again.WithGradient:
        y = forward(x, factor, offset)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            kept = y if bounded else dy
            return backward(kept, factor, dy), *sums(x, kept, dy)

        return y, gradient

    return compute


class _ReLU(keras.layers.Activation):
    """ReLU or ReLU6; of frozen batch norm, both in one loop."""

    def __init__(
        self,
        activation: Callable[[tf.Tensor], tf.Tensor],
        name: str,
        dtype: keras.DTypePolicy,
    ) -> None:
        super().__init__(activations.fused(activation), name=name, dtype=dtype)
        self._most = 6.0 if activation is keras.activations.relu6 else math.inf

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        affine = origins.of(inputs, origins.Affine)
        if affine is None:
            return super().call(inputs)
        return _affine(0.0, self._most)(*affine)


def relu(
    layer: keras.layers.Layer, policy: keras.DTypePolicy
) -> keras.layers.Layer | None:
    """Makes a 16-bit ReLU or ReLU6 layer; None where the layer is neither.

    Args:
      layer: a float32 layer.
      policy: dtype of inputs and outputs.
    """
    activation = None
    if type(layer) is keras.layers.Activation:
        activation = layer.activation
    elif type(layer) is keras.layers.ReLU and not (
        layer.negative_slope or layer.threshold
    ):
        names = {None: "relu", 6.0: "relu6"}
        activation = getattr(keras.activations, names.get(layer.max_value, ""), None)
    if activation not in (keras.activations.relu, keras.activations.relu6):
        return None
    return _ReLU(activation, layer.name, policy)


def _normalize(
    made: Sequence[Callable[..., tf.Tensor] | tf.Tensor],
    gamma: tf.Tensor | tf.Variable,
    beta: tf.Tensor | tf.Variable,
    epsilon: float,
    wide: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the normalized tensor, and the batch's mean and variance in float32.

    Args:
      made: a function, and its arguments, that gives [n, h, w, channels], 16 bits.
        The arguments alone are kept for the backward pass.
      gamma: float32 [channels].
      beta: float32 [channels].
      epsilon: added to the variance.
      wide: whether to cast around a float32 kernel, for a processor without a
        16-bit one.
    """
    make, *arguments = made

    @differentiation.custom_gradient
    def normalize(
        gamma: tf.Tensor, beta: tf.Tensor, *arguments: tf.Tensor
    ) -> again.WithGradient:
        x = make(*arguments)
        dtype, kernel_dtype = x.dtype, tf.float32 if wide else x.dtype
        y, mean, variance, *reserved = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(x, kernel_dtype),
            scale=gamma,
            offset=beta,
            mean=[],
            variance=[],
            epsilon=epsilon,
            is_training=True,
        )

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            anew = again.after([dy], arguments)  # made, and cast, anew: late
            with tf.GradientTape() as tape:
                tape.watch(anew)
                x = make(*anew)
            spaces = {f"reserve_space_{i + 1}": t for i, t in enumerate(reserved)}
            dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=tf.cast(dy, kernel_dtype),
                x=tf.cast(x, kernel_dtype),
                scale=gamma,
                epsilon=epsilon,
                is_training=True,
                **spaces,
            )
            return [dgamma, dbeta, *tape.gradient(x, anew, tf.cast(dx, dtype))]

        return (tf.cast(y, dtype), mean, variance), gradient

    arguments = map(tf.convert_to_tensor, arguments)
    y, mean, variance = normalize(gamma, beta, *arguments)
    rows = tf.cast(tf.size(y) // tf.shape(y)[-1], tf.float32)
    # The kernel's variance is the unbiased one, Keras' is not.
    return y, mean, variance * ((rows - 1.0) / rows)


def can_fuse(layer: keras.layers.Layer) -> bool:
    """Tells whether the fused kernel computes what a batch norm layer does."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.axis in (-1, layer.input_spec.ndim - 1)
        and not getattr(layer, "synchronized", False)
        and not getattr(layer, "renorm", False)
    )


def batch_norm(
    layer: keras.layers.BatchNormalization, policy: keras.DTypePolicy
) -> keras.layers.Layer:
    """Puts a built float32 `BatchNormalization` on the fused kernel.

    Args:
      layer: one that `can_fuse`. All its variables are shared.
      policy: dtype of inputs and outputs, and of the kernel.

    Returns:
      A layer that reads and moves the variables of `layer`.
    """
    twin = _BatchNorm(name=layer.name, dtype=policy)
    twin.share(layer)
    return twin


class _LayerNorm(_Norm):
    """The master's layer normalization, 16-bit in and out, float32 between."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        master = self._master()
        self.gamma, self.beta = master.gamma, master.beta  # tracked, in this order

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = tf.cast(inputs, self.variable_dtype)
        gamma = tf.ones(x.shape[-1]) if self.gamma is None else self.gamma.value
        beta = tf.zeros(x.shape[-1]) if self.beta is None else self.beta.value
        return _layer_norm(self._master().epsilon)(x, gamma, beta)


@functools.cache
def _layer_norm(epsilon: float) -> Callable[..., tf.Tensor]:
    """Makes layer normalization over the last axis, one XLA loop each way.

    The 16-bit input and two float32 numbers a row are kept for the backward pass.
    Its sums, over a row and over the batch, are of float32.
    """

    @tf.function(jit_compile=True, autograph=False)
    def forward(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        wide = tf.cast(x, tf.float32)
        mean = tf.reduce_mean(wide, -1, keepdims=True)
        variance = tf.reduce_mean(
            tf.math.squared_difference(wide, mean), -1, keepdims=True
        )
        inverse = tf.math.rsqrt(variance + epsilon)
        y = (wide - mean) * inverse * gamma + beta
        return tf.cast(y, x.dtype), mean, inverse

    @tf.function(jit_compile=True, autograph=False)
    def backward(
        x: tf.Tensor,
        gamma: tf.Tensor,
        mean: tf.Tensor,
        inverse: tf.Tensor,
        dy: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        dy = tf.cast(dy, tf.float32)
        normal = (tf.cast(x, tf.float32) - mean) * inverse
        batch = list(range(x.shape.rank - 1))
        dnormal = dy * gamma
        dx = inverse * (
            dnormal
            - tf.reduce_mean(dnormal, -1, keepdims=True)
            - normal * tf.reduce_mean(dnormal * normal, -1, keepdims=True)
        )
        dgamma = tf.reduce_sum(dy * normal, batch)
        return tf.cast(dx, x.dtype), dgamma, tf.reduce_sum(dy, batch)

    @differentiation.custom_gradient
    def normalize(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> again.WithGradient:
        y, mean, inverse = forward(x, gamma, beta)
        return y, lambda dy: backward(*again.after([dy], [x]), gamma, mean, inverse, dy)

    return normalize


def can_fuse_layer_norm(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer normalizes over its last axis, and only that."""
    if type(layer) is not keras.layers.LayerNormalization or layer.rms_scaling:
        return False
    rank = len(layer._build_shapes_dict["input_shape"])
    return layer.axis in ([-1], [rank - 1])


def layer_norm(
    layer: keras.layers.LayerNormalization, policy: keras.DTypePolicy
) -> keras.layers.Layer:
    """Makes a built float32 `LayerNormalization` read and write 16 bits.

    Args:
      layer: one that `can_fuse_layer_norm`. Its variables are shared.
      policy: dtype of inputs and outputs.
    """
    twin = _LayerNorm(name=layer.name, dtype=policy)
    twin.share(layer)
    return twin
