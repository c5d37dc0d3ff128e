"""Products with a kernel (Dense, convolutions) in 16 bits, their bias sums in float32.

    with_float32_bias(dense, policy)     a layer that stands in for `dense`

A stand-in shares those of the layer's float32 variables that a 16-bit copy would hurt,
and is never saved: the user's model is. The policy says in which dtype tensors are
stored and in which they are multiplied: `keras.DTypePolicy("float16")`, or
`Float32Products("float16")`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from mp_loop.hardware import devices
from mp_loop.operations import again, bilinear, differentiation, sums
from mp_loop.precision import activations, copies, origins

# Layers of the form activation(product(inputs, kernel) + bias).
BIASED = (
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# A 16-bit output whose sums have no more terms takes processors with matrix units
# (hundreds of operations for each byte they move) no longer to compute than to store.
CHEAP_TERMS = 150


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Adds a float32 bias to a 16-bit tensor; its gradient is a float32 sum.

    The gradient of a bias is a sum over every row of the batch. Summed in 16
    bits it loses a third of its value at 32,768 rows in bfloat16.

    Args:
      x: 16-bit (or float32) tensor.
      bias: float32 tensor that broadcasts against `x`, of no larger rank.

    Returns:
      `x + bias`, in the dtype of `x`. The gradient of `bias` is float32.
    """
    return sums.add(x, bias, x.dtype)


class Float32Products(keras.DTypePolicy):
    """Stores kernels and results in 16 bits, and multiplies in float32.

    For a processor without 16-bit units. Every product is rounded to 16 bits
    once, and overflows there, as on tensor cores, which accumulate in float32.
    """

    @property
    def compute_dtype(self) -> str:
        """The dtype of the product; the variables' is `variable_dtype`."""
        return "float32"


def _pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution of [n, h, w, c] as a product of matrices."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    product = tf.matmul(rows, tf.reshape(kernel, kernel.shape[2:]))
    return tf.reshape(product, tf.concat([tf.shape(x)[:-1], kernel.shape[3:]], 0))


def _strided_depthwise(
    x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str
) -> tf.Tensor:
    """A depthwise convolution whose gradient to `x` is fast in bfloat16.

    oneDNN leaves the gradient of a strided one to its reference code, ten times slower
    than the gradient of a plain one, or than float32.
    """
    strides = [1, stride, stride, 1]
    plain = kernel.shape[3] == 1 and x.shape[1:].is_fully_defined()

    @differentiation.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> again.WithGradient:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if plain:
                dx = _through_strides(dy, kernel, stride, padding, x.shape)
            else:
                dx = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                    input_sizes=tf.shape(x),
                    filter=tf.cast(kernel, tf.float32),
                    out_backprop=tf.cast(dy, tf.float32),
                    strides=strides,
                    padding=padding,
                )
            dkernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x,
                filter_sizes=tf.shape(kernel),
                out_backprop=dy,
                strides=strides,
                padding=padding,
            )
            return tf.cast(dx, x.dtype), dkernel

        return tf.nn.depthwise_conv2d(x, kernel, strides, padding), gradient

    return convolve(x, kernel)


