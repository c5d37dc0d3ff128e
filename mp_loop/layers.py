"""Keras layers that compute in 16 bits and reduce in float32.

These are the parts a twin (`mp_loop.precision`) is made of. Each one stands in
for one layer of the user's float32 model, shares that layer's float32
variables where a 16-bit copy would hurt, and is never saved: the user's model
is.

    with_float32_bias(dense, policy)    16-bit kernel, float32 bias gradient
    attention(mha, policy)              16-bit products, float32 softmax
    batch_norm(bn, policy)              16-bit in and out, float32 statistics
    layer_norm(ln, policy)              16-bit in and out, float32 between
    dropout(layer, policy)              16-bit in and out, of the expected mean
    embedding(layer, policy)            rows of the float32 table, rounded
    position_embedding(layer, policy)   likewise, their gradient a float32 sum
    composite(layer, policy, parts)     a layer made of other layers
    fused(activation)                   16-bit in and out, float32 between
    InFloat32(operation)                any Keras operation, in float32

The policy says in which dtype tensors are stored and in which they are
multiplied: `keras.DTypePolicy("float16")`, or `Float32Products("float16")`.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mp_loop import devices

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
# Activations that exponentiate and sum: never below float32.
FLOAT32_ACTIVATIONS = ("softmax", "log_softmax", "sparsemax", "exponential")
# A 16-bit output whose sums have no more terms takes processors with matrix units
# (hundreds of operations for each byte they move) no longer to compute than to store.
CHEAP_TERMS = 150


# Layers of keras_hub that only call other layers, add what these return, and pass
# masks on; those that number positions; and those that look rows up.
_COMPOSITES = ("TokenAndPositionEmbedding", "TransformerEncoder")
_POSITIONS = ("PositionEmbedding",)
_TABLES = ("ReversibleEmbedding",)


def _of_keras_hub(names: tuple[str, ...]) -> tuple[type, ...]:
    """Layer types of keras_hub, none as long as nobody has imported it."""
    hub = getattr(sys.modules.get("keras_hub"), "layers", None)
    types = [getattr(hub, name, None) for name in names]
    return tuple(found for found in types if found is not None)


def needs_float32(activation: Any) -> bool:
    """Tells whether a Keras activation function reduces or exponentiates."""
    return getattr(activation, "__name__", None) in FLOAT32_ACTIVATIONS


@tf.custom_gradient
def add_bias(x: tf.Tensor, bias: tf.Tensor) -> Any:
    """Adds a float32 bias to a 16-bit tensor; its gradient is a float32 sum.

    The gradient of a bias is a sum over every row of the batch. Summed in 16
    bits it loses a third of its value at 32,768 rows in bfloat16.

    Args:
      x: 16-bit (or float32) tensor.
      bias: float32 tensor that broadcasts against `x`, of no larger rank.

    Returns:
      `x + bias`, in the dtype of `x`. The gradient of `bias` is float32.
    """
    bias_shape = tf.shape(bias)
    y = x + tf.cast(bias, x.dtype)  # float32 -> 16 bits

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(dy), s1=bias_shape)
        summed = tf.reduce_sum(tf.cast(dy, tf.float32), axes)  # 16 bits -> float32
        return dy, tf.reshape(summed, bias_shape)

    return y, gradient


@functools.cache
def fused(activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Computes an activation of a 16-bit tensor in one pass, in float32.

    Keras computes GELU in 16 bits as a dozen operations, each of which rounds, takes
    a pass over memory, and is kept for the backward pass. Here XLA makes one loop of
    them, forward and backward, between which the 16-bit input alone is kept; of
    ReLU6, whose 16-bit kernel for processors is slow, the output.

    Args:
      activation: elementwise function of Keras.

    Returns:
      A function of a tensor of any dtype, to the same dtype; `activation` itself
      where nothing is known to be gained.
    """
    if activation not in _FUSED and not _is_gelu_of_keras_hub(activation):
        return activation

    def in_float32(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(activation(tf.cast(x, tf.float32)), x.dtype)

    @tf.function(jit_compile=True)
    def backward(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = in_float32(x)
        return tape.gradient(y, x, dy)

    forward = tf.function(in_float32, jit_compile=True)

    @tf.custom_gradient
    def activate(x: tf.Tensor) -> Any:
        y = forward(x)
        kept = y if activation is keras.activations.relu6 else x
        return y, functools.partial(backward, kept)

    return lambda x: activation(x) if x.dtype == tf.float32 else activate(x)


_FUSED = (
    keras.activations.celu,
    keras.activations.elu,
    keras.activations.gelu,
    keras.activations.log_sigmoid,
    keras.activations.mish,
    keras.activations.relu6,
    keras.activations.selu,
    keras.activations.sigmoid,
    keras.activations.silu,
    keras.activations.softplus,
    keras.activations.tanh,
)


def _is_gelu_of_keras_hub(activation: Any) -> bool:
    """Tells whether this is the GELU of BERT and GPT-2, which has no public name."""
    module, name = (getattr(activation, f"__{key}__", "") for key in ("module", "name"))
    return module.startswith("keras_hub.") and name == "gelu_approximate"


class Float32Products(keras.DTypePolicy):
    """Stores kernels and results in 16 bits, and multiplies in float32.

    For a processor without 16-bit units. Every product is rounded to 16 bits
    once, and overflows there, as on tensor cores, which accumulate in float32.
    """

    @property
    def compute_dtype(self) -> str:
        """The dtype of the product; the variables' is `variable_dtype`."""
        return "float32"


def _float32_product(
    product: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, kernel: Any
) -> tf.Tensor:
    """Multiplies 16-bit tensors in float32, and rounds the product once.

    Only the 16-bit tensors are kept for the backward pass. `product` is bilinear:
    its gradients need its arguments alone, so calling it again there costs nothing
    (what it returns is not used, and pruned).
    """
    dtype = x.dtype

    @tf.custom_gradient
    def multiply(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Cast anew, late: the forward pass's float32 copies are gone by now.
            with tf.control_dependencies([dy]):
                wide = [tf.cast(tf.identity(t), tf.float32) for t in (x, kernel)]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                y = product(*wide)
            grads = tape.gradient(y, wide, tf.cast(dy, tf.float32))
            return tuple(tf.cast(grad, dtype) for grad in grads)

        wide = product(tf.cast(x, tf.float32), tf.cast(kernel, tf.float32))
        return tf.cast(wide, dtype), gradient

    # Keras hands a 16-bit kernel over in float32.
    return multiply(x, tf.cast(kernel, dtype))


def _pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution of [n, h, w, c] as a product of matrices."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    product = tf.matmul(rows, tf.reshape(kernel, kernel.shape[2:]))
    return tf.reshape(product, tf.concat([tf.shape(x)[:-1], kernel.shape[3:]], 0))


def _strided_depthwise(
    x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str
) -> tf.Tensor:
    """A depthwise convolution whose gradient to `x` is computed in float32.

    In bfloat16 oneDNN leaves that to its reference code, ten times slower.
    """
    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
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


class _Float32Bias:
    """Mixin: the layer's kernel in 16 bits, the master's own float32 bias."""

    def share(self, master: keras.layers.Layer) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self._channels_first_rank = (
            len(master.kernel_size)
            if getattr(master, "data_format", None) == "channels_first"
            else 0
        )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.float32_bias = self._master().bias  # tracked, after the kernel
        product = self._product()
        self._multiply = lambda inputs: super(_Float32Bias, self).call(inputs)
        if product is not None and self.compute_dtype != self.variable_dtype:
            self.autocast = False  # inputs stay 16 bits until they are multiplied
            self._multiply = lambda inputs: _float32_product(
                product, tf.cast(inputs, self.variable_dtype), self.kernel
            )
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
        outputs = tf.cast(self._multiply(inputs), self.variable_dtype)
        if self._is_cheap():
            outputs._repeat = (self._product(), inputs, self.kernel)
        if self.float32_bias is not None:
            bias = self.float32_bias.value
            ones = (1,) * self._channels_first_rank
            outputs = add_bias(outputs, tf.reshape(bias, (*bias.shape, *ones)))
        activation = self._master().activation
        if activation is None:
            return outputs
        if needs_float32(activation):
            outputs = tf.cast(outputs, tf.float32)  # 16 bits -> float32
        return fused(activation)(outputs)


_TWINS = {base: type(base.__name__, (_Float32Bias, base), {}) for base in BIASED}


def under_policy(
    layer: keras.layers.Layer, policy: keras.DTypePolicy
) -> dict[str, Any]:
    """The layer's config under another policy, with the float32 layers in it."""

    def replaced(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(replaced(item) for item in value)
        if not isinstance(value, dict):
            return value
        if value.get("class_name") == "DTypePolicy":
            return policy if value["config"]["name"] == "float32" else value
        return {key: replaced(item) for key, item in value.items()}

    config = layer.get_config()
    inner = {key: replaced(value) for key, value in config.items() if key != "dtype"}
    return config | inner | {"dtype": policy}


def twin_config(layer: keras.layers.Layer, policy: keras.DTypePolicy) -> dict[str, Any]:
    """The layer's config for a copy under another policy.

    Initializers, regularizers and constraints belong to the masters: a copy is
    overwritten before its first use, its regularizers would overflow in
    float16 (L2 of a large kernel), and it is never updated by itself.
    """
    config = under_policy(layer, policy)
    for key in config:
        if key == "activity_regularizer":
            continue
        if key.endswith(("_regularizer", "_constraint")):
            config[key] = None
        elif key.endswith("_initializer"):
            config[key] = "zeros"
    return config


def copy(layer: keras.layers.Layer, config: dict[str, Any]) -> keras.layers.Layer:
    """Makes another layer of the same type; a Lambda with the same function."""
    if not isinstance(layer, keras.layers.Lambda):
        return type(layer).from_config(config)
    own = {"function": layer.function, "mask": layer.mask}
    return keras.layers.Lambda(**(config | own | {"output_shape": layer._output_shape}))


def cast_in_each_call(twin: keras.layers.Layer, master: keras.layers.Layer) -> None:
    """Lets a copy read the master's variables, cast anew in each of its calls.

    The gradients of the calls are then summed in float32. A layer that is called
    once has nothing to sum, and keeps its own 16-bit variables.

    Args:
      twin: a copy whose weights are those of `master`, in order and number. Under a
        mixed policy of Keras the cast is left to Keras.
      master: the built float32 layer.
    """
    # Closures hide them from tracking. Inside a call, `value` is cast by Keras.
    values = [variable.value for variable in master.weights]
    twin._master_weights = lambda: (master.weights, values)
    twin.__class__ = _casting_in_each_call(type(twin))


@functools.cache
def _casting_in_each_call(base: type) -> type:
    def masters(layer: Any) -> tuple[list[keras.Variable], list[tf.Variable]]:
        return layer._master_weights()

    @functools.wraps(base.call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = base.weights.fget(self)
        mapping = {
            id(variable): tf.cast(value, self.variable_dtype)
            for variable, master, value in zip(own, *masters(self), strict=True)
            if variable is not master
        }
        with keras.StatelessScope() as scope:
            scope.state_mapping |= mapping  # its constructor would cast
            outputs = base.call(self, *args, **kwargs)
        # What the call wrote: seeds, and weights that a layer normalizes itself.
        owners = dict(zip(map(id, own), self.weights, strict=True))
        for variable in base.variables.fget(self):
            written = scope.state_mapping.get(id(variable))
            if written is not mapping.get(id(variable)):
                owners.get(id(variable), variable).assign(written)
        return outputs

    def variables(self: Any) -> list[keras.Variable]:
        own = {id(v) for v in base.weights.fget(self)}
        seeds = [v for v in base.variables.fget(self) if id(v) not in own]
        return [*self.weights, *seeds]

    members = {
        "call": call,
        "variables": property(variables),
        "weights": property(lambda self: masters(self)[0]),
    }
    return type(base.__name__, (base,), members)


def with_float32_bias(
    layer: keras.layers.Layer, policy: keras.DTypePolicy
) -> keras.layers.Layer:
    """Copies one of the `BIASED` layers to 16 bits, sharing its float32 bias.

    Args:
      layer: a built float32 layer whose type is in `BIASED`.
      policy: dtype of kernel and results, and of the product.

    Returns:
      A layer with a 16-bit kernel of its own. Softmax-like activations are
      computed, and returned, in float32.
    """
    config = twin_config(layer, policy)
    config["activation"] = None
    config["bias_axes" if "bias_axes" in config else "use_bias"] = None
    twin = _TWINS[type(layer)].from_config(config)
    twin.share(layer)
    return twin


class _Attention(keras.layers.MultiHeadAttention):
    """Multi-head attention: 16-bit products, softmax in float32."""

    def share(self, master: keras.layers.MultiHeadAttention, own: bool) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self._own_dropout = own

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        super().build(query_shape, value_shape, key_shape)
        # Replaced by projections with float32 bias gradients. Tracked in the
        # master's order: query, key, value, output.
        for name in ("_query_dense", "_key_dense", "_value_dense", "_output_dense"):
            plain, master = getattr(self, name), getattr(self._master(), name)
            self._tracker.untrack(plain)
            twin = with_float32_bias(master, self.dtype_policy)
            twin.build(tuple(master._build_shapes_dict["input_shape"]))
            setattr(self, name, twin)
        axis = self._softmax.axis
        self._tracker.untrack(self._softmax)
        self._softmax = keras.layers.Softmax(axis=axis, dtype="float32")
        if self._own_dropout and self._dropout > 0:
            self._tracker.untrack(self._dropout_layer)
            self._dropout_layer = dropout(
                self._master()._dropout_layer, self.dtype_policy
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
        if use_causal_mask:
            causal = self._compute_causal_mask(query, value)
            if attention_mask is not None:
                causal = tf.logical_and(tf.cast(attention_mask, tf.bool), causal)
            attention_mask = causal
        # Scaled before the product, which is where float16 would overflow.
        query = query * tf.cast(self._inverse_sqrt_key_dim, query.dtype)
        scores = self._product(self._dot_product_equation, key, query)
        scores = tf.cast(scores, tf.float32)  # 16 bits -> float32
        if attention_mask is not None:
            axis = -len(self._attention_axes) * 2 - 1
            for _ in range(len(scores.shape) - len(attention_mask.shape)):
                attention_mask = tf.expand_dims(attention_mask, axis)
            # Added, it costs nothing in the backward pass. In float32: no infinity.
            scores += tf.where(tf.cast(attention_mask, tf.bool), 0.0, -1e9)
        scores = self._softmax(scores)
        weights = tf.cast(scores, value.dtype)  # float32 -> 16 bits
        if self._dropout > 0:
            weights = self._dropout_layer(weights, training=training)
        return self._product(self._combine_equation, weights, value), scores

    def _product(self, equation: str, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        a, b = tf.cast(a, self.compute_dtype), tf.cast(b, self.compute_dtype)
        return tf.cast(keras.ops.einsum(equation, a, b), self.variable_dtype)


def attention(
    layer: keras.layers.MultiHeadAttention,
    policy: keras.DTypePolicy,
    own_dropout: bool = False,
) -> keras.layers.MultiHeadAttention:
    """Copies a built `MultiHeadAttention` to 16 bits, its softmax in float32.

    Args:
      layer: a built float32 layer. Its projections' biases are shared.
      policy: dtype of kernels and results, and of the products.
      own_dropout: whether it drops as `dropout` does, not as Keras.

    Returns:
      A layer with 16-bit projection kernels of its own.
    """
    config = twin_config(layer, policy)
    config["flash_attention"] = False
    twin = _Attention.from_config(config)
    twin.share(layer, own_dropout)
    return twin


class _BatchNorm(keras.layers.Layer):
    """The master's batch normalization on TensorFlow's fused kernel.

    16-bit in and out, statistics and their gradients in float32; Keras keeps
    several float32 tensors of the layer's size instead.
    """

    def share(self, master: keras.layers.BatchNormalization) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self.trainable = master.trainable
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        master = self._master()
        # Tracked, in the master's order.
        self.gamma, self.beta = master.gamma, master.beta
        self.moving_mean = master.moving_mean
        self.moving_variance = master.moving_variance

    def call(self, inputs: tf.Tensor, training: bool = False, mask: Any = None) -> Any:
        master = self._master()
        dtype = self.variable_dtype
        if mask is not None:  # a weighted mean, which the kernel lacks
            normalized = master(tf.cast(inputs, tf.float32), training, mask)
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
            repeat = getattr(inputs, "_repeat", (tf.identity, x))
            y, batch_mean, batch_variance = _normalize(
                repeat, gamma, beta, master.epsilon, wide
            )
            rate = 1.0 - master.momentum
            self.moving_mean.assign(mean * master.momentum + batch_mean * rate)
            self.moving_variance.assign(
                variance * master.momentum + batch_variance * rate
            )
        else:
            factor = gamma * tf.math.rsqrt(variance + master.epsilon)
            affine = (x, factor, beta - mean * factor)
            y = _affine()(*affine)
            if len(inputs.shape) == 4:
                y._affine = affine  # see `_ReLU`
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

    @tf.function(jit_compile=True)
    def forward(x: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32) * factor + offset
        # A NaN stays one.
        return tf.cast(tf.minimum(tf.maximum(wide, low), high), x.dtype)

    def through(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        dy = tf.cast(dy, tf.float32)
        return tf.where((y > low) & (y < high), dy, 0.0) if bounded else dy

    @tf.function(jit_compile=True)
    def backward(y: tf.Tensor, factor: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        return tf.cast(through(y, dy) * factor, dy.dtype)

    @tf.function(jit_compile=True)
    def sums(x: tf.Tensor, y: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        dy = through(y, dy)
        axes = list(range(x.shape.rank - 1))
        return tf.reduce_sum(dy * tf.cast(x, tf.float32), axes), tf.reduce_sum(dy, axes)

    @tf.custom_gradient
    def compute(x: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor) -> Any:
        y = forward(x, factor, offset)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            kept = y if bounded else dy
            return backward(kept, factor, dy), *sums(x, kept, dy)

        return y, gradient

    return compute


class _ReLU(keras.layers.Activation):
    """ReLU or ReLU6; of frozen batch norm, both in one loop."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        affine = getattr(inputs, "_affine", None)
        if affine is None:
            return super().call(inputs)
        return _affine(0.0, 6.0 if self._six else math.inf)(*affine)


def relu(layer: keras.layers.Layer, policy: keras.DTypePolicy) -> Any:
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
    twin = _ReLU(activation, name=layer.name, dtype=policy)
    twin._six = activation is keras.activations.relu6
    twin.activation = fused(activation)
    return twin


def _normalize(
    made: tuple[Callable[..., tf.Tensor], Any],
    gamma: tf.Tensor,
    beta: tf.Tensor,
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

    @tf.custom_gradient
    def normalize(gamma: tf.Tensor, beta: tf.Tensor, *arguments: tf.Tensor) -> Any:
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
            with tf.control_dependencies([dy]):  # made, and cast, anew: late
                again = [tf.identity(argument) for argument in arguments]
            with tf.GradientTape() as tape:
                tape.watch(again)
                x = make(*again)
            spaces = {f"reserve_space_{i + 1}": t for i, t in enumerate(reserved)}
            dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=tf.cast(dy, kernel_dtype),
                x=tf.cast(x, kernel_dtype),
                scale=gamma,
                epsilon=epsilon,
                is_training=True,
                **spaces,
            )
            return [dgamma, dbeta, *tape.gradient(x, again, tf.cast(dx, dtype))]

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


class _LayerNorm(keras.layers.Layer):
    """The master's layer normalization, 16-bit in and out, float32 between."""

    def share(self, master: keras.layers.LayerNormalization) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self.trainable = master.trainable
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
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

    @tf.function(jit_compile=True)
    def forward(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        wide = tf.cast(x, tf.float32)
        mean = tf.reduce_mean(wide, -1, keepdims=True)
        variance = tf.reduce_mean(
            tf.math.squared_difference(wide, mean), -1, keepdims=True
        )
        inverse = tf.math.rsqrt(variance + epsilon)
        y = (wide - mean) * inverse * gamma + beta
        return tf.cast(y, x.dtype), mean, inverse

    @tf.function(jit_compile=True)
    def backward(
        x: tf.Tensor,
        gamma: tf.Tensor,
        mean: tf.Tensor,
        inverse: tf.Tensor,
        dy: tf.Tensor,
    ) -> Any:
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

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        y, mean, inverse = forward(x, gamma, beta)
        return y, functools.partial(backward, x, gamma, mean, inverse)

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


class _Dropout(keras.layers.Dropout):
    """Dropout that draws 16 random bits for each number, not a 16-bit number.

    A bfloat16 number in [0, 1) is one of 128, and 1 / (1 - rate) is rounded, so that
    Keras' mean of the outputs is not that of the inputs. Here the rate gives way: it
    is such that the mean is right, for the rounded factor.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        x = tf.cast(inputs, self.variable_dtype)
        factor = tf.cast(1.0 / (1.0 - self.rate), x.dtype)
        dropped = 1.0 - 1.0 / tf.cast(factor, tf.float32)  # of all
        keep = _random_bits(tf.shape(x), self.seed_generator.next()) >= tf.cast(
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
        tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32),  # as Keras
        minval=None,
        maxval=None,
        dtype=tf.uint32,
    )
    halves = tf.bitcast(words, tf.uint16)  # [..., pairs, 2]
    both = tf.reshape(halves, tf.concat([shape[:-1], [2 * pairs]], 0))
    return both[..., : shape[-1]]


def can_drop(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer is a dropout of independent numbers."""
    # At a rate near 1 the factor would overflow, and at one near 0 nothing drop.
    return (
        type(layer) is keras.layers.Dropout
        and layer.noise_shape is None
        and 2.0**-6 <= layer.rate <= 0.99
    )


def dropout(
    layer: keras.layers.Dropout, policy: keras.DTypePolicy
) -> keras.layers.Layer:
    """Copies a `Dropout` to 16 bits; the mean of its outputs is that of its inputs.

    It drops other numbers than Keras does from the same seed.

    Args:
      layer: one whose seed the copy continues from.
      policy: dtype of inputs and outputs.
    """
    narrow = keras.DTypePolicy(policy.variable_dtype)
    twin = _Dropout if can_drop(layer) else keras.layers.Dropout
    return twin.from_config(twin_config(layer, narrow))


class _Embedding:
    """Mixin: looks up rows of the master's own float32 table, and rounds these.

    A 16-bit copy of the table would be made anew in every step, of all its rows.
    """

    def share(self, master: keras.layers.Embedding) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking

    def build(self, input_shape: Any = None) -> None:
        master = self._master()
        self._embeddings = master.embeddings  # tracked, in the master's order
        if not getattr(master, "tie_weights", True):
            self.reverse_embeddings = master.reverse_embeddings


def can_look_up(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer looks up rows of a table, and no more."""
    known = (keras.layers.Embedding, getattr(keras.layers, "ReversibleEmbedding", None))
    return type(layer) in (*known, *_of_keras_hub(_TABLES))


def embedding(
    layer: keras.layers.Embedding, policy: keras.DTypePolicy
) -> keras.layers.Embedding:
    """Makes a built float32 embedding layer return 16-bit rows.

    Args:
      layer: one that `can_look_up`. Its table is shared, so that rows that repeat
        have their gradients summed in float32.
      policy: dtype of the rows.

    Returns:
      A layer whose products with the table (`reverse=True`) are float32.
    """
    # Under a mixed policy, Keras rounds the rows, not the table.
    mixed = keras.DTypePolicy(f"mixed_{policy.variable_dtype}")
    twin = _looking_up(type(layer)).from_config(twin_config(layer, mixed))
    twin.share(layer)
    return twin


@functools.cache
def _looking_up(base: type) -> type:
    return type(base.__name__, (_Embedding, base), {})


class _PositionEmbedding(keras.layers.Layer):
    """The master's position embedding, rounded to 16 bits and then repeated.

    Its gradient, a sum over the batch, is of float32.
    """

    def share(self, master: keras.layers.Layer) -> None:
        self._master = lambda: master  # a closure hides it from Keras' tracking
        self.trainable = master.trainable

    def build(self, inputs_shape: Any) -> None:
        self.position_embeddings = self._master().position_embeddings

    def call(self, inputs: tf.Tensor, start_index: Any = 0, positions: Any = None):
        rows, shape = self.position_embeddings.value, tf.shape(inputs)
        if positions is not None:
            rows = tf.gather(rows, positions)
        else:
            rows = rows[start_index : start_index + shape[-2]]
        repeated = add_bias(tf.zeros(shape, self.variable_dtype), rows)
        return tf.ensure_shape(repeated, inputs.shape)

    def compute_output_spec(self, inputs: Any, *_: Any, **__: Any) -> Any:
        return keras.KerasTensor(inputs.shape, self.variable_dtype)


def can_number(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer is keras_hub's learned position embedding."""
    return type(layer) in _of_keras_hub(_POSITIONS)


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


def parts(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The layers that a composite layer of a known type is made of, in order.

    Args:
      layer: any built layer.

    Returns:
      Its layers by attribute name; empty for every other layer, and for one that
      holds layers elsewhere too.
    """
    if type(layer) not in _of_keras_hub(_COMPOSITES):
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
) -> keras.layers.Layer:
    """Copies a built composite layer, with twins in the place of its parts.

    Args:
      layer: one that has `parts`.
      policy: dtype of what the layer itself computes: sums of two tensors.
      twins: of all its `parts`, by the same names in the same order; not built.

    Returns:
      A layer of the same type.
    """
    twin = _made_of_twins(type(layer)).from_config(twin_config(layer, policy))
    twin._twins = lambda: (layer, twins)  # a closure hides them from tracking
    return twin


@functools.cache
def _made_of_twins(base: type) -> type:
    @functools.wraps(base.build)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        base.build(self, *args, **kwargs)
        master, twins = self._twins()
        # Tracked in the master's order: all out before the first goes in.
        for name in twins:
            self._tracker.untrack(getattr(self, name))
        for name, twin in twins.items():
            twin.build_from_config(getattr(master, name).get_build_config())
            setattr(self, name, twin)
        shapes = [[tuple(v.shape) for v in one.weights] for one in (master, self)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`model`: layer '{master.name}' ({base.__name__}) cannot be converted "
                "to 16 bits: its copy has other weights. Keep it in float32 with "
                f"`float32_layers` ({master.name})."
            )

    return type(base.__name__, (base,), {"build": build})


class InFloat32(keras.Operation):
    """Runs a Keras operation (`keras.ops.mean(x)` in a graph, say) in float32."""

    def __init__(self, operation: keras.Operation):
        super().__init__()
        self._operation = operation

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._operation.call, tf.cast, args, kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._operation.compute_output_spec, _spec, args, kwargs)

    def _run(self, call: Callable, cast: Callable, args: tuple, kwargs: dict) -> Any:
        def widen(x: Any) -> Any:
            narrow = keras.backend.standardize_dtype(getattr(x, "dtype", "int32"))
            return cast(x, "float32") if narrow in ("float16", "bfloat16") else x

        args, kwargs = keras.tree.map_structure(widen, (args, kwargs))
        return call(*args, **kwargs)


def _spec(tensor: keras.KerasTensor, dtype: str) -> keras.KerasTensor:
    return keras.KerasTensor(tensor.shape, dtype, name=tensor.name)


class Rounded(keras.layers.Layer):
    """Calls a float32 layer, and rounds its outputs to 16 bits."""

    def __init__(self, layer: keras.layers.Layer, dtype: str):
        super().__init__(dtype="float32", name=layer.name)
        self._layer = layer
        self._rounded_dtype = dtype
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return keras.ops.cast(self._layer(inputs), self._rounded_dtype)