def _through_strides(
    dy: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str, shape: tf.TensorShape
) -> tf.Tensor:
    """The gradient to the input of a strided depthwise convolution, by a plain one.

    Between the pixels of `dy` go the zeros that the strides stepped over, around them
    those of the border; the kernel is turned by half a circle.

    Args:
      dy: [n, rows, columns, channels].
      kernel: [height, width, channels, 1].
      stride: in both directions.
      padding: "SAME" or "VALID".
      shape: of the input, [n, height, width, channels]; n may be unknown.
    """
    paddings, starts, sizes = [[0, 0]], [0], [-1]
    for axis in (1, 2):
        size, length, made = shape[axis], kernel.shape[axis - 1], dy.shape[axis]
        border = max((made - 1) * stride + length - size, 0) // 2
        before = length - 1 - (border if padding == "SAME" else 0)
        needed = size + length - 1
        # In steps of the stride, then cut to size.
        steps = -(-before // stride)
        start = steps * stride - before
        behind = max(-(-(start + needed) // stride) - steps - made, 0)
        paddings += [[steps, behind], [0, stride - 1]]
        starts.append(start)
        sizes.append(needed)
    channels = dy.shape[3]
    spread = tf.reshape(dy, (-1, dy.shape[1], 1, dy.shape[2], 1, channels))
    spread = tf.pad(spread, [*paddings, [0, 0]])
    _, rows, _, columns, *_ = spread.shape
    spread = tf.reshape(spread, (-1, rows * stride, columns * stride, channels))
    spread = tf.slice(spread, [*starts, 0], [*sizes, channels])
    turned = tf.reverse(kernel, [0, 1])
    return tf.nn.depthwise_conv2d(spread, turned, [1, 1, 1, 1], "VALID")


class _Float32Bias:
    """Mixin: the layer's kernel in 16 bits, the master's own float32 bias."""

    def share(self, master: keras.layers.Layer) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self._channels_first_rank = (
            len(master.kernel_size)
            if getattr(master, "data_format", None) == "channels_first"
            else 0
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.float32_bias = self._master().bias  # tracked, after the kernel
        product = self._product()
        self._multiply = lambda inputs: super(_Float32Bias, self).call(inputs)
        if product is not None and self.compute_dtype != self.variable_dtype:
            self.autocast = False  # inputs stay 16 bits until they are multiplied
            self._multiply = self._bilinear
        elif isinstance(self, keras.layers.EinsumDense):
            self._multiply = lambda inputs: product(inputs, self.kernel)
        elif product is _pointwise:
            self._multiply = lambda inputs: product(
                inputs, tf.convert_to_tensor(self.kernel)
            )
        elif self._is_strided_depthwise():
            self._multiply = lambda inputs: _strided_depthwise(
                inputs,
                tf.convert_to_tensor(self.kernel),
                self.strides[0],
                self.padding.upper(),
            )

    def _multiplied(self, inputs: tf.Tensor) -> tf.Tensor:
        """The product; of an activation, its inputs are kept in place of it."""
        origin = origins.of(inputs, origins.Activation)
        if origin is None or self._product() is None or self._is_cheap():
            return self._multiply(inputs)
        return self._bilinear(
            inputs,
            lambda these: origin.activate(*again.after(these, [origin.inputs])),
        )

    def _bilinear(
        self, inputs: tf.Tensor, remake: again.Remake | None = None
    ) -> tf.Tensor:
        """The product, in 16 bits or of float32 copies; see `bilinear.multiply`."""
        dtype = self.variable_dtype
        return bilinear.multiply(
            self._product(),
            tf.cast(inputs, dtype),
            tf.cast(self.kernel, dtype),  # Keras hands a 16-bit one over in float32
            in_float32=self.compute_dtype != dtype,
            remake=remake,
        )

    def _product(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
        """The layer as a function of inputs and kernel, where that is all it is."""
        if isinstance(self, keras.layers.Dense):
            return keras.ops.matmul
        if isinstance(self, keras.layers.EinsumDense):
            # Keras' own einsum may multiply example by example, and then add up
            # the examples' 16-bit gradients.
            return functools.partial(tf.einsum, self.equation)
        if self._is_pointwise() and not devices.has_gpu():
            return _pointwise  # a product of matrices has the faster gradient
        if isinstance(self, keras.layers.Conv2D | keras.layers.Conv3D):
            return functools.partial(
                keras.ops.conv,
                strides=self.strides,
                padding=self.padding,
                data_format=self.data_format,
                dilation_rate=self.dilation_rate,
            )
        return None

    def _is_pointwise(self) -> bool:
        """Tells whether this is a convolution that multiplies single pixels."""
        return (
            isinstance(self, keras.layers.Conv2D)
            and set(self.kernel_size) == set(self.strides) == {1}
            and self.groups == 1
            and self.data_format == "channels_last"
        )

    def _is_strided_depthwise(self) -> bool:
        """Tells whether the product has a very slow gradient on a processor."""
        return (
            isinstance(self, keras.layers.DepthwiseConv2D)
            and self.compute_dtype == "bfloat16"
            and self.strides[0] == self.strides[1] > 1
            and tuple(self.dilation_rate) == (1, 1)
            and self.data_format == "channels_last"
            and not devices.has_gpu()
        )

    def _is_cheap(self) -> bool:
        """Tells whether to compute the output again beats to keep it in memory."""
        return (
            isinstance(self, keras.layers.Conv2D)
            and self.compute_dtype == self.variable_dtype
            and math.prod(self.kernel.shape[:-1]) <= CHEAP_TERMS
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(self._multiplied(inputs), self.variable_dtype)
        if self._is_cheap():
            product = origins.Product(self._product(), inputs, self.kernel)
            origins.note(outputs, product)
        if self.float32_bias is not None:
            bias = self.float32_bias.value
            ones = (1,) * self._channels_first_rank
            outputs = add_bias(outputs, tf.reshape(bias, (*bias.shape, *ones)))
        activation = self._master().activation
        if activation is None:
            return outputs
        if activations.needs_float32(activation):
            outputs = tf.cast(outputs, tf.float32)  # 16 bits -> float32
        return activations.fused(activation)(outputs)


_TWINS = {base: type(base.__name__, (_Float32Bias, base), {}) for base in BIASED}


def with_float32_bias(
    layer: keras.layers.Layer, policy: keras.DTypePolicy, each_call: bool = False
) -> keras.layers.Layer:
    """Copies one of the `BIASED` layers to 16 bits, sharing its float32 bias.

    Args:
      layer: a built float32 layer whose type is in `BIASED`.
      policy: dtype of kernel and results, and of the product.
      each_call: whether the copy can `copies.read_in_each_call`.

    Returns:
      A layer with a 16-bit kernel of its own. Softmax-like activations are
      computed, and returned, in float32.
    """
    config = copies.twin_config(layer, policy)
    config["activation"] = None
    config["bias_axes" if "bias_axes" in config else "use_bias"] = None
    twin = copies.made(_TWINS[type(layer)], config, each_call)
    twin.share(layer)
    return twin
